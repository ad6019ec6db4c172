"""From rows to batches: the same rows in the same order for every method."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adarank.harness import cache
from adarank.harness.tasks.base import Split

POOL = 50  # batches whose rows are grouped by length together


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows of a split. tokens: {model input name: one list of ids a row}, unpadded; label [rows]."""

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
    """Of each of the lists, int64 [lists]."""
    return np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))


def encode(split: Split, tokenizer: Any, max_length: int, name: str | None = None) -> Encoded:
    """Tokenise every row, cut to `max_length` tokens (the longer of two sentences first), without padding.

    name: stands for the rows (the data's fingerprint and the split); given one, the tokens are kept in the cache.
    """
    pad = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id, "attention_mask": 0}
    key = None if name is None else cache.key(tokenizer, rows=name, max_length=max_length)
    tokens = cache.read(key)
    if tokens is None:
        out = tokenizer(split.text, split.pair, truncation=True, max_length=max_length)
        tokens = {kind: out[kind] for kind in pad if kind in out}
        cache.write(key, tokens)
    return Encoded(tokens, torch.from_numpy(split.label), pad)


def collate(encoded: Encoded, rows: np.ndarray, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """(model inputs [batch, longest], labels [batch]) of the given rows, padded on the right to the longest."""
    inputs = {}
    for name, lists in encoded.tokens.items():
        ids = [torch.tensor(lists[i]) for i in rows]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=encoded.pad[name])
        inputs[name] = padded.to(device, non_blocking=True)
    return inputs, encoded.label[torch.from_numpy(rows)].to(device, non_blocking=True)


def training_order(rows: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of row numbers: one permutation an epoch, joined end to end so that every batch is full.

    Depends on the number of rows, the batch size and the seed alone.
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
    """The batches of `order`, rows of like length put together, so that little is padded.

    Always the next pool of batches, a quarter of an epoch but POOL at most, is sorted by length and cut anew; the new
    batches come in random order, which depends on the seed alone. lengths: tokens of each row [rows].
    """
    for pool in itertools.count():
        batches = [next(order)]
        size = min(POOL, max(1, len(lengths) // (4 * len(batches[0]))))
        batches += itertools.islice(order, size - 1)
        rows = np.concatenate(batches)
        rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(size, -1)
        yield from rows[np.random.default_rng([seed, pool, size]).permutation(size)]


def looks(
    collate: Callable[..., dict[str, Tensor]], rows: Any, batch: int, seed: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Endless batches for inits that look at data before training: model inputs with targets, as a kind of task collates
    its training rows, drawn in an order of their own."""
    for chosen in training_order(len(rows), batch, seed + 2**31):
        yield collate(rows, chosen, device)


def evaluation_order(lengths: np.ndarray, batch: int) -> list[np.ndarray]:
    """Batches of row numbers, the longest first, so that little is padded. lengths: tokens of each row [rows]."""
    longest_first = np.argsort(-lengths, kind="stable")
    return [longest_first[i : i + batch] for i in range(0, len(longest_first), batch)]
