"""Greedy decoding of many prompts, the same in any number of processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adarank.harness import parallel
from adarank.harness.data import evaluation_order, lengths
from adarank.harness.distributed import world
from adarank.harness.plan import Plan, autocast


@torch.no_grad()
def answers(
    model: Any,
    prompts: Sequence[list[int]],
    end: int,
    pad: int,
    max_new_tokens: int,
    plan: Plan,
    device: torch.device,
) -> list[list[int]]:
    """The tokens that follow each prompt, greedily, before `end` or up to `max_new_tokens`, in the prompts' order.

    Batches of 2 · batch_size prompts of like length, padded on the left.
    """
    order = evaluation_order(lengths(prompts), 2 * plan.batch_size)

    def answered(chosen: np.ndarray) -> Tensor:
        ids, mask = left_padded([prompts[i] for i in chosen], pad, device)
        with autocast(plan.precision, device), decoding(model, eos_token_id=end, pad_token_id=pad):
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                synced_gpus=world() > 1 and plan.shard != "none",  # sharded weights need every rank to the end
            )
        new = torch.full((len(chosen), max_new_tokens), end, device=device)
        new[:, : out.shape[1] - ids.shape[1]] = out[:, ids.shape[1] :]
        return new

    rows = parallel.over(order, answered).tolist()
    cut = [row[: row.index(end)] if end in row else row for row in rows]
    return [cut[i] for i in np.argsort(np.concatenate(order))]


def left_padded(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(input_ids, attention_mask), each [prompts, longest]: every prompt ends where generation goes on."""
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(row)) + row for row in prompts]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@contextmanager
def decoding(model: Any, **settings: Any) -> Iterator[None]:
    """Inside the `with`, model.generate decodes greedily and by these settings alone: what the checkpoint itself asks for
    (sampling, penalties) is put aside."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(**{"do_sample": False, "num_beams": 1, **settings})
    try:
        yield
    finally:
        model.generation_config = own
