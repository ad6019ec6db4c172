"""Algorithm 1 of AdaLoRA (arXiv 2303.10512), run by the optimiser's own hooks.

    loss.backward()                      the true task gradients
    controller.after_backward()          adds the penalty's gradient, once per optimiser step
    clip, optimizer.step()               pre-hook: was after_backward called?
                                         post-hook: observe, proximal step, allocate when due, mask, count
    optimizer.zero_grad()

The three variants differ as follows:

    variant     observes                    penalty         keeps                       scale s
    exact       after the step (new w, g)   γ/2n Σ‖·‖_F     exactly the budget          α / r
    original    after the step (new w, g)   γ/2n Σ‖·‖_F     above the k-th score        α / (r + 1e-5)
    paper       before the step (w, g)      γ Σ‖·‖²_F       exactly the budget          α / r
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adarank import allocators, schedules
from adarank.activations import ActivationRecorder
from adarank.adapters.lowrank import LowRank, to_singular
from adarank.allocators.allocator import Allocator, Request, check_run
from adarank.bank import Bank
from adarank.compaction import CONTROLLER, check_state, drop, unwrap
from adarank.errors import SettingError
from adarank.inits.default import draw
from adarank.penalties import Penalty
from adarank.schedules import Schedule
from adarank.scores.score import Score, as_score

STATE = "adarank"  # the key in optimizer.state_dict()


@dataclass(frozen=True)
class Allocation:
    """The record of one reallocation.

    step: the optimiser step it followed. budget: what was allowed, in `unit` ("triplets" or "parameters"). kept: the
    number of triplets kept, and parameters: their cost Σ (d_in + d_out + 1), both scalar tensors. scores: [triplets],
    and mask: bool [triplets], at that moment. module: int64 [triplets], indices into names.
    """

    step: int
    budget: int
    unit: str
    kept: Tensor
    parameters: Tensor
    scores: Tensor
    mask: Tensor
    module: Tensor
    names: tuple[str, ...]

    @property
    def ranks(self) -> dict[str, int]:
        """{module name: triplets kept}. Reading it synchronises with the device."""
        counts = torch.bincount(self.module[self.mask], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))


class RankController:
    """Scores the triplets of `adapters`, prunes to the schedule's budget and then keeps the final mask.

    adapters: {module name: adapter}, as `adarank.adapt` returns it.
    score: of `adarank.scores`, or a plain function bank -> [triplets] (see `adarank.bank.Bank`).
    schedule: of `adarank.schedules`. None: no allocations; the controller applies the penalty alone and needs no score.
        A schedule that starts below what the adapters hold starts with an even share (pruned_triplets "frozen" or
        "masked").
    allocator: of `adarank.allocators`, or a function `Request` -> mask. None: the variant's own, `threshold` for
        "original" and `global_top` otherwise.
    penalty: of `adarank.penalties`.
    variant: "exact", "original" or "paper"; see the module's table.
    unit: what budgets count, "triplets" or "parameters" (d_in + d_out + 1 per triplet).
    pruned_triplets: "trainable", a pruned triplet's λ is zeroed at each allocation and trains until the next, so that
        it may come back. "frozen", it stays zero, its gradient is dropped and its score is −∞; if an allocator
        activates it, it starts again with fresh factors, zeroed averages and zeroed optimiser state. "masked", λ does
        not change and the forward pass leaves the triplet out. Adapters with constant λ ("lora") need one of the last
        two.
    svd_before_allocation: replaces every module's factors by the singular value decomposition of its ΔW before each
        allocation, without touching optimiser state: for pruning after training (PARA).
    compaction: "off", pruned triplets stay in memory. "final", they are removed once the budget is final.
        "progressive", also earlier, each after `compact_after` consecutive allocations without it (None: never); it
        cannot come back then, and each allocation reads a flag back from the device. Compaction creates new
        Parameters, in the modules and in the optimiser's param_groups: clip those in param_groups, and wrap the model
        in DDP again.
    seed: for allocators that draw random numbers, and for fresh factors.

    Creating a controller moves the factors into a shared buffer and changes no value. `attach` changes the adapters:
    the scale of variant="original", the initial mask, and what their forward passes record. Raises SettingError for
    settings that cannot be used.

    Example:
        >>> import adarank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> adapters = adarank.adapt(model, rank=2, targets=["0", "2"])
        >>> controller = adarank.RankController(
        ...     adapters,
        ...     score=adarank.scores.adalora(),
        ...     schedule=adarank.schedules.cubic(initial=4, final=2, t_i=2, t_f=4, total=20),
        ...     penalty=adarank.penalties.orthogonality(),
        ... )
        >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        >>> _ = controller.attach(optimizer)
        >>> for _ in range(20):
        ...     model(torch.randn(16, 8)).square().mean().backward()
        ...     controller.after_backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> sum(adarank.ranks(model).values())
        2
    """

    def __init__(
        self,
        adapters: Mapping[str, LowRank],
        *,
        score: Score | Callable[[Bank], Tensor] | None = None,
        schedule: Schedule | None = None,
        allocator: Any = None,
        penalty: Penalty | None = None,
        variant: str = "exact",
        unit: str = "triplets",
        pruned_triplets: str = "trainable",
        svd_before_allocation: bool = False,
        compaction: str = "off",
        compact_after: int | None = 5,
        seed: int = 0,
    ) -> None:
        for name, value, valid in (
            ("variant", variant, ("exact", "original", "paper")),
            ("unit", unit, ("triplets", "parameters")),
            ("pruned_triplets", pruned_triplets, ("trainable", "frozen", "masked")),
            ("compaction", compaction, ("off", "final", "progressive")),
        ):
            if value not in valid:
                raise SettingError(f"{name} must be one of {', '.join(valid)} (got {value!r})")
        if compact_after is not None and compact_after < 1:
            raise SettingError(f"compact_after must be at least 1, or null for never (got {compact_after})")
        if score is None and schedule is not None:
            raise SettingError("score must be given with a schedule, such as adarank.scores.adalora() (got None)")
        self.bank = Bank(adapters)
        self.bank.frozen = pruned_triplets == "frozen"
        self.unit = unit
        self.schedule = schedules.never(int(self.cost.sum())) if schedule is None else schedule
        self.score = None if score is None else as_score(score)
        self.penalty = penalty
        self.variant, self.pruned_triplets = variant, pruned_triplets
        self.svd_before_allocation = svd_before_allocation
        self.compaction, self.compact_after = compaction, compact_after
        self.allocator = allocator or (allocators.threshold() if variant == "original" else allocators.global_top())
        self._check_pieces(allocates=schedule is not None)
        self.generator = torch.Generator(device=self.bank.weight.device).manual_seed(seed)
        self.buffers = self.score.init(self.bank) if self.score is not None else {}
        self.pruned_for = torch.zeros_like(self.bank.module)  # consecutive allocations that left a triplet out
        self.remaining = torch.ones_like(self.bank.mask)  # over the triplets at creation: not compacted away
        self.step = 0
        self.last_allocation: Allocation | None = None
        self._ready = False  # after_backward was called for the current gradients
        self._dropped = False  # those gradients were dropped since, and a new backward pass began
        self._prepared = False  # prepare_adapters was called
        self._optimizer: Optimizer | None = None
        self._recorder: ActivationRecorder | None = None

    def _check_pieces(self, allocates: bool) -> None:
        """Raise SettingError if schedule, allocator, penalty and adapters do not go together."""
        adapters, schedule, unit = self.bank.adapters, self.schedule, self.unit
        total = int(self.cost.sum())
        constant_lambda = not all(a.learns_lambda for a in adapters)
        if self.pruned_triplets == "trainable" and schedule.initial != total:
            raise SettingError(
                f"the schedule must start at {total} {unit}, all that the adapters hold, with "
                f"pruned_triplets='trainable' (got {schedule.initial})"
            )
        if (largest := max(schedule.initial, schedule.final)) > total:
            raise SettingError(f"the schedule must stay within the adapters' {total} {unit} (got {largest})")
        if allocates and self.pruned_triplets == "trainable" and constant_lambda:
            raise SettingError(
                "pruned_triplets must be frozen or masked with adapter='lora', whose λ is constant (got 'trainable')"
            )
        if schedule.initial < total and any(a.start_Q is not None for a in adapters):
            raise SettingError(
                f"the schedule must start at all {total} {unit} (got {schedule.initial}), because the init subtracted "
                "all of them from the base's weight; with an init that keeps the base it may start below"
            )
        if self.penalty is not None and self.penalty.proximal is not None and constant_lambda:
            raise SettingError(
                "the penalty's proximal step changes λ and needs adapters whose λ is trained, such as adapter='svd' "
                "(got adapter='lora', whose λ is constant)"
            )
        if allocates and isinstance(self.allocator, Allocator):
            costs = [a.in_features + a.out_features + 1 if unit == "parameters" else 1 for a in adapters]
            check_run(self.allocator, unit, [a.rank for a in adapters], costs, schedule.initial, schedule.final)

    @property
    def cost(self) -> Tensor:
        """What each triplet costs in the budget's unit, int64 [triplets]."""
        return self.bank.cost if self.unit == "parameters" else torch.ones_like(self.bank.cost)

    def prepare_adapters(self) -> None:
        """Set up the adapters: scale, initial mask, masked forward passes, recorded activations.

        `attach` calls it; call it earlier to read scales and ranks before there is an optimiser. A second call does
        nothing. The scale of variant="original" is α/(r + 1e-5), with α = s·r from the adapter's s = α/r; an adapter
        that has it already, from another controller, keeps it.
        """
        if self._prepared:
            return
        self._prepared = True
        for adapter in self.bank.adapters:
            adapter.masked = self.pruned_triplets == "masked"
            adapter.watch = None
            if self.variant == "original" and adapter.scale != adapter.original_scale:
                adapter.scale *= adapter.rank / (adapter.rank + 1e-5)
                adapter.original_scale = adapter.scale
        if self.score is not None and self.score.activation is not None:
            self._recorder = ActivationRecorder(self.bank, self.score.activation)
        if self.schedule.initial < int(self.cost.sum()):
            self._sync_views()  # the model may have moved since the controller was created
            scores = torch.zeros(self.bank.triplets, device=self.bank.mask.device)
            self._set_mask(allocators.uniform()(self._request(scores, self.schedule.initial)))

    def attach(self, optimizer: Any) -> "RankController":
        """Prepare the adapters and register hooks on `optimizer`, or on the one inside accelerate's wrapper.

        To resume a run, attach first and then call `optimizer.load_state_dict`. Returns the controller. Raises
        RuntimeError if either is attached already, or if the optimiser lacks a parameter of an adapter.
        """
        optimizer = unwrap(optimizer)
        if self._optimizer is not None:
            raise RuntimeError("this RankController is attached already; create a new one for another optimiser")
        optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, adapter in zip(self.bank.names, self.bank.adapters, strict=True):
            for part in ("Q", "lam", "P"):
                tensor = getattr(adapter, part)
                if isinstance(tensor, nn.Parameter) and id(tensor) not in optimized:
                    raise RuntimeError(
                        f"the optimiser lacks {name}.{part}; build it after adarank.adapt, from all parameters of the "
                        "model with requires_grad"
                    )
        if getattr(optimizer, CONTROLLER, None) is not None:
            raise RuntimeError("another RankController is attached to this optimiser; use one controller per optimiser")
        self.prepare_adapters()
        self._optimizer = optimizer
        setattr(optimizer, CONTROLLER, self)
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        optimizer.register_state_dict_post_hook(self._save)
        if type(optimizer).load_state_dict is Optimizer.load_state_dict:
            optimizer.register_load_state_dict_pre_hook(self._load)
        else:  # bitsandbytes overrides it and calls no hooks
            load_state_dict = optimizer.load_state_dict

            def load(state: dict[str, Any]) -> None:
                self._load(optimizer, state)
                load_state_dict(state)

            optimizer.load_state_dict = load
        self._watch()
        return self

    def _watch(self) -> None:
        """Detect backward passes by λ's gradient, zero only if gradients were dropped (P's also is while λ = 0)."""
        for adapter in self.bank.adapters:
            watched = adapter.lam if adapter.learns_lambda else adapter.P
            watched.register_hook(lambda _, p=watched: self._notice(p))

    def _notice(self, watched: Tensor) -> None:
        """Before a gradient is accumulated: were the last ones dropped without a step (after an overflow)?

        Reads a value back from the device, but only then and if after_backward was called too early.
        """
        if self._ready and not self._dropped:
            self._dropped = watched.grad is None or not bool(watched.grad.any())

    def after_backward(self, grad_scale: float | Tensor | None = None) -> None:
        """Add the penalty's gradient. Call it once per optimiser step, after the last backward pass, before clipping.

        grad_scale: of gradients that are still scaled. Raises RuntimeError before `attach`, or twice for one step.
        """
        if self._optimizer is None:
            raise RuntimeError("the RankController is not attached; call controller.attach(optimizer) first")
        if self._ready and not self._dropped:
            raise RuntimeError(
                "controller.after_backward() was called twice for one optimiser step; call it once, after the last "
                "backward pass of the accumulation and before clipping"
            )
        self._sync_views()
        if self.penalty is not None and self.penalty.add is not None:
            self.penalty.add(self.bank, grad_scale, self.variant == "paper")
        if self.pruned_triplets == "frozen":
            self.bank.lam_grad.masked_fill_(~self.bank.mask, 0.0)
        self._ready, self._dropped = True, False

    def _sync_views(self) -> None:
        """Make weights and gradients views of the bank again, and move the averages with a model that was moved."""
        self.bank.sync_views()
        weight, dtype = self.bank.weight, self.bank.dtype
        if any((b.device, b.dtype) != (weight.device, dtype) for b in self.buffers.values()):
            self.buffers = {name: b.to(weight.device, dtype) for name, b in self.buffers.items()}
            self.pruned_for, self.remaining = self.pruned_for.to(weight.device), self.remaining.to(weight.device)
            self.generator = torch.Generator(device=weight.device).manual_seed(self.generator.initial_seed())

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if not self._ready:
            raise RuntimeError(
                "optimizer.step() was called without controller.after_backward(); call it once per optimiser step, "
                "after the last backward pass and before clipping"
            )
        if self.variant == "paper":
            if getattr(optimizer, "grad_scale", None) is not None:
                raise RuntimeError(
                    'variant="paper" observes gradients before the step, while they are still scaled; call '
                    "scaler.unscale_(optimizer) before controller.after_backward()"
                )
            self._observe(optimizer)

    def _observe(self, optimizer: Optimizer) -> None:
        """Update the score's averages."""
        if self.score is None or self.step >= self.schedule.settled:
            return
        if self._recorder is not None:
            self.bank.activation = self._recorder.mean()
        observe = partial(self.score.observe, self.buffers, self.bank)
        _update_unless_overflow(optimizer, list(self.buffers.values()), observe)

    def _proximal(self, optimizer: Optimizer) -> None:
        if self.penalty is None or self.penalty.proximal is None:
            return
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        trained = next(p for a in self.bank.adapters for p in (a.lam, a.Q) if isinstance(p, nn.Parameter))
        step = partial(self.penalty.proximal, self.bank, rates[id(trained)])
        _update_unless_overflow(optimizer, [self.bank.weight], step)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._ready = False
        if self.pruned_triplets == "frozen":
            self.bank.zero_pruned()  # momentum moved λ; scores see it as the forward pass will
        if self.variant != "paper":
            self._observe(optimizer)
        self._proximal(optimizer)
        last = self.last_allocation
        final = last is not None and last.step >= self.schedule.settled
        due = self.schedule.due(self.step)
        if due and not final:
            self._allocate()
        if self.pruned_triplets == "frozen" or (due and self.pruned_triplets == "trainable"):
            self.bank.zero_pruned()
        if due and not final and self.compaction != "off":
            if self.step >= self.schedule.settled:
                self.compact()
            elif self.compaction == "progressive" and self.compact_after is not None:
                unused = self.pruned_for >= self.compact_after
                if unused.any():
                    self._drop(~unused)
        self.step += 1

    def _allocate(self) -> None:
        assert self.score is not None, "checked at creation: a schedule comes with a score"
        bank, budget = self.bank, self.schedule.budget(self.step)
        if self.svd_before_allocation:
            for adapter in bank.adapters:
                to_singular(adapter)
        scores = self.score.score(self.buffers, bank)
        ranked = scores.masked_fill(~bank.mask, -torch.inf) if self.pruned_triplets == "frozen" else scores
        self._set_mask(self.allocator(self._request(ranked, budget)))
        mask = bank.mask.clone()
        self.pruned_for = torch.where(mask, 0, self.pruned_for + 1)
        cost = torch.where(mask, bank.cost, 0).sum()  # not cost[mask]: its size would be read back from the device
        self.last_allocation = self._record(self.step, mask, scores=scores, module=bank.module, parameters=cost)

    def _request(self, scores: Tensor, budget: int) -> Request:
        bank, begin, settled = self.bank, self.schedule.begin, self.schedule.settled
        progress = min(max((self.step - begin) / max(settled - begin, 1), 0.0), 1.0)
        return Request(scores, bank.mask, budget, self.cost, bank.module, self.generator, bank.names, progress)

    @torch.no_grad()
    def _set_mask(self, mask: Tensor) -> None:
        """Apply `mask`. If pruned triplets are frozen, those that it activates start again."""
        activated = mask & ~self.bank.mask
        self.bank.mask.copy_(mask)
        if self.pruned_triplets == "frozen":
            self._restart(activated)
            self.bank.zero_pruned()

    def _restart(self, triplets: Tensor) -> None:
        """Draw fresh factors, as the default init does, and zero averages and optimiser state of `triplets` (bool)."""
        bank = self.bank
        parameters = bank.broadcast_to_parameters(triplets)
        drawn = bank.flatten(draw(bank.unflatten(bank.weight), bank.adapters, self.generator))
        bank.weight.copy_(torch.where(parameters, drawn, bank.weight))
        for buffer in self.buffers.values():
            if buffer.ndim:
                buffer.masked_fill_(triplets if len(buffer) == bank.triplets else parameters, 0.0)
        if self._optimizer is None:
            return
        check_state(self._optimizer, [getattr(a, part) for a in bank.adapters for part in ("Q", "lam", "P")], "growth")
        for (part, i), rows in bank.unflatten(parameters).items():
            for value in self._optimizer.state.get(getattr(bank.adapters[i], part), {}).values():
                if isinstance(value, Tensor) and value.shape == rows.shape:
                    value.masked_fill_(rows, 0.0)

    def _record(self, step: int, mask: Tensor, **tensors: Tensor) -> Allocation:
        budget, names = self.schedule.budget(step), tuple(self.bank.names)
        return Allocation(step, budget, self.unit, mask.sum(), mask=mask, names=names, **tensors)

    def compact(self) -> None:
        """Remove all pruned triplets, including their optimiser state and averages (see `adarank.compact`)."""
        self._drop(self.bank.mask.clone())

    def _drop(self, keep: Tensor) -> None:
        """Remove every triplet for which `keep` (bool [triplets]) is false."""
        bank = self.bank
        keeps = keep.split([a.rank for a in bank.adapters])
        per_parameter = {
            name: bank.unflatten(b) for name, b in self.buffers.items() if b.numel() == bank.weight.numel()
        }
        for name, buffer in self.buffers.items():
            if buffer.ndim and name not in per_parameter:
                self.buffers[name] = buffer[keep]
        indices = drop(bank.adapters, keeps, self._optimizer)
        bank.allocate()
        for name, pieces in per_parameter.items():
            self.buffers[name] = bank.flatten({(part, i): t[indices[i]] for (part, i), t in pieces.items()})
        if self._recorder is not None:
            self._recorder.reset()
        self.pruned_for = self.pruned_for[keep]
        self.remaining[self.remaining.clone()] = keep
        self._watch()

    def _save(self, _: Optimizer, state: dict[str, Any]) -> None:
        state[STATE] = {
            "step": self.step,
            "remaining": self.remaining.clone(),
            "mask": self.bank.mask.clone(),
            "pruned_for": self.pruned_for.clone(),
            "generator": self.generator.get_state(),
            **{f"score.{name}": buffer.clone() for name, buffer in self.buffers.items()},
        }
        if (last := self.last_allocation) is not None:
            kept = ("step", "scores", "mask", "module", "parameters")
            state[STATE]["last"] = {name: getattr(last, name) for name in kept}

    def _load(self, _: Optimizer, state: dict[str, Any]) -> None:
        """Restore the controller from an optimiser's state dict, which is checked as a whole before anything changes.

        Triplets that the saved run had removed are removed here first: load the optimiser, then the model.
        """
        saved = state.get(STATE)
        if saved is None:
            raise RuntimeError("the optimiser state to load has no RankController; it was saved without one attached")
        names = {f"score.{name}" for name in self.buffers}
        if missing := sorted(names - saved.keys()):
            raise RuntimeError(f"the saved controller has no {missing[0]}; it was saved with another score")
        remaining = saved["remaining"].to(self.remaining.device)
        if remaining.shape != self.remaining.shape or not torch.equal(remaining & self.remaining, remaining):
            raise RuntimeError(
                f"the saved controller has {int(remaining.sum())} of {len(remaining)} triplets left, this one has "
                f"{int(self.remaining.sum())} of {len(self.remaining)}; it was saved with other adapters"
            )
        self.bank.sync_views()
        if not torch.equal(remaining, self.remaining):
            self._drop(remaining[self.remaining])
        self.bank.mask.copy_(saved["mask"])
        self.pruned_for.copy_(saved["pruned_for"])
        for name, buffer in self.buffers.items():
            buffer.copy_(saved[f"score.{name}"])
        self.generator.set_state(saved["generator"].cpu())
        self.step = saved["step"]
        self._ready = self._dropped = False
        self.last_allocation = None
        if (last := saved.get("last")) is not None:
            moved = {k: v.to(self.remaining.device) for k, v in last.items() if isinstance(v, Tensor)}
            self.last_allocation = self._record(last["step"], **moved)


@torch.no_grad()
def _update_unless_overflow(optimizer: Optimizer, tensors: list[Tensor], update: Callable[[], None]) -> None:
    """Call `update`, which changes `tensors` in place, and undo it if the step overflowed.

    For such a step a gradient scaler calls the hooks of *fused* optimisers only, and leaves its flag on the device in
    `found_inf` (other steps have unscaled gradients by then). The step counts: reading the flag would synchronise.
    """
    overflow: Any = getattr(optimizer, "found_inf", None)
    before = [] if overflow is None else [tensor.clone() for tensor in tensors]
    update()
    for old, tensor in zip(before, tensors, strict=False):
        tensor.copy_(torch.where(overflow > 0, old, tensor))
