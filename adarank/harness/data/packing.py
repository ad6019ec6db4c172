"""Packing concatenates the rows of a forward pass into a few bins instead of padding each row.

    padded [rows, longest]          packed [bins, longest]
    a a a a a                       a a a a a
    b b b · ·                       b b b c c
    c c · · ·

A causal language model must keep the rows of a bin apart. There are three ways, and `way_to_pack` tests every model
before it relies on one of them:

    positions    position_ids that restart with every row, and no attention mask: Transformers' own masks then separate
                 the rows, each layer with its own window; variable-length flash attention does so for a single bin
    block_mask   the same positions and a mask [bins, 1, longest, longest] that lets a token see only its own row
    layer_masks  the same positions and one such mask per type of layer, that of sliding_attention with its window
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from adarank.harness.data.losses import IGNORED, replaced_head
from adarank.harness.device import at_least_fp32, autocast

Way = Literal["positions", "block_mask", "layer_masks"]
WAYS: tuple[Way, ...] = get_args(Way)
WINDOWS = ("sliding_window", "window_size", "local_attention", "attention_window_size", "attention_chunk_size")
SHORT = 11  # tokens of the rows with which a model is tested, if it has no window
# The largest relative difference allowed between two computations of the same output: (a row whose neighbour changed, a
# row packed and alone).
TOLERANCES = {torch.float64: (1e-9, 1e-7), torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-3, 5e-2)}


def bins(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """The rows' numbers by bin. Rows are placed in order of descending length, each in the first bin with enough room.

    lengths: tokens of each row, [rows]; capacity: tokens of a bin, at least those of the longest row.
    """
    packed: list[list[int]] = []
    room: list[int] = []
    for row in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[row])
        place = next((i for i, left in enumerate(room) if left >= length), len(room))
        if place == len(room):
            packed.append([])
            room.append(capacity)
        packed[place].append(row)
        room[place] -= length
    return packed


def pack(model: Any, batch: Mapping[str, Tensor], way: Way, precision: str, device: torch.device) -> dict[str, Any]:
    """Convert a batch padded on the right to one that `model` reads without padding between its rows, on `device`.

    batch: input_ids, attention_mask and labels, int64 [rows, longest], on the CPU, so as not to wait for the device;
    precision: the compute precision, "fp32" or "bf16". See `in_bins` for the result.
    """
    lengths = batch["attention_mask"].sum(1).tolist()
    return in_bins(model, batch, bins(lengths, capacity(model, lengths)), way, precision, device)


def in_bins(
    model: Any,
    batch: Mapping[str, Tensor],
    rows_of_bins: Sequence[Sequence[int]],
    way: Way,
    precision: str,
    device: torch.device,
) -> dict[str, Any]:
    """The padded batch (see `pack`) with its rows placed in the given bins, in their order.

    rows_of_bins: see `bins`. Returns input_ids, labels and position_ids, int64 [bins, tokens of the fullest bin], and,
    unless positions are enough, attention_mask: see `block_mask`; for layer_masks, one for each of the config's
    layer_types. The unfilled end of a bin counts as a separate row, whose labels are IGNORED.
    """
    lengths = batch["attention_mask"].sum(1).tolist()
    longest, width = batch["input_ids"].shape[1], max(sum(lengths[row] for row in rows) for rows in rows_of_bins)
    # For every token of every bin: its index in the flattened padded batch, its position in its row, and the row's
    # index.
    source, position, owner = (torch.zeros(len(rows_of_bins), width, dtype=torch.int64) for _ in range(3))
    owner.fill_(-1)
    for i, rows in enumerate(rows_of_bins):
        begin = 0
        for row in rows:
            places = torch.arange(lengths[row])
            part = slice(begin, begin + lengths[row])
            source[i, part], position[i, part], owner[i, part] = row * longest + places, places, row
            begin += lengths[row]
        position[i, begin:] = torch.arange(width - begin)
    packed = {name: batch[name].flatten()[source] for name in ("input_ids", "labels")} | {"position_ids": position}
    packed["labels"] = packed["labels"].masked_fill(owner < 0, IGNORED)
    packed = {name: tensor.to(device, non_blocking=True) for name, tensor in packed.items()}
    owner, dtype = owner.to(device, non_blocking=True), mask_dtype(model, precision)
    if way == "block_mask":
        return {**packed, "attention_mask": block_mask(owner, dtype)}
    if way == "layer_masks":
        windows = {"full_attention": None, "sliding_attention": model.config.get_text_config().sliding_window}
        return {**packed, "attention_mask": {kind: block_mask(owner, dtype, size) for kind, size in windows.items()}}
    return packed  # type: ignore[return-value]


def block_mask(owner: Tensor, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """A mask [bins, 1, tokens, tokens] to add to attention scores: 0 if token […, i, :] may attend to token […, :, j],
    else the dtype's minimum. owner: the row of each token, int64 [bins, tokens]; window: the number of tokens to which
    a token attends at most, including itself."""
    seen = (owner[:, :, None] == owner[:, None, :]).tril()[:, None]
    if window is not None:
        seen = seen.triu(1 - window)
    return torch.zeros(seen.shape, dtype=dtype, device=owner.device).masked_fill_(~seen, torch.finfo(dtype).min)


def capacity(model: Any, lengths: Sequence[int] | np.ndarray) -> int:
    """Tokens per bin: those of the longest row, or all tokens with flash attention, which packs a single bin."""
    flash = str(getattr(model.config, "_attn_implementation", "")).startswith("flash")
    return int(sum(lengths) if flash else max(lengths))


def mask_dtype(model: Any, precision: str) -> torch.dtype:
    """The dtype in which the model computes attention scores."""
    dtype: torch.dtype = torch.bfloat16 if precision == "bf16" else model.dtype
    return dtype


@torch.no_grad()
def way_to_pack(model: Any, longest: int, precision: str, device: torch.device) -> Way | None:
    """The first way in which the model's output for packed rows equals that for the same rows alone; None if there is
    none.

    longest: tokens of the longest row to be packed. The test uses random tokens in evaluation mode, with rows longer
    than the model's windows if training has such rows: when the first row of a bin changes, the output for the second
    must not, and it must equal the output for that row alone without padding. It compares the inputs of the output
    matrix, [tokens, width], or the logits of a model that does not name one.
    """
    config = model.config.get_text_config()
    stated = [getattr(config, name, None) for name in WINDOWS]
    windows = [int(size) for size in stated if isinstance(size, int) and 0 < size < longest]
    n = max(SHORT, min(longest, max(windows, default=0) + 3))
    generator = torch.Generator().manual_seed(0)
    first, other, second = (
        torch.randint(config.vocab_size, (length,), generator=generator) for length in (SHORT // 2, SHORT // 2, n)
    )
    training = model.training
    model.eval()
    try:
        for way in WAYS if getattr(config, "sliding_window", None) else WAYS[:2]:
            if _keeps_apart(model, way, (first, other, second), precision, device):
                return way
    finally:
        model.train(training)
    return None


def _keeps_apart(
    model: Any, way: Way, rows: tuple[Tensor, Tensor, Tensor], precision: str, device: torch.device
) -> bool:
    """Whether the output for `second` is the same after `first`, after `other` and alone. rows: (first, other,
    second)."""
    first, other, second = rows
    begin = len(first)
    together = [[0, 1, 2]] if capacity(model, [1, 1]) == 2 else [[0, 1], [2]]

    def outputs(inputs: Mapping[str, Any]) -> Tensor:
        given = {name: value for name, value in inputs.items() if name != "labels"}
        with autocast(precision, device), replaced_head(model, lambda head, x: x):
            found = at_least_fp32(model(**given, use_cache=False).logits[0])
        return found

    try:
        moved = []
        for before in (first, other):
            padded = _padded([before, second, second[:-2]])
            moved.append(outputs(in_bins(model, padded, together, way, precision, device))[begin : begin + len(second)])
        alone = outputs({name: tensor.to(device) for name, tensor in _padded([second]).items()})
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False  # models that do not accept position_ids or such a mask raise one of these
    size = alone.abs().max()
    change, difference = TOLERANCES[mask_dtype(model, precision)]
    return bool(
        (moved[0] - moved[1]).abs().max() <= change * size and (moved[0] - alone).abs().max() <= difference * size
    )


def _padded(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(list(rows), batch_first=True)
    mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}
