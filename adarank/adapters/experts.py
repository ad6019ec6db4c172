"""Experts stacked in one tensor: every expert's matrix is treated as a separate layer with its own low-rank adapter.

Transformers keeps the experts of a block in two stacks, gate_up_proj (up_proj if there is no gate) and down_proj,
both [experts, d_out, d_in] or, in some families, [experts, d_in, d_out]:

    before                            after
    mlp                               mlp
    └── experts: MixtralExperts       └── experts: Experts
        ├── gate_up_proj [E, …]           ├── base: MixtralExperts   (the same object, frozen; it keeps the stacks)
        └── down_proj    [E, …]           ├── gate_up_proj: ModuleList of E adapters
                                          └── down_proj:    ModuleList of E adapters

The base of adapter "mlp.experts.gate_up_proj.3" is an `Expert` (see `adarank.adapters.layers`), which reads matrix 3 of
the stack. That name does not exist in the plain model; `layer_at` finds the layer that it denotes, and `put_layer` puts
an adapter, or the plain experts, there.

Only classes with Transformers' decorator @use_experts_implementation can be wrapped, because it fixes what their
forward pass computes: up projection, gate or activation, down projection, weighted sum. They are recognised by the
attributes that it gives them, so that Transformers is not imported here.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from adarank.adapters.layers import Expert, Wrapper, stack_names

_CONVERSIONS = "_adarank_weight_conversions"  # Transformers' own, set aside while experts have adapters


class Experts(Wrapper):
    """A module of stacked experts whose matrices have adapters. base: the plain module, which keeps the weights.

    It has one ModuleList per stack, under the stack's name, with one adapter, or the plain `Expert`, per expert.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        for part in stack_names(base):
            plain = (Expert(base, part, number) for number in range(self.base.num_experts))
            self.add_module(part, nn.ModuleList(plain))
        self.train(base.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states [tokens, d], each token's experts [tokens, k] (int64) and their weights [tokens, k] -> [tokens,
        d].

        The tokens are sorted by expert, and each expert gets its own. In training, an adapter whose expert gets none
        has a gradient of zeros, as it would if the stack were one parameter.
        """
        k = top_k_index.shape[-1]
        chosen, order = top_k_index.reshape(-1).sort(stable=True)
        x = hidden_states[order // k]
        numbers = torch.arange(self.base.num_experts, device=chosen.device)
        ends = torch.searchsorted(chosen, numbers, right=True)  # where each expert's rows end
        if self._is_groupable(x):
            out = self._expert(x, partial(self._grouped, chosen, ends.to(torch.int32)))
        else:
            counts = ends.diff(prepend=ends.new_zeros(1)).tolist()  # the host waits for the device here
            outputs = [
                self._expert(rows, partial(self._one, number))
                for number, rows in enumerate(x.split(counts))
                if len(rows) or self.training
            ]
            out = torch.cat(outputs)
        weighted = out * top_k_weights.reshape(-1)[order].unsqueeze(1)
        return weighted[order.argsort()].view(len(hidden_states), k, -1).sum(1).to(hidden_states.dtype)

    def _expert(self, x: Tensor, linear: Callable[[str, Tensor], Tensor]) -> Tensor:
        """The output of experts for x [rows, d], where linear(stack's name, rows) computes their products."""
        base = self.base
        hidden = base._apply_gate(linear("gate_up_proj", x)) if base.has_gate else base.act_fn(linear("up_proj", x))
        out = linear("down_proj", hidden)
        return base.post_expert_norm(out) if base.has_post_expert_norm else out  # type: ignore[no-any-return]

    def _adapters(self, part: str) -> list[Any]:
        """The adapter, or plain `Expert`, of each expert in a stack."""
        return list(self.get_submodule(part).children())

    def _one(self, number: int, part: str, x: Tensor) -> Tensor:
        """The product of one expert with its rows, as its adapter computes it."""
        product: Tensor = self.get_submodule(f"{part}.{number}")(x)
        return product

    def _is_groupable(self, x: Tensor) -> bool:
        """Whether `_grouped` can replace the loop over experts. The loop supports every device and dtype, like the
        implementation "eager" in Transformers, and adapters of any class that are recorded, scaled, bypassed, or
        present in only some experts."""
        implementation, dtype = getattr(self.base.config, "_experts_implementation", None), _compute_dtype(x)
        if implementation in (None, "eager") or not hasattr(F, "grouped_mm"):
            return False
        if x.device.type not in ("cpu", "cuda") or dtype not in (torch.bfloat16, torch.float32):
            return False
        if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < (8, 0):
            return False
        for part in stack_names(self.base):
            first, *rest = adapters = self._adapters(part)
            if not all(isinstance(a, Wrapper) for a in adapters):
                return False
            if not all(a.enabled and a.parametrisation.module is None for a in adapters):
                return False
            if self.training and any(a.watch is not None or a.path is not None for a in adapters):
                return False
            if any((a.scale, a.masked) != (first.scale, first.masked) for a in rest):
                return False
            if any(side * dtype.itemsize % 16 for side in (first.in_features, first.out_features)):
                return False
        return True

    def _grouped(self, chosen: Tensor, ends: Tensor, part: str, x: Tensor) -> Tensor:
        """The products of all experts with their rows at once, without a loop that waits for the device.

        x: [rows, d_in], sorted by expert; chosen: int64 [rows], each row's expert; ends: int32 [experts], the end of
        each expert's rows. The factors are padded with zeros to the largest rank, rounded up to a multiple of 8 for the
        kernels.
        """
        base, adapters, dtype = self.base, self._adapters(part), _compute_dtype(x)
        first, weight, x = adapters[0], getattr(base, part), x.to(dtype)
        out: Tensor = F.grouped_mm(x, (weight if base.is_transposed else weight.mT).to(dtype), offs=ends)
        if base.has_bias:
            out = out + getattr(base, f"{part}_bias").to(dtype)[chosen]
        if not any(a.rank for a in adapters):
            return out
        Q, gain, P = (_padded([getattr(a, factor) for a in adapters]) for factor in ("Q", "lam", "P"))
        if not self.training or first.masked:
            gain = gain.masked_fill(~_padded([a.mask for a in adapters]), 0.0)
        P = P * (gain * first.scale).unsqueeze(2)
        h = F.grouped_mm(F.dropout(x, first.dropout, self.training), Q.mT.to(dtype), offs=ends)
        return out + F.grouped_mm(h, P.to(dtype), offs=ends)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        """Show each adapter the weight of its base if the state dict holds the stack, as for any other layer: an
        adapter that finds none subtracts the ΔW₀ of its init from the current weight."""
        for part in stack_names(self.base):
            for number, matrix in enumerate(state_dict.get(f"{prefix}base.{part}", ())):
                state_dict[f"{prefix}{part}.{number}.base.weight"] = matrix
        super()._load_from_state_dict(state_dict, prefix, *others)


def _padded(factors: Sequence[Tensor]) -> Tensor:
    """Tensors [r, …] of several ranks r as one, [experts, largest r rounded up to a multiple of 8, …]."""
    stacked = pad_sequence(list(factors), batch_first=True)
    return F.pad(stacked, (0, 0) * (stacked.ndim - 2) + (0, -stacked.shape[1] % 8))


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a linear's product with x: x's own, or autocast's."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """{name: module} of a plain model: all its modules in its order, and after each module of stacked experts one
    `Expert` per matrix."""
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        layers[name] = module
        for part in stack_names(module):
            for number in range(module.num_experts):  # type: ignore[arg-type]
                layers[f"{name}.{part}.{number}" if name else f"{part}.{number}"] = Expert(module, part, number)
    return layers


def layer_at(model: nn.Module, name: str) -> nn.Module:
    """The module called `name`; for an expert's matrix, the `Expert`, whether or not an adapter wraps it."""
    owner, part, number = _split(name)
    if number.isdecimal():
        try:
            found: Any = model.get_submodule(owner)
        except AttributeError:
            found = None
        stack = found.base if isinstance(found, Experts) else found
        if stack is not None and part in stack_names(stack) and int(number) < stack.num_experts:
            return Expert(stack, part, int(number))
    return model.get_submodule(name)


def put_layer(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put an adapter, or a plain layer, in the place `name`.

    The first adapter of an expert wraps the whole module of stacked experts in `Experts`; a plain `Expert` restores
    that module, without the adapters of all its experts.
    """
    owner, base = _split(name)[0], getattr(module, "base", None)
    if isinstance(module, Expert):
        model.set_submodule(owner, module.owner)
        return
    if isinstance(base, Expert) and not isinstance(model.get_submodule(owner), Experts):
        model.set_submodule(owner, Experts(base.owner))
    model.set_submodule(name, module)


def keep_names(model: nn.Module) -> None:
    """Make save_pretrained of the Transformers models inside `model` keep the names of their parameters while experts
    in them have adapters; undo that if they have none.

    Otherwise save_pretrained splits the stacks, and everything whose name contains a stack's, into the layout of the
    published checkpoints.
    """
    for module in model.modules():
        own = module.__dict__
        if not hasattr(module, "save_pretrained"):
            continue
        adapted = any(isinstance(child, Experts) for child in module.modules())
        if adapted and _CONVERSIONS not in own:
            own[_CONVERSIONS], own["_weight_conversions"] = own.get("_weight_conversions"), []
        elif not adapted and _CONVERSIONS in own:
            own["_weight_conversions"] = own.pop(_CONVERSIONS)


def _split(name: str) -> tuple[str, str, str]:
    """("mlp.experts", "gate_up_proj", "3") for "mlp.experts.gate_up_proj.3"; empty parts if there are fewer."""
    rest, _, number = name.rpartition(".")
    owner, _, part = rest.rpartition(".")
    return owner, part, number
