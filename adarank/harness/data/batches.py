"""Turns rows into batches, with the same rows in the same order for every method."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adarank.errors import SettingError
from adarank.harness.data import cache
from adarank.harness.data.tasks.base import Split

BATCHES_PER_POOL = 50  # at most this many batches are sorted by length together
INIT_SEED_OFFSET = 2**31  # inits draw their batches in a different order than training
AUTO_PASSES = 8  # microbatches="auto" splits the rows of a forward pass into at most this many
AUTO_GAIN = 0.05  # and only if it is predicted to save at least this share of the time


@dataclass(frozen=True)
class Encoded:
    """The tokenised rows of a split.

    tokens: {model input name: one list of token ids per row}, unpadded; label: [rows]; pad: {model input name: its
    padding value}.
    """

    tokens: dict[str, list[list[int]]]
    label: Tensor
    pad: dict[str, int]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [rows]."""
        return lengths(self.tokens["input_ids"])


def lengths(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """The length of each list, int64 [lists]."""
    return np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))


def check_lengths(
    lengths: np.ndarray, texts: Sequence[str], split: str, setting: str, value: int, tokenizer: Any
) -> None:
    """Raise SettingError if a row has more tokens than the model reads, `tokenizer.model_max_length`.

    lengths: tokens of each row, [rows]; texts: the rows; setting, value: the setting that limits their tokens, and its
    value.
    """
    longest, most = int(lengths.argmax()), tokenizer.model_max_length
    if lengths[longest] > most:
        raise SettingError(
            f"{setting} must be at most {most}, the number of tokens that the model reads (got {value}, and row "
            f"{longest + 1} of {split} has {lengths[longest]}; it begins {texts[longest][:40]!r})"
        )


def padding(tokenizer: Any) -> dict[str, int]:
    """The padding value of each of an encoder's inputs."""
    return {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id, "attention_mask": 0}


def encode(split: Split, tokenizer: Any, max_length: int, name: str | None = None) -> Encoded:
    """Tokenise every row without padding, truncated to `max_length` tokens (the longer of two sentences first).

    name: identifies the rows (the data's fingerprint and the split). If it is given, the tokens are cached on disk.
    """
    pad = padding(tokenizer)
    key = None if name is None else cache.key(tokenizer, rows=name, max_length=max_length)
    tokens = cache.read(key)
    if tokens is None:
        out = tokenizer(split.text, split.pair, truncation=True, max_length=max_length)
        tokens = {part: out[part] for part in pad if part in out}
        cache.write(key, tokens)
    return Encoded(tokens, torch.from_numpy(split.label), pad)


def collate(encoded: Encoded, rows: np.ndarray, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """(model inputs [batch, longest], labels [batch]) of the rows with these numbers, padded on the right."""
    inputs = {}
    for name, lists in encoded.tokens.items():
        ids = [torch.tensor(lists[i]) for i in rows]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=encoded.pad[name])
        inputs[name] = padded.to(device, non_blocking=True)
    return inputs, encoded.label[torch.from_numpy(rows)].to(device, non_blocking=True)


def without_full_mask(batch: Mapping[str, Tensor], lengths: np.ndarray) -> dict[str, Tensor]:
    """The batch without its attention mask if no row is padded; lengths: tokens of its rows, int64 [rows].

    Transformers checks on the host whether a mask hides anything, so that each forward pass with a mask waits for the
    device. The model's outputs are the same bit for bit.
    """
    padded = lengths.min() < lengths.max()
    return {name: tensor for name, tensor in batch.items() if padded or name != "attention_mask"}


