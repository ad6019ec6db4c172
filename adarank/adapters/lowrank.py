"""The low-rank adapter: W + s·Pᵀ diag(λ) Q around a frozen layer.

    before                      after
    parent                      parent
    └── query: Linear           └── query: LowRank
                                    ├── base: Linear   (the same object, frozen)
                                    ├── Q    [r, d_in]
                                    ├── lam  [r]       a Parameter if λ is trained, else a constant 1
                                    ├── P    [r, d_out]
                                    └── mask [r] bool  False: pruned

Row i of Q, entry i of λ and row i of P form triplet i, so that dropping triplets means dropping rows. In AdaLoRA's
notation (arXiv 2303.10512, eq. 3) P is our Pᵀ; in LoRA's (arXiv 2106.09685) A is Q and B is Pᵀ.

An init may start at ΔW₀ ≠ 0 and subtract ΔW₀ from the base's weight, so that the model computes the same function
(PiSSA, OLoRA, LoRA-GA). The adapter then remembers ΔW₀ = start_Pᵀ start_Q, and everything derived from it (a saved
adapter, `disabled`) is relative to the original weight.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.adapters.base import remember_buffers
from adarank.adapters.experts import keep_names, layer_at, put_layer
from adarank.adapters.fused import Fed, fed_linear, lowrank_linear
from adarank.adapters.layers import (
    CONV1D,
    EXPERT,
    LINEAR,
    LINEAR_4BIT,
    Layer,
    Wrapper,
    check_mergeable,
    keep_gradients,
    known_layer,
    storage_of,
)
from adarank.adapters.parametrisation import Parametrisation, find
from adarank.errors import SettingError

FACTORS = ("Q", "lam", "P")
START = ("start_Q", "start_P")  # the factors of ΔW₀, which an init subtracted from the base


class LowRank(Wrapper):
    """A frozen layer with r trainable triplets.

    base: a layer of one of `layers.LAYER_TYPES`. kind: a parametrisation or its name ("svd", "lora"). scale: s.
    dropout: the probability of dropping an input of the low-rank path in training (an embedding has none). The factors
    are created on the base's device, in fp32 or in the base's dtype if that is wider. All but λ, which is 1, are
    uninitialised until an init fills them. in_features, out_features: the sides d_in, d_out of the layer's one matrix.

    masked: whether training, too, uses λ ⊙ mask. path: a scalar tensor by which training passes multiply λ. watch:
    called as watch(adapter, x) in every training pass. fed: the inputs that a training pass uses instead of the factors
    (see `adarank.feed`); set for one pass at a time.
    """

    Q: Tensor
    lam: Tensor
    P: Tensor
    mask: Tensor
    start_Q: Tensor | None
    start_P: Tensor | None

    def __init__(
        self, base: nn.Module, kind: str | Parametrisation, rank: int, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__(base)
        self.in_features, self.out_features = self.layer.size(base)
        self.parametrisation = find(kind)
        self.scale = scale
        self.original_scale: float | None = None  # the scale that variant="original" keeps, set by it or loaded
        self.dropout = dropout
        self.fused = True  # False: the plain-autograd reference below
        self.masked = False
        self.path: Tensor | None = None
        self.watch: Callable[[LowRank, Tensor], None] | None = None
        self.fed: Fed | None = None
        self.Q = nn.Parameter(torch.empty(rank, self.in_features, **self.like))
        lam = torch.ones(rank, **self.like)
        if self.parametrisation.learns_lambda:
            self.lam = nn.Parameter(lam)
        else:
            self.register_buffer("lam", lam)
        self.P = nn.Parameter(torch.empty(rank, self.out_features, **self.like))
        for name, shape in self.parametrisation.extra.items():
            size = shape(self.in_features, self.out_features)
            self.register_parameter(name, nn.Parameter(torch.empty(size, **self.like)))
        self.register_buffer("mask", torch.ones_like(lam, dtype=torch.bool))
        self.register_buffer("start_Q", None)
        self.register_buffer("start_P", None)

    @property
    def layer(self) -> Layer:
        """The base's layer type."""
        return known_layer(self.base)

    @property
    def kind(self) -> str:
        """The name of its parametrisation: "svd", "lora"."""
        return self.parametrisation.name

    @property
    def rank(self) -> int:
        """The number of triplets held, including pruned ones."""
        return self.Q.shape[0]

    @property
    def learns_lambda(self) -> bool:
        """Whether λ is trained; otherwise it is the constant 1."""
        return isinstance(self.lam, nn.Parameter)

    @property
    def triplet_cost(self) -> int:
        """The number of trainable parameters per triplet: d_in + d_out, plus 1 if λ is trained."""
        return self.in_features + self.out_features + self.learns_lambda

    def replace(self, part: str, value: Tensor) -> None:
        """Set a factor, as a new Parameter if it is trained."""
        old = getattr(self, part)
        trains = isinstance(old, nn.Parameter)
        setattr(self, part, nn.Parameter(value, requires_grad=old.requires_grad) if trains else value)

    def effective_lam(self) -> Tensor:
        """λ with the pruned entries at zero, [r], for evaluation, merging and export."""
        return self.lam.masked_fill(~self.mask, 0.0)

    def training_lam(self) -> Tensor:
        """λ as used in training passes, [r]."""
        lam = self.effective_lam() if self.masked else self.lam
        return lam if self.path is None else lam * self.path

    def delta(self) -> Tensor:
        """ΔW = s·Pᵀ diag(λ ⊙ mask) Q, [d_out, d_in], in the factors' dtype."""
        return (self.P.t() * (self.effective_lam() * self.scale)) @ self.Q

    def merged(self) -> nn.Module:
        """The layer that computes the adapter's function in evaluation: the base, changed in place, or a new layer."""
        return self.layer.merged(self.base, self.delta(), 1)

    def unmerged(self) -> nn.Module:
        """The base before `merged`, within rounding."""
        return self.layer.merged(self.base, self.delta(), -1)

    @torch.no_grad()
    def start_from(self, Q: Tensor, P: Tensor) -> None:
        """Remember ΔW₀ = Pᵀ Q (Q [r, d_in], P [r, d_out]; scale and λ absorbed) and subtract it from the base's weight.

        Call it at most once per adapter. The model computes the same function if the factors give ΔW = ΔW₀. Raises
        SettingError on a 4-bit base, for which W − ΔW₀ would have to be quantised again, and if the base would not
        compute with W − ΔW₀ (see `layers.check_mergeable`).
        """
        if self.layer is LINEAR_4BIT:
            raise SettingError(
                "init cannot subtract its ΔW from a 4-bit weight, which would have to be quantised again; choose an "
                "init that keeps the base (init=default), or a base that is not quantised"
            )
        assert self.start_Q is None, "an init has already changed the base"
        check_mergeable({"the base": self.base})
        self.start_Q, self.start_P = Q.clone(), P.clone()
        self.base = self.layer.merged(self.base, P.t() @ Q, -1)

    def start(self) -> Tensor | None:
        """ΔW₀ [d_out, d_in], which an init subtracted from the base's weight; None if it did not change the base."""
        return None if self.start_Q is None or self.start_P is None else self.start_P.t() @ self.start_Q

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles, whose forward passes are not recorded, fed or scaled."""
        return {**self.__dict__, "watch": None, "fed": None, "path": None}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Also save the scale, as a 0-dimensional fp64 tensor, without which the factors do not determine ΔW."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "scale"] = torch.tensor(self.scale, dtype=torch.float64)

    @torch.no_grad()
    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        """Also load the scale and ΔW₀, and adopt the saved number of triplets if compaction left fewer.

        If the state dict lacks the base's weight, ΔW₀ is subtracted from this base's own. Parameters stay the same
        objects. For a module without triplets a state dict may lack the factors, because accelerate omits empty
        tensors.
        """
        of_triplets = {prefix + part for part in (*FACTORS, "mask")}
        scale = state_dict.get(prefix + "scale")
        if scale is not None:
            if float(scale) != self.scale:
                self.scale = self.original_scale = float(scale)
            left = {len(state_dict[name]) for name in of_triplets & state_dict.keys()} or {0}
            for part in (*FACTORS, "mask") if len(left) == 1 and min(left) < self.rank else ():
                getattr(self, part).data = getattr(self, part).data[: min(left)].clone()
        saved = [state_dict.get(prefix + part) for part in ("start_Q", "start_P")]
        if saved[0] is not None and saved[1] is not None:
            Q, P = (tensor.to(self.Q) for tensor in saved if tensor is not None)
            own = self.start()
            new = P.t() @ Q
            if prefix + "base.weight" not in state_dict and (own is None or not torch.equal(own, new)):
                if own is not None:
                    self.base = self.layer.merged(self.base, own, 1)
                self.base = self.layer.merged(self.base, new, -1)
            self.start_Q, self.start_P = Q.clone(), P.clone()
        missing, unexpected, errors = lists
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        unexpected[:] = [name for name in unexpected if name != prefix + "scale"]
        if not self.rank:
            missing[:] = [name for name in missing if name not in of_triplets]

    def forward(self, x: Tensor) -> Tensor:
        """x -> base(x) + low-rank path. Training uses all of λ (pruned triplets may train), evaluation λ ⊙ mask."""
        if not self.enabled:
            return self._original(x)
        if not self.rank:
            return self.output(x, None, self.lam)
        drops = self.dropout and self.training and x.is_floating_point()  # ids have nothing to drop
        dropped = F.dropout(x, self.dropout) if drops else None
        if self.watch is not None and self.training:
            self.watch(self, x if dropped is None else dropped)
        return self.output(x, dropped, self.training_lam() if self.training else self.effective_lam())

    def output(self, x: Tensor, dropped: Tensor | None, lam: Tensor) -> Tensor:
        """base(x) + low-rank path with λ = lam. dropped: x after dropout, for the path; None: without dropout."""
        base, Q, P, layer = self.base, self.Q, self.P, self.layer
        if not len(Q):
            return base(x)  # type: ignore[no-any-return]
        if self.fed is not None and self.training:
            return fed_linear(x, layer.matrix(base), base.bias, self.scale, self.fed, dropped)
        if self.fused and (layer is LINEAR or layer is CONV1D or layer is EXPERT) and _is_plain(base, layer):
            return lowrank_linear(x, layer.matrix(base), base.bias, Q, lam, P, self.scale, dropped)
        out: Tensor = base(x)
        return out + layer.delta(base, x if dropped is None else dropped, Q, lam * self.scale, P)

    def _original(self, x: Tensor) -> Tensor:
        """The layer's output before it was adapted."""
        out: Tensor = self.base(x)
        if self.start_Q is None or self.start_P is None:
            return out
        return out + self.layer.delta(self.base, x, self.start_Q, torch.ones_like(self.start_Q[:, 0]), self.start_P)

    @property
    def can_be_fed(self) -> bool:
        """Whether `fed` computes the same as the adapter: a plain, unscaled path on a plain linear, with all factors
        trained."""
        layer = self.layer
        factors = (self.Q, self.lam, self.P) if self.learns_lambda else (self.Q, self.P)
        plain_path = self.parametrisation.module is None and self.path is None
        plain = self.fused and plain_path and (layer is LINEAR or layer is CONV1D)
        return plain and _is_plain(self.base, layer) and all(p.requires_grad for p in factors)

    def extra_repr(self) -> str:
        return f"kind={self.kind}, rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}"


