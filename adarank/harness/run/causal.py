"""Packing and chunked cross-entropy for causal language models, each checked before training."""

from dataclasses import replace
from typing import Any

import torch

from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError
from adarank.harness.config.spec import Spec
from adarank.harness.data.losses import LOGITS_AUTO, enable_chunks, why_whole
from adarank.harness.data.packing import way_to_pack
from adarank.harness.data.tasks.base import Task
from adarank.harness.run.distributed import world
from adarank.harness.run.prepare import Prepared

# Why the rows of each type of task cannot be packed.
NOT_PACKED = {
    "classify": "whose head pools one vector per row",
    "extract": "whose answers are places in one row",
    "seq2seq": "whose decoder attends to the encoder's whole row",
}


def check_settings(spec: Spec, task: Task) -> None:
    """Raise SettingError for settings of causal language models if the task trains a model of another type."""
    kind = task.task_type
    if kind == "generate":
        return
    if spec.train.packing:
        why = NOT_PACKED.get(kind, "which trains no causal language model")
        raise SettingError(f"train.packing must be false for task type {kind}, {why} (got true)")
    if spec.train.chunked_loss is True:
        raise SettingError(
            f"train.chunked_loss must be auto or false for task type {kind}, which trains no causal language model "
            "(got true)"
        )


def prepare_causal(prepared: Prepared, spec: Spec, task: Task, rows: Any, device: torch.device) -> Prepared:
    """Apply `train.packing` and `train.chunked_loss` to the prepared model after checking that its results do not
    change. rows: the encoded training rows. Raises SettingError if they do. Tasks of other types pass through.
    """
    if task.task_type != "generate":
        return prepared
    model: Any = prepared.model
    longest, config = int(rows.lengths.max()), spec.train
    logits = config.batch_size // world() * longest * model.config.get_text_config().vocab_size
    if config.chunked_loss is True or (config.chunked_loss == "auto" and logits > LOGITS_AUTO):
        why = _records_its_head(prepared) or why_whole(model, longest, config.precision, device)
        if why is None:
            enable_chunks(model)
        elif config.chunked_loss is True:
            raise SettingError(
                f"train.chunked_loss must be auto or false with {type(model).__name__}: {why} (got true)"
            )
    if not config.packing:
        return prepared
    way = way_to_pack(model, longest, config.precision, device)
    if way is None:
        raise SettingError(
            f"train.packing must be false with {type(model).__name__}, whose output for packed rows differs from that "
            "for the same rows alone (got true)"
        )
    return replace(prepared, packing=way)


def _records_its_head(prepared: Prepared) -> str | None:
    model: Any = prepared.model
    score = None if prepared.controller is None else prepared.controller.score
    if score is not None and score.activation is not None and isinstance(model.get_output_embeddings(), LowRank):
        return "the score records the inputs of its adapted head for all tokens at once"
    return None