def training_order(rows: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """An endless stream of batches of row numbers, int64 [batch]: one permutation per epoch, concatenated so that every
    batch is full.

    The order depends only on the number of rows, the batch size and the seed.
    """
    left = np.empty(0, dtype=np.int64)
    epoch = 0
    while True:
        while len(left) < batch:
            left = np.concatenate([left, np.random.default_rng([seed, epoch]).permutation(rows)])
            epoch += 1
        yield left[:batch]
        left = left[batch:]


def grouped_by_length(order: Iterator[np.ndarray], lengths: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """The batches of `order`, regrouped so that rows of similar length share a batch and little padding is needed.

    Each pool of consecutive batches (a quarter of an epoch, at most BATCHES_PER_POOL) is sorted by length and split
    again into batches, in a random order that depends on the seed alone. lengths: tokens of each row, [rows].
    """
    for pool in itertools.count():
        batches = [next(order)]
        size = min(BATCHES_PER_POOL, max(1, len(lengths) // (4 * len(batches[0]))))
        batches += itertools.islice(order, size - 1)
        rows = np.concatenate(batches)
        rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(size, -1)
        yield from rows[np.random.default_rng([seed, pool, size]).permutation(size)]


def microbatches(lengths: np.ndarray, passes: int | str, overhead: float = 0.0) -> list[np.ndarray]:
    """Split the rows of one forward pass into several passes of rows of similar length, to reduce padding.

    The split minimises the number of tokens, including padding, for the given number of passes; of several such splits
    it is the one with the most even numbers of rows.

    lengths: tokens of each row, [rows]; passes: the number of passes, at most one per row, or "auto", which minimises
    the cost (`overhead` tokens per pass and 1 per token) but chooses a single pass if that saves less than AUTO_GAIN.
    Returns the indices into `lengths` of every pass, int64, longest rows first; a single pass keeps its order.
    """
    rows = len(lengths)
    whole = overhead + rows * lengths.max()
    auto = passes == "auto"
    most = min(rows, AUTO_PASSES if isinstance(passes, str) else passes)
    if most == 1 or (auto and 2 * overhead + lengths.sum() > (1 - AUTO_GAIN) * whole):  # true even without any padding
        return [np.arange(rows)]
    order = np.argsort(-lengths, kind="stable")
    longest, unit = lengths[order], rows**2 + 1  # of cost: one token outweighs any difference in evenness
    # Dynamic programming: [c, j] holds the least cost of the first j rows in c passes, and where the last pass begins.
    cost = np.full((most + 1, rows + 1), np.iinfo(np.int64).max // 2)
    begin = np.zeros_like(cost)
    cost[0, 0] = 0
    for j in range(1, rows + 1):
        size = np.arange(j, 0, -1)
        with_last = cost[:-1, :j] + unit * longest[:j] * size + size**2
        begin[1:, j], cost[1:, j] = with_last.argmin(1), with_last.min(1)
    if auto:
        costs = overhead * np.arange(1, most + 1) + cost[1:, rows] // unit
        most = int(costs.argmin()) + 1
        if costs[most - 1] > (1 - AUTO_GAIN) * whole:
            return [np.arange(rows)]
    divided, end = [], rows
    for c in range(most, 0, -1):
        divided.append(order[begin[c, end] : end])
        end = begin[c, end]
    return divided[::-1]


def init_batches(
    collate: Callable[..., dict[str, Tensor]], rows: Any, batch: int, seed: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """An endless stream of batches of the encoded training rows for inits that use data, in a different order than in
    training."""
    for numbers in training_order(len(rows), batch, seed + INIT_SEED_OFFSET):
        yield collate(rows, numbers, device)


def evaluation_order(lengths: np.ndarray, batch: int, fill: bool = True) -> list[np.ndarray]:
    """Batches of row numbers, longest rows first to save padding. lengths: tokens of each row, [rows].

    The first batch has `batch` rows, and each later one as many rows as fit into the same number of tokens, including
    padding. fill=False gives every batch `batch` rows.
    """
    rest = np.argsort(-lengths, kind="stable")
    batches, tokens = [], 0
    while len(rest):
        longest = max(int(lengths[rest[0]]), 1)
        tokens = tokens or batch * longest
        size = tokens // longest if fill else batch
        batches.append(rest[:size])
        rest = rest[size:]
    return batches