def _is_plain(base: nn.Module, layer: Layer) -> bool:
    """Whether the fused path computes the same as `base`: an exact nn.Linear (or GPT-2's Conv1D, or an expert's matrix)
    with its class's forward, plain frozen tensors and no hooks.

    Called in every forward pass, so it reads the tensors and hooks from the module's own dictionaries.
    """
    if (layer is LINEAR and type(base) is not nn.Linear) or "forward" in base.__dict__:
        return False
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
        return False
    if layer is EXPERT:
        owner, part = storage_of(base)
        return _is_plain_tensor(owner._parameters.get(part)) and (base.bias is None or not base.bias.requires_grad)
    weight, bias = base._parameters.get("weight"), base._parameters.get("bias", base)  # computed ones are missing
    return _is_plain_tensor(weight) and (bias is None or _is_plain_tensor(bias))


def _is_plain_tensor(tensor: Any) -> bool:
    return type(tensor) in (nn.Parameter, Tensor) and not tensor.requires_grad


@torch.no_grad()
def to_singular(adapter: LowRank) -> None:
    """Turn the factors, in place, into the singular value decomposition of their ΔW, largest value first.

    Uses the QR of both factors and the SVD of an r × r matrix. svd: rows of Q and P are orthonormal, and λ = σ / s;
    lora: both contain √(σ / s). The mask is applied to λ first and is meaningless afterwards, so set a new one.
    """
    triplets = singular_triplets(adapter.Q, adapter.effective_lam(), adapter.P)
    factors = adapter.parametrisation.split(*triplets)
    for tensor, value in zip((adapter.Q, adapter.lam, adapter.P), factors, strict=True):
        tensor.copy_(value)


