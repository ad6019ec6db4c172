"""Algorithm 1 of AdaLoRA (arXiv 2303.10512), run by the optimiser's own hooks.

    loss.backward()                      the true task gradients
    controller.after_backward()          adds the penalty's gradient, once per optimiser step
    clip, optimizer.step()               pre-hook: was after_backward called, here or in the step's closure?
                                         post-hook: observe, proximal step, allocate when due, mask, count
    optimizer.zero_grad()

The three variants differ as follows:

    variant     observes                    penalty         keeps                       scale s
    exact       after the step (new w, g)   γ/2n Σ‖·‖_F     exactly the budget          α / r
    original    after the step (new w, g)   γ/2n Σ‖·‖_F     above the k-th score        α / (r + 1e-5)
    paper       before the step (w, g)      γ Σ‖·‖²_F       exactly the budget          α / r
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adarank import allocators, schedules
from adarank.activations import ActivationRecorder
from adarank.adapters.lowrank import FACTORS, LowRank, to_singular
from adarank.adapters.magnitude import AFTER_PRUNING, Magnitude
from adarank.allocators.allocator import Allocation, Allocator, Request, check_progressive, check_run
from adarank.bank import Bank
from adarank.compaction import drop
from adarank.errors import SettingError, number, whole_number
from adarank.inits.default import draw
from adarank.optimizers import (
    CONTROLLER,
    StepOrder,
    before_load,
    check_optimizers,
    check_state,
    unwrap,
    update_unless_overflow,
)
from adarank.penalties import Penalty
from adarank.schedules import Schedule
from adarank.scores.score import Score, as_score

STATE = "adarank"  # the key in optimizer.state_dict()


class RankController:
    """Scores the triplets of `adapters`, prunes to the schedule's budget and then keeps the final mask.

    adapters: {module name: adapter}, as `adarank.adapt` returns it.
    score: from `adarank.scores`, or a plain function bank -> [triplets] (see `adarank.bank.Bank`).
    schedule: from `adarank.schedules`. None: no allocations; the controller applies the penalty alone and needs no
        score. If the initial budget is below the adapters' total, it is divided evenly between the modules; this needs
        pruned_triplets "frozen" or "masked".
    allocator: from `adarank.allocators`, or a function `Request` -> mask. None: the variant's own, `threshold` for
        "original" and `global_top` otherwise.
    penalty: from `adarank.penalties`.
    variant: "exact", "original" or "paper"; see the table in `adarank.controller`.
    unit: what budgets count, "triplets" or "parameters" (d_in + d_out + 1 per triplet).
    pruned_triplets: "trainable": a pruned triplet's λ is zeroed at each allocation and trains until the next, so that
        the triplet may come back. "frozen": λ stays zero, its gradient is dropped and the triplet's score is −∞; if an
        allocator activates the triplet, it restarts with fresh factors, zeroed averages and zeroed optimiser state.
        "masked": λ does not change, and the forward pass leaves the triplet out. Adapters with constant λ ("lora") need
        "frozen" or "masked".
    svd_before_allocation: replaces every module's factors with the singular value decomposition of its ΔW before each
        allocation, but leaves optimiser state unchanged. For pruning after training (PARA).
    magnitude_after_pruning: what an allocation does to the magnitudes m of adapters that have them ("dora",
        "svd_dora"). "keep": nothing; "rescale": keeps m / ‖W + ΔW‖; "reset": sets m = ‖W + ΔW‖ (see
        `adarank.adapters.magnitude`).
    compaction: "off": pruned triplets stay in memory. "final": they are removed once the budget is final.
        "progressive": also earlier, as soon as `compact_after` consecutive allocations have left a triplet out (None:
        never); it cannot come back then, so that neither the budget nor the allocator may grow, and each allocation
        reads a flag back from the device. Compaction creates new Parameters, in the modules and in the optimiser's
        param_groups: clip those in param_groups, and wrap the model in DDP again.
    seed: for allocators that draw random numbers, and for fresh factors.

    Creating a controller moves the factors into a shared buffer and changes no value. `attach` changes the adapters:
    the scale of variant="original", the initial mask, and what their forward passes record. Raises SettingError for
    settings that cannot be used.

    A factor that does not require a gradient never changes, whatever penalty, allocator or `pruned_triplets` is used.
    An adapter with a frozen λ (for "lora", with frozen Q and P) keeps its mask: its active triplets count in the
    budget, and the allocator divides the rest among the other adapters. `requires_grad_` may be called at any time.
    `attach` and `after_backward` raise SettingError if the budget cannot hold the frozen adapters.

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
        magnitude_after_pruning: str = "keep",
        compaction: str = "off",
        compact_after: int | None = 5,
        seed: int = 0,
    ) -> None:
        for name, value, valid in (
            ("variant", variant, ("exact", "original", "paper")),
            ("unit", unit, ("triplets", "parameters")),
            ("pruned_triplets", pruned_triplets, ("trainable", "frozen", "masked")),
            ("compaction", compaction, ("off", "final", "progressive")),
            ("magnitude_after_pruning", magnitude_after_pruning, AFTER_PRUNING),
        ):
            if value not in valid:
                raise SettingError(f"{name} must be one of {', '.join(valid)} (got {value!r})")
        if compact_after is not None:
            at_least_1 = "a whole number of at least 1, or null for never"
            compact_after = number("compact_after", compact_after, at_least_1, lambda n: n >= 1, whole=True)
        seed = whole_number("seed", seed, 0)
        if score is None and schedule is not None:
            raise SettingError("score must be given with a schedule, such as adarank.scores.adalora() (got None)")
        self.bank = Bank(adapters)
        self.bank.frozen = pruned_triplets == "frozen"
        self.unit = unit
        self.schedule = schedules.never(int(self.cost.sum())) if schedule is None else schedule
        self.score = None if score is None else as_score(score)
        self.penalty = penalty
        self.variant, self.pruned_triplets = variant, pruned_triplets
        self.svd_before_allocation, self.magnitude_after_pruning = svd_before_allocation, magnitude_after_pruning
        self.compaction, self.compact_after = compaction, compact_after
        self.allocator = allocator or (allocators.threshold() if variant == "original" else allocators.global_top())
        self._check_pieces(allocates=schedule is not None)
        self.generator = torch.Generator(device=self.bank.weight.device).manual_seed(seed)
        self.buffers = self.score.init(self.bank) if self.score is not None else {}
        self.pruned_for = torch.zeros_like(self.bank.module)  # consecutive allocations that left a triplet out
        self.finished = torch.zeros_like(self.bank.mask)  # triplets that no longer train (see `Allocator.finishes`)
        self.remaining = torch.ones_like(self.bank.mask)  # over the triplets at creation: not compacted away
        self.step = 0
        self.last_allocation: Allocation | None = None
        self._prepared = False  # prepare_adapters was called
        self._initial: tuple[Tensor, Tensor] | None = None  # before training: the weights before and after `attach`
        self._begun = False  # after_backward was called once
        self._state_checked = False  # the optimisers' state was checked after a step
        self._steps = StepOrder()  # of no optimiser yet
        self._fixed: Tensor | None = None  # the bank's `fixed` that the next two were derived from
        self._free: Tensor | None = None  # int64, the triplets that allocators decide on; None: all
        self._held = 0  # the cost of the other active ones
        self._before: Tensor | None = None  # the weights at after_backward, if triplets may finish
        self._recorder: ActivationRecorder | None = None
        self.holds_decisions = False  # a captured step calls `decide` itself, outside its graphs
        self.smallest_removal = 0.0  # the smallest share of the triplets that progressive compaction removes

    def _check_pieces(self, allocates: bool) -> None:
        """Raise SettingError if schedule, allocator, penalty and adapters cannot be combined."""
        adapters, schedule, unit = self.bank.adapters, self.schedule, self.unit
        total = int(self.cost.sum())
        if frozen := next((a.kind for a in adapters if not isinstance(a.Q, nn.Parameter)), None):
            raise SettingError(
                f"a RankController has nothing to allocate with adapter={frozen!r}, whose factors are frozen and "
                "shared: a triplet costs one trained number; train it at a fixed rank, without allocator and penalty"
            )
        constant = next((a.kind for a in adapters if not a.learns_lambda), None)
        if self.penalty is not None and self.penalty.proximal is not None and constant:
            raise SettingError(
                "the penalty's proximal step changes λ and needs adapters whose λ is trained, such as adapter='svd' "
                f"(got adapter={constant!r}, whose λ is constant)"
            )
        if self.pruned_triplets == "trainable" and schedule.initial != total:
            raise SettingError(
                f"the schedule must start at {total} {unit}, all that the adapters hold, with "
                f"pruned_triplets='trainable' (got {schedule.initial})"
            )
        if (largest := max(schedule.initial, schedule.final)) > total:
            raise SettingError(f"the schedule must stay within the adapters' {total} {unit} (got {largest})")
        if allocates and self.pruned_triplets == "trainable" and constant:
            raise SettingError(
                f"pruned_triplets must be frozen or masked with adapter={constant!r}, whose λ is constant (got "
                "'trainable')"
            )
        if schedule.initial < total and any(a.start_Q is not None for a in adapters):
            raise SettingError(
                f"the schedule must start at all {total} {unit} (got {schedule.initial}), because the init subtracted "
                "all of them from the base's weight; with an init that keeps the base it may start below"
            )
        if self.magnitude_after_pruning != "keep" and not any(isinstance(a, Magnitude) for a in adapters):
            raise SettingError(
                "magnitude_after_pruning must be keep with adapters that have no magnitude; adapter='dora' and "
                f"adapter='svd_dora' have one (got {self.magnitude_after_pruning!r})"
            )
        if self.penalty is not None and self.penalty.fills_pruned and self.pruned_triplets != "trainable":
            raise SettingError(
                "pruned_triplets must be trainable with this penalty, which puts new directions into pruned triplets "
                f"(got {self.pruned_triplets!r})"
            )
        if allocates:
            check_progressive(self.compaction, self.compact_after, self.allocator, schedule.initial, schedule.final)
            self._check_allocator(adapters, schedule.initial, schedule.final)

    def _check_allocator(self, adapters: Sequence[LowRank], initial: int, final: int) -> None:
        """Raise SettingError if the allocator cannot keep budgets from `initial` to `final` over `adapters`."""
        if isinstance(self.allocator, Allocator):
            in_parameters = self.unit == "parameters"
            costs = [a.in_features + a.out_features + 1 if in_parameters else 1 for a in adapters]
            check_run(self.allocator, self.unit, [a.rank for a in adapters], costs, initial, final)

    @property
    def finishes(self) -> bool:
        """Whether triplets may stop training."""
        return getattr(self.allocator, "finishes", False)

    @property
    def cost(self) -> Tensor:
        """What each triplet costs in the budget's unit, int64 [triplets]."""
        return self.bank.cost if self.unit == "parameters" else torch.ones_like(self.bank.cost)

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimisers that it is attached to."""
        return self._steps.optimizers

    def forget_gradients(self) -> None:
        """Forget the last `after_backward` without a step, so that it may be called again."""
        self._steps.reset()

    @property
    def observes(self) -> bool:
        """Whether the score observes the next step."""
        return self.score is not None and self.step < self.schedule.settled

    @property
    def is_settled(self) -> bool:
        """Whether the ranks are final."""
        if self.schedule.initial == self.schedule.final == int(self.cost.sum()):
            return True
        return self.last_allocation is not None and self.last_allocation.step >= self.schedule.settled

    def budget_now(self) -> dict[str, float]:
        """{"budget", "mean_rank"}, for a log; empty without a score. Synchronises with the device."""
        if self.score is None:
            return {}
        last, modules = self.last_allocation, len(self.bank.names)
        if last is None:
            return {"budget": self.schedule.initial, "mean_rank": int(self.bank.mask.sum()) / modules}
        return {"budget": last.budget, "mean_rank": last.kept.item() / modules}

    @torch.no_grad()
    def observation(self) -> Allocation:
        """The scores and the mask after the last step, in the form of an allocation. Changes nothing.

        Raises RuntimeError if the controller has no score.
        """
        if self.score is None:
            raise RuntimeError("this RankController has no score to observe; create it with one")
        bank = self.bank
        mask, scores = bank.mask.clone(), self.score.score(self.buffers, bank)
        cost = torch.where(mask, bank.cost, 0).sum()
        made = self._record(self.step - 1, mask, scores=scores, module=bank.module, parameters=cost)
        return replace(made, observed=True)

    def prepare_adapters(self) -> None:
        """Set up the adapters: scale, initial mask, masked forward passes, recorded activations.

        `attach` calls it; call it earlier to read scales and ranks before there is an optimiser. A second call does
        nothing. The scale of variant="original" is α/(r + 1e-5), with α = s·r from the adapter's s = α/r; an adapter
        that has it already, from another controller, keeps it, and a loaded one keeps the scale it was saved with.
        """
        if self._prepared:
            return
        self.sync_views()  # the model may have moved since the controller was created
        for adapter in self.bank.adapters:
            adapter.zero_grad()  # of the views; the first backward pass shows which adapters it reaches
        self._hold_frozen()
        self._prepared = True
        for adapter in self.bank.adapters:
            adapter.watch = None
            adapter.path = self.buffers.get("path")
            if self.variant == "original" and adapter.scale != adapter.original_scale:
                adapter.scale *= adapter.rank / (adapter.rank + 1e-5)
                adapter.original_scale = adapter.scale
        if self.score is not None and self.score.activation is not None:
            self._recorder = ActivationRecorder(self.bank, self.score.activation)
        if self.schedule.initial < int(self.cost.sum()):
            scores = torch.zeros(self.bank.triplets, device=self.bank.mask.device)
            before = self.bank.weight.clone()
            self._set_mask(self._new_mask(allocators.uniform(), scores, self.schedule.initial))
            if self.pruned_triplets == "frozen":
                self._initial = before, self.bank.weight.clone()

    def attach(self, *optimizers: Any) -> "RankController":
        """Prepare the adapters and register hooks on the optimiser, or on the one inside accelerate's wrapper.

        Several optimisers may divide the adapters' parameters among themselves; each must then step once after every
        `after_backward`, and zero_grad must follow the last of these steps. To resume a run, attach first and then call
        `load_state_dict` of each optimiser, whose state holds the controller's. Returns the controller. Raises
        RuntimeError if the controller or an optimiser is attached already, or if an adapter's parameter is in several
        optimisers or, unless it is frozen, in none.
        """
        if self._steps.optimizers:
            raise RuntimeError("this RankController is attached already; create a new one for another optimiser")
        unwrapped = [unwrap(optimizer) for optimizer in optimizers]
        factors = [(f"{name}.{part}", getattr(a, part)) for name, a in self._named_adapters() for part in FACTORS]
        check_optimizers(unwrapped, {name: p for name, p in factors if isinstance(p, nn.Parameter)})
        self.prepare_adapters()
        self._steps = StepOrder(unwrapped)
        for optimizer in unwrapped:
            setattr(optimizer, CONTROLLER, self)
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_step)
            optimizer.register_state_dict_post_hook(self._save)
            before_load(optimizer, self._load)
        self._watch()
        return self

    def _named_adapters(self) -> list[tuple[str, LowRank]]:
        return list(zip(self.bank.names, self.bank.adapters, strict=True))

    def _watch(self) -> None:
        """Detect backward passes by λ's gradient, zero only if gradients were dropped (P's is also zero while λ is)."""
        for adapter in self.bank.adapters:
            watched = adapter.lam if adapter.learns_lambda else adapter.P
            trains = watched.requires_grad
            watched.requires_grad_(True)  # a frozen one takes no hook, and it may train later
            watched.register_hook(lambda _, p=watched: self._steps.notice(p))
            watched.requires_grad_(trains)

    def after_backward(self, grad_scale: float | Tensor | None = None) -> None:
        """Add the penalty's gradient. Call it once per optimiser step, after the last backward pass, before clipping.

        If optimizer.step is given a closure, call it inside the closure. grad_scale: the scale of gradients that are
        still scaled. The first call warns about adapters that no gradient has reached. Raises RuntimeError if called
        before `attach` or twice for one step, or if only some of several optimisers have stepped since the last call.
        """
        self._steps.check_gradients()
        if not self._begun and self.step == 0:
            self._warn_of_unreached()
        self._begun, self._initial = True, None
        self.sync_views()
        if self.bank.fixed is not self._fixed:
            self._hold_frozen()
        ended = self.penalty is not None and self.penalty.ends and self.step >= self.schedule.settled
        if self.penalty is not None and self.penalty.add is not None and not ended:
            self.penalty.add(self.bank, grad_scale, self.variant == "paper")
        if self.pruned_triplets == "frozen":
            self.bank.lam_grad.masked_fill_(~self.bank.mask, 0.0)
        if self.bank.fixed is not None:
            self.bank.grad.masked_fill_(self.bank.fixed, 0.0)
        if self.finishes:
            self.bank.grad.masked_fill_(self.bank.broadcast_to_parameters(self.finished), 0.0)
            self._before = self.bank.weight.clone()
        self._steps.gradients_ready()

    def _warn_of_unreached(self) -> None:
        """After the first backward pass: a model that reads a weight directly bypasses its adapter."""
        unreached = []
        for name, adapter in self._named_adapters():
            trained = [p for p in adapter.parameters(recurse=False) if p.requires_grad and p.numel()]
            if trained and all(p.grad is None for p in trained):
                unreached.append(name)
        if unreached:
            warnings.warn(
                f"the first backward pass did not reach the adapters of {', '.join(unreached)}; unless the model skips "
                "them only for some rows, they will not be trained: leave them out of the targets",
                stacklevel=3,
            )

    def sync_views(self) -> None:
        """Make weights and gradients views of the bank again, and move the averages with a model that was moved."""
        self.bank.sync_views()
        weight, dtype = self.bank.weight, self.bank.dtype
        if any((b.device, b.dtype) != (weight.device, dtype) for b in self.buffers.values()):
            self.buffers = {name: b.to(weight.device, dtype) for name, b in self.buffers.items()}
            for adapter in self.bank.adapters:
                adapter.path = self.buffers.get("path")
            for name in ("pruned_for", "finished", "remaining"):
                setattr(self, name, getattr(self, name).to(weight.device))
            self.generator = torch.Generator(device=weight.device).manual_seed(self.generator.initial_seed())

    def _hold_frozen(self) -> None:
        """Leave frozen adapters out of what allocators decide on. Raises SettingError if the budget cannot hold them.

        Their training passes compute with λ ⊙ mask, as evaluation does, because a pruned triplet's λ may be non-zero
        and can no longer be zeroed.
        """
        bank, schedule, allocator = self.bank, self.schedule, self.allocator
        frozen = [not any(p.requires_grad for p in ([a.lam] if a.learns_lambda else [a.Q, a.P])) for a in bank.adapters]
        free, held = None, 0
        if any(frozen):
            is_held = torch.tensor(frozen, device=bank.module.device)[bank.module]
            free, held = (~is_held).nonzero().squeeze(1), int(self.cost[is_held & bank.mask].sum())
            begin = schedule.budget(self.step)
            if held > (lowest := min(begin, schedule.final)) and getattr(allocator, "keeps_budget", True):
                names = [name for name, is_frozen in zip(bank.names, frozen, strict=True) if is_frozen]
                raise SettingError(
                    f"the schedule's budget must be at least {held} {self.unit}, which the frozen adapters of "
                    f"{', '.join(names)} hold (got {lowest}); unfreeze some of them, or raise the budget"
                )
            others = [a for a, is_frozen in zip(bank.adapters, frozen, strict=True) if not is_frozen]
            if others and self.score is not None and not getattr(allocator, "grows", False):
                self._check_allocator(others, begin - held, schedule.final - held)
        self._fixed, self._free, self._held = bank.fixed, free, held
        for adapter, is_frozen in zip(bank.adapters, frozen, strict=True):
            adapter.masked = is_frozen or self.pruned_triplets == "masked"

    def _before_step(
        self, optimizer: Optimizer, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._steps.before_step(optimizer, args, kwargs or {}, partial(self._observe_before, optimizer))

    def _observe_before(self, optimizer: Optimizer) -> None:
        if self.variant != "paper":
            return
        if getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                'variant="paper" observes gradients before the step, while they are still scaled; call '
                "scaler.unscale_(optimizer) before controller.after_backward()"
            )
        self._observe(optimizer)

    def _observe(self, optimizer: Optimizer) -> None:
        """Update the score's averages."""
        if self.score is None or not self.observes:
            return
        if self._recorder is not None:
            self.bank.activation = self._recorder.mean()
        observe = partial(self.score.observe, self.buffers, self.bank)
        update_unless_overflow(self._steps.overflow(optimizer), list(self.buffers.values()), observe)

    def _proximal(self, optimizer: Optimizer) -> None:
        if self.penalty is None or self.penalty.proximal is None:
            return
        if (rate := self._rate_of_lam()) is None:
            return  # everything is frozen
        weight, fixed = self.bank.weight, self.bank.fixed
        before = None if fixed is None else weight.clone()
        step = partial(self.penalty.proximal, self.bank, rate)
        update_unless_overflow(self._steps.overflow(optimizer), [weight], step)
        if fixed is not None and before is not None:
            weight.copy_(torch.where(fixed, before, weight))

    def _rate_of_lam(self) -> Any:
        """The learning rate of every λ, one per triplet, [triplets], if the modules' differ; None if none trains."""
        groups = [group for o in self._steps.optimizers for group in o.param_groups]
        rates = {id(p): group["lr"] for group in groups for p in group["params"] if p.requires_grad}
        own = [next((rates[id(p)] for p in (a.lam, a.Q) if id(p) in rates), None) for a in self.bank.adapters]
        trained = {rate for rate in own if rate is not None}  # tensors, which graphs read, are not compared by value
        if len(trained) < 2:
            return next(iter(trained), None)
        like = self.bank.triplet_buffer()
        return torch.stack([torch.as_tensor(0.0 if rate is None else rate).to(like) for rate in own])[self.bank.module]

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._steps.after_step(optimizer):
            self._update(optimizer)
            if not self.holds_decisions:
                self.decide()

    def _update(self, optimizer: Optimizer) -> None:
        """The device's part of a step: nothing is read back, and only `observes` depends on the step number."""
        self._check_state()
        if self.finishes and self._before is not None:  # momentum and weight decay moved them
            finished = self.bank.broadcast_to_parameters(self.finished)
            self.bank.weight.copy_(torch.where(finished, self._before, self.bank.weight))
        if self.pruned_triplets == "frozen":
            self.bank.zero_pruned()  # momentum moved λ; scores see it as the forward pass will
        if self.variant != "paper":
            self._observe(optimizer)
        self._proximal(optimizer)

    @torch.no_grad()
    def decide(self) -> None:
        """The host's part of a step: allocate and compact if it is time to, and count the step. The optimiser's hook
        calls it, or a captured step (see `adarank.capture`)."""
        final = self.last_allocation is not None and self.last_allocation.step >= self.schedule.settled
        due = self.schedule.due(self.step)
        with ExitStack() as magnitudes:
            if due and not final:
                for adapter in self.bank.adapters:
                    if isinstance(adapter, Magnitude):
                        magnitudes.enter_context(adapter.pruning(self.magnitude_after_pruning))
                self._allocate()
            if self.score is not None and ((due and not final) or self.step == self.schedule.begin):
                self.score.restart(self.buffers, self.bank)
            if self.pruned_triplets == "frozen" or (due and self.pruned_triplets == "trainable"):
                self.bank.zero_pruned()
        if due and not final and self.compaction != "off":
            if self.step >= self.schedule.settled:
                self.compact()
            elif self.compaction == "progressive" and self.compact_after is not None:
                unused = self.pruned_for >= self.compact_after
                if int(unused.sum()) >= max(1, self.smallest_removal * len(unused)):
                    self._drop(~unused)
        self.step += 1
        if "path" in self.buffers and not self.observes:
            self.buffers["path"].fill_(1.0)

    def _check_state(self) -> None:
        """After the first step, when the optimisers have their state, check that it can be gathered later."""
        if self._state_checked:
            return
        self._state_checked = True
        tensors = [getattr(a, part) for a in self.bank.adapters for part in FACTORS]
        if self.compaction != "off":
            check_state(self._steps.optimizers, tensors)
        if self.pruned_triplets == "frozen" and self.score is not None:
            check_state(self._steps.optimizers, tensors, "growth")

    def _allocate(self) -> None:
        assert self.score is not None, "checked at creation: a schedule comes with a score"
        bank, budget = self.bank, self.schedule.budget(self.step)
        if self.svd_before_allocation:
            for adapter in bank.adapters:
                if all(p.requires_grad for p in (adapter.Q, adapter.lam, adapter.P) if isinstance(p, nn.Parameter)):
                    to_singular(adapter)
        scores = self.score.score(self.buffers, bank)
        ranked = scores.masked_fill(~bank.mask, -torch.inf) if self.pruned_triplets == "frozen" else scores
        before = bank.mask.clone()
        self._set_mask(self._new_mask(self.allocator, ranked, budget))
        mask = bank.mask.clone()
        if self.finishes:
            changed = (mask != before).any()
            self.finished.copy_(torch.where(changed, (self.finished | before) & mask, self.finished))
        self.pruned_for = torch.where(mask, 0, self.pruned_for + 1)
        cost = torch.where(mask, bank.cost, 0).sum()  # not cost[mask]: its size would be read back from the device
        self.last_allocation = self._record(self.step, mask, scores=scores, module=bank.module, parameters=cost)

    def _new_mask(self, allocator: Callable[[Request], Tensor], scores: Tensor, budget: int) -> Tensor:
        """The mask from `allocator`; frozen adapters keep their masks, and the others share the rest of the budget."""
        bank, begin, settled, free = self.bank, self.schedule.begin, self.schedule.settled, self._free
        progress = min(max((self.step - begin) / max(settled - begin, 1), 0.0), 1.0)
        parts = (scores, bank.mask, self.cost, bank.module, self.finished)
        if free is not None:
            if not len(free):
                return bank.mask.clone()
            parts = (scores[free], bank.mask[free], self.cost[free], bank.module[free], self.finished[free])
        some_scores, mask, costs, modules, finished = parts
        request = Request(
            some_scores, mask, budget - self._held, costs, modules, self.generator, bank.names, progress, finished
        )
        new = allocator(request)
        return new if free is None else bank.mask.index_copy(0, free, new)

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
        trained = parameters if bank.fixed is None else parameters & ~bank.fixed
        bank.weight.copy_(torch.where(trained, drawn, bank.weight))
        for buffer in self.buffers.values():
            if buffer.ndim:
                rows = triplets if len(buffer) == bank.triplets else parameters
                buffer.masked_fill_(rows.view(-1, *[1] * (buffer.ndim - 1)), 0.0)
        check_state(self._steps.optimizers, [getattr(a, part) for a in bank.adapters for part in FACTORS], "growth")
        for (part, i), rows in bank.unflatten(parameters).items():
            for optimizer in self._steps.optimizers:
                for value in optimizer.state.get(getattr(bank.adapters[i], part), {}).values():
                    if isinstance(value, Tensor) and value.shape == rows.shape:
                        value.masked_fill_(rows, 0.0)

    def _undo_initial_mask(self) -> None:
        """Give back what the initial mask overwrote if nothing has changed since: the weights were then loaded before
        `attach`, and the mask is now theirs."""
        if self._initial is not None:
            before, after = (weights.to(self.bank.weight) for weights in self._initial)
            if torch.equal(self.bank.weight, after):
                self.bank.weight.copy_(before)
                self.bank.zero_pruned()
            self._initial = None

    def _record(self, step: int, mask: Tensor, **tensors: Any) -> Allocation:
        budget, names = self.schedule.budget(step), tuple(self.bank.names)
        return Allocation(step, budget, self.unit, mask.sum(), mask=mask, names=names, **tensors)

    def compact(self) -> None:
        """Remove all pruned triplets, including their optimiser state and averages (see `adarank.compact`)."""
        self._drop(self.bank.mask.clone())

    def _drop(self, keep: Tensor) -> None:
        """Remove every triplet for which `keep` (bool [triplets]) is false."""
        bank = self.bank
        keeps = keep.split([a.rank for a in bank.adapters])
        per_parameter = {name: bank.unflatten(b) for name, b in self.buffers.items() if b.shape == bank.weight.shape}
        for name, buffer in self.buffers.items():
            if buffer.ndim and name not in per_parameter:
                self.buffers[name] = buffer[keep]
        indices = drop(bank.adapters, keeps, self._steps.optimizers)
        bank.allocate()
        for name, pieces in per_parameter.items():
            self.buffers[name] = bank.flatten({(part, i): t[indices[i]] for (part, i), t in pieces.items()})
        if self._recorder is not None:
            self._recorder.reset()
        self.pruned_for, self.finished = self.pruned_for[keep], self.finished[keep]
        self.remaining[self.remaining.clone()] = keep
        self._watch()

    def _save(self, _: Optimizer, state: dict[str, Any]) -> None:
        state[STATE] = {
            "step": self.step,
            "remaining": self.remaining.clone(),
            "mask": self.bank.mask.clone(),
            "pruned_for": self.pruned_for.clone(),
            **({"finished": self.finished.clone()} if self.finishes else {}),
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
        if saved["step"]:  # accelerate loads an optimiser's own state into it
            self._undo_initial_mask()
        self.pruned_for.copy_(saved["pruned_for"])
        if self.finishes:
            self.finished.copy_(saved["finished"])
        for name, buffer in self.buffers.items():
            buffer.copy_(saved[f"score.{name}"])
        self.generator.set_state(saved["generator"].cpu())
        self.step = saved["step"]
        self._steps.reset()
        self.last_allocation = None
        if (last := saved.get("last")) is not None:
            moved = {k: v.to(self.remaining.device) for k, v in last.items() if isinstance(v, Tensor)}
            self.last_allocation = self._record(last["step"], **moved)
        self._hold_frozen()  # what they hold follows from the mask
