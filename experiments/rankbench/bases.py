"""The bases of RankBench: twelve parallel linears, a small residual network, and pretrained text models."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.errors import SettingError
from adarank.harness import models
from adarank.harness.config.compose import spec_from
from adarank.harness.data.task_types import TASK_TYPES
from adarank.targets import find_targets, resolve_targets

WIDTH, BLOCKS = 24, 6
LINEARS = 2 * BLOCKS
TOKENS, HELD_OUT = 12, 128  # tokens per text; texts in each of dev and test
SPLITS = ("train", "dev", "test")
RANDOM = ("linear", "network")  # bases that are drawn for each seed


@dataclass(frozen=True)
class Base:
    """model: called with batches as an init calls a model; targets: those for `adarank.adapt`; names: the adapted
    modules; key: the name of the model's input; inputs: {train, dev, test: that input for all rows}."""

    model: nn.Module
    targets: str | list[str]
    names: list[str]
    key: str
    inputs: Mapping[str, Tensor]


class Linears(nn.Module):
    """y_i = W_i x_i for x [rows, modules, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LINEARS))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        return _answer(torch.stack([layer(x[:, i]) for i, layer in enumerate(self.layers)], 1), labels)


class Network(nn.Module):
    """h ← h + down(tanh(up(h))), six times, for x [rows, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({part: nn.Linear(WIDTH, WIDTH) for part in ("up", "down")}) for _ in range(BLOCKS)
        )

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        block: Any
        for block in self.blocks:
            x = x + block["down"](torch.tanh(block["up"](x)))
        return _answer(x, labels)


class LastHiddenStates(nn.Module):
    """The last hidden states [rows, tokens, width] of a text model without its head and its dropout."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        for module in encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        return _answer(self.encoder(input_ids=input_ids).last_hidden_state, labels)


def _answer(outputs: Tensor, labels: Tensor | None) -> Any:
    return SimpleNamespace(logits=outputs, loss=None if labels is None else F.mse_loss(outputs, labels))


def module_count(base: str) -> int:
    """The number of adapted modules of a base. Raises SettingError if there is no such base or it is not installed."""
    return LINEARS if base in RANDOM else len(_pretrained(base)[2])


def smallest_side(base: str) -> int:
    """The smallest dimension of a base's adapted weights, and so the most triplets that each of them can hold."""
    if base in RANDOM:
        return WIDTH
    model, _, names, _ = _pretrained(base)
    weights: list[Any] = [model.get_submodule(name).weight for name in names]
    return min(min(weight.shape) for weight in weights)


@torch.no_grad()
def random_base(name: str, rows: int, generator: torch.Generator) -> Base:
    """`linear` or `network`; the singular values of its weights have the root mean square 1.

    The test rows of `linear` are √width times the unit vectors, so that their mean loss is exactly the expected loss
    over inputs with identity covariance.
    """
    model: nn.Module = Linears() if name == "linear" else Network()
    for parameter in model.parameters():
        value = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(value * (WIDTH**0.5 / value.norm()) if value.ndim > 1 else 0.1 * value)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    shape = (LINEARS, WIDTH) if name == "linear" else (WIDTH,)
    inputs = {split: torch.randn(rows, *shape, generator=generator) for split in SPLITS}
    if name == "linear":
        inputs["test"] = (WIDTH**0.5 * torch.eye(WIDTH)).unsqueeze(1).expand(-1, LINEARS, -1).contiguous()
    return Base(model, "all-linear", names, "x", inputs)


@cache
def _pretrained(base: str) -> tuple[nn.Module, str | list[str], list[str], Any]:
    """`text_model` of a text model in conf/model. The tiny models are random and therefore refused."""
    found = spec_from([f"model={base}"]).model if not base.startswith("tiny_") else None
    if found is None:
        raise SettingError(f"the base must be linear, network or a pretrained text model of conf/model (got {base})")
    return text_model(found())


def text_model(place: models.Base) -> tuple[nn.Module, str | list[str], list[str], Any]:
    """(model, targets, names of the modules they select, tokeniser) of an encoder or decoder."""
    task_type = TASK_TYPES["classify"]
    built = place.build(1, task_type)
    model = LastHiddenStates(built.model.base_model)
    targets = resolve_targets(place, "all", None, task_type)
    return model, targets, find_targets(model, targets), built.tokenizer


@cache
def text_base(name: str, rows: int) -> Base:
    """A text model on sentences of film reviews, cut to their first tokens; shorter ones are excluded."""
    model, targets, names, tokenizer = _pretrained(name)
    task = spec_from(["task=rotten_tomatoes"]).task
    assert task is not None
    texts = task()
    inputs = {}
    for split, count in (("train", rows), ("dev", HELD_OUT), ("test", HELD_OUT)):
        ids = tokenizer(list(getattr(texts, split).text), truncation=True, max_length=TOKENS)["input_ids"]
        inputs[split] = torch.tensor([row for row in ids if len(row) == TOKENS][:count])
    return Base(model, targets, names, "input_ids", inputs)