@torch.no_grad()
def singular_triplets(Q: Tensor, lam: Tensor, P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of Pᵀ diag(λ) Q, computed from the factors: (V [k, d_in], σ [k] descending,
    U [k, d_out]) with orthonormal rows of V and U; k is the smallest of r, d_in and d_out."""
    basis_in, R = torch.linalg.qr(Q.t())
    basis_out, S = torch.linalg.qr(P.t())
    U, sigma, Vt = torch.linalg.svd((S * lam) @ R.t(), full_matrices=False)
    return Vt @ basis_in.t(), sigma, U.t() @ basis_out.t()


def original_change(
    scale: float, Q: Tensor, lam: Tensor, P: Tensor, start_Q: Tensor | None, start_P: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(Q, s·λ, P) of ΔW − ΔW₀, the change of the original weight: the triplets of ΔW, then ΔW₀'s with weight −1."""
    if start_Q is None or start_P is None:
        return Q, lam * scale, P
    gain = torch.cat([lam * scale, -torch.ones_like(start_Q[:, 0])])
    return torch.cat([Q, start_Q]), gain, torch.cat([P, start_P])


def wrap(
    model: nn.Module, plan: Mapping[str, tuple[str | Parametrisation, int, float]], dropout: float
) -> dict[str, LowRank]:
    """Freeze `model` and wrap its layers by `plan`, {module name: (kind, rank, scale)}, without filling the factors."""
    keep_gradients(model)
    remember_buffers(model)
    model.requires_grad_(False)
    adapters = {}
    for name, (kind, rank, scale) in plan.items():
        base, parametrisation = layer_at(model, name), find(kind)
        adapter = (parametrisation.module or LowRank)(base, parametrisation, rank, scale, dropout)
        put_layer(model, name, adapter.train(base.training))
        adapters[name] = adapter
    keep_names(model)
    return adapters


def adapters_of(model: nn.Module) -> dict[str, LowRank]:
    """The adapters in `model`, by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}
