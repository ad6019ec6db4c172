"""Algorithm 1 of AdaLoRA, riding on the optimiser's own hooks.

    loss.backward()                      true task gradients
    controller.after_backward()          + the penalty's gradient, once per optimiser step
    clip, optimizer.step()               pre-hook: is it wired?   post-hook: observe, proximal step, allocate when due,
                                         mask, count
    optimizer.zero_grad()

What the three modes do differently:

    mode        observes                    penalty         keeps                       s
    exact       after the step (new w, g)   γ/2n Σ‖·‖_F     exactly the budget          α / r
    original    after the step (new w, g)   γ/2n Σ‖·‖_F     above the k-th value        α / (r + 1e-5)
    paper       before the step (w, g)      γ Σ‖·‖²_F       exactly the budget          α / r
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adarank import allocators, schedules
from adarank.adapters.lowrank import LowRank, to_singular
from adarank.allocation import Allocation
from adarank.allocators.allocator import Allocator, check_run
from adarank.bank import Bank
from adarank.compaction import CONTROLLER, check_state, drop, unwrap
from adarank.errors import SettingError
from adarank.inits.default import draw
from adarank.listening import Ears
from adarank.penalties import Penalty
from adarank.schedules import Schedule
from adarank.scores.score import Score

MODES = ("exact", "original", "paper")
PRUNED = ("learning", "frozen", "masked")
COMPACTIONS = ("off", "final", "progressive")
UNITS = ("triplets", "parameters")
BASES = ("learned", "singular")
STATE = "adarank"  # the key in optimizer.state_dict()


class RankController:
    """Scores the triplets of `adapters`, prunes to the schedule's budget and holds the final mask.

    adapters: what `adarank.adapt` returned; score, schedule, penalty, allocator: configured pieces of
    `adarank.scores`, `.schedules`, `.penalties` and `.allocators`. Without a schedule nothing is ever allocated: the
    controller applies the penalty alone, and needs no score. allocator=None is the mode's own rule, exact or the
    original's threshold. mode: see the module's table. unit: what budgets count, "triplets" or "parameters" (a triplet
    costs d_in + d_out + 1). A schedule that starts below what the adapters hold (pruned="frozen" or "masked")
    starts with an even share of it.

    pruned: "learning", a pruned triplet's λ is zeroed at each allocation and goes on learning until the next, so that it
    may come back; "frozen", it stays zero, its gradient is dropped and its score is −∞, and where an allocator turns it
    on all the same it starts anew: fresh factors, zeroed averages and optimiser state; "masked", λ is left alone and the forward pass
    leaves the triplet out. Adapters whose λ is constant ("lora") need one of the last two.
    basis: "singular" turns every module's factors into the singular value decomposition of its ΔW before each
    allocation, optimiser state not included: for pruning after training (PARA).

    compaction: "off", pruned triplets stay in memory; "final", they are dropped for good once the budget is final;
    "progressive", also earlier, each after `patience` consecutive allocations without it (None: never): it cannot come
    back then, and each allocation reads a flag back from the device. Compaction makes new Parameters, in the module
    and in the optimiser's param_groups: clip what param_groups holds, and wrap the model in DDP again.
    seed: for allocators that draw, and fresh factors. Raises SettingError for what cannot be used.
    """

    def __init__(
        self,
        adapters: Mapping[str, LowRank],
        *,
        score: Score | None = None,
        schedule: Schedule | None = None,
        allocator: Any = None,
        penalty: Penalty | None = None,
        mode: str = "exact",
        unit: str = "triplets",
        pruned: str = "learning",
        basis: str = "learned",
        compaction: str = "off",
        patience: int | None = 5,
        seed: int = 0,
    ) -> None:
        for name, value, valid in (
            ("mode", mode, MODES),
            ("unit", unit, UNITS),
            ("pruned", pruned, PRUNED),
            ("basis", basis, BASES),
            ("compaction", compaction, COMPACTIONS),
        ):
            if value not in valid:
                raise SettingError(f"{name}={value!r} is not known; valid: {', '.join(valid)}")
        if patience is not None and patience < 1:
            raise SettingError(f"patience={patience} is no number of allocations; valid: at least 1, or none for never")
        self.bank = Bank(adapters)
        self.bank.frozen = pruned == "frozen"
        self.unit = unit
        held = int(self.cost.sum())
        self.schedule = schedules.never(held) if schedule is None else schedule
        if score is None and schedule is not None:
            raise SettingError("score is not given; a schedule allocates by a score of adarank.scores")
        if pruned == "learning" and self.schedule.initial != held:
            raise SettingError(
                f"the schedule starts at {self.schedule.initial} {unit}, the adapters hold {held}; "
                f"valid: initial = {held}, what all triplets together take"
            )
        if max(self.schedule.initial, self.schedule.final) > held:
            raise SettingError(
                f"the schedule asks for {max(self.schedule.initial, self.schedule.final)} {unit}, the adapters hold "
                f"{held}; valid: at most {held}"
            )
        if schedule is not None and pruned == "learning" and any(a.kind == "lora" for a in self.bank.adapters):
            raise SettingError(
                "pruned='learning' has no meaning for adapter='lora', whose λ is constant; valid: frozen, masked"
            )
        if self.schedule.initial < held and any(a.start_Q is not None for a in self.bank.adapters):
            raise SettingError(
                f"the schedule starts at {self.schedule.initial} of the {held} {unit} held, but the init took all of them "
                "out of the base's weight; valid: an init that leaves the base alone, or a schedule that starts at "
                f"{held}"
            )
        if penalty is not None and penalty.proximal is not None and any(a.kind == "lora" for a in self.bank.adapters):
            raise SettingError(
                "the penalty's proximal step changes λ, which adapter='lora' holds constant; valid: adapter='svd'"
            )
        self.score, self.penalty = score, penalty
        self.mode, self.pruned, self.basis = mode, pruned, basis
        self.compaction, self.patience = compaction, patience
        self.allocator = allocator or (allocators.threshold() if mode == "original" else allocators.global_top())
        if schedule is not None and isinstance(self.allocator, Allocator):
            cost = [a.in_features + a.out_features + 1 if unit == "parameters" else 1 for a in self.bank.adapters]
            ranks = [a.rank for a in self.bank.adapters]
            check_run(self.allocator, unit, ranks, cost, schedule.initial, schedule.final)
        self.generator = torch.Generator(device=self.bank.weight.device).manual_seed(seed)
        self.buffers = score.init(self.bank) if score is not None else {}
        self.missed = torch.zeros_like(self.bank.module)  # consecutive allocations that left a triplet out
        self.held = torch.ones_like(self.bank.mask)  # over the triplets at creation: still in memory
        self.step = 0
        self.last_allocation: Allocation | None = None
        self._armed = False  # after_backward was called for the gradients that are there
        self._fresh = False  # those gradients were dropped since, and a backward pass began anew
        self._optimizer: Optimizer | None = None
        if self.schedule.initial < held:
            even = allocators.uniform()
            zeros = torch.zeros(self.bank.triplets, device=self.bank.mask.device)
            self._set_mask(even(zeros, self.bank.mask, self.schedule.initial, self.cost, self.bank.module, None))
        for adapter in self.bank.adapters:
            adapter.masked = pruned == "masked"
            adapter.watch = None
        self._ears = Ears(self.bank, score.activation) if score is not None and score.activation is not None else None
        if mode == "original":
            for adapter in self.bank.adapters:
                adapter.scale *= adapter.rank / (adapter.rank + 1e-5)

    @property
    def cost(self) -> Tensor:
        """What each triplet takes of the budget, int64 [triplets]."""
        return self.bank.cost if self.unit == "parameters" else torch.ones_like(self.bank.cost)

    def attach(self, optimizer: Any) -> "RankController":
        """Ride on `optimizer`'s hooks (inside accelerate's wrapper, where there is one). To resume: attach, then
        `optimizer.load_state_dict`. Raises RuntimeError where it is attached already or the optimiser lacks an
        adapter's parameter."""
        optimizer = unwrap(optimizer)
        if self._optimizer is not None:
            raise RuntimeError("this RankController is attached already; make a new one for another optimiser")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, adapter in zip(self.bank.names, self.bank.adapters, strict=True):
            for part in ("Q", "lam", "P"):
                tensor = getattr(adapter, part)
                if isinstance(tensor, nn.Parameter) and id(tensor) not in held:
                    raise RuntimeError(
                        f"the optimiser lacks {name}.{part}; build it after adarank.adapt, from every parameter of "
                        "the model with requires_grad"
                    )
        if getattr(optimizer, CONTROLLER, None) is not None:
            raise RuntimeError("another RankController is attached to this optimiser; use one controller per optimiser")
        self._optimizer = optimizer
        setattr(optimizer, CONTROLLER, self)
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        optimizer.register_state_dict_post_hook(self._save)
        if type(optimizer).load_state_dict is Optimizer.load_state_dict:
            optimizer.register_load_state_dict_pre_hook(self._load)
        else:  # bitsandbytes' own calls no hooks
            own = optimizer.load_state_dict

            def load(state: dict[str, Any]) -> None:
                self._load(optimizer, state)
                own(state)

            optimizer.load_state_dict = load
        self._watch()
        return self

    def _watch(self) -> None:
        """Notice backward passes by λ's gradient: it is zero only where gradients were dropped (P's is while λ is 0)."""
        for adapter in self.bank.adapters:
            watched = adapter.lam if isinstance(adapter.lam, nn.Parameter) else adapter.P
            watched.register_hook(lambda _, p=watched: self._notice(p))

    def _notice(self, watched: Tensor) -> None:
        """Before a gradient is accumulated: were the last ones dropped without a step (an overflow)? The value is
        read back only then, and where after_backward was called too early."""
        if self._armed and not self._fresh:
            self._fresh = watched.grad is None or not bool(watched.grad.any())

    def after_backward(self, grad_scale: float | Tensor | None = None) -> None:
        """Once per optimiser step, after its last backward pass and before clipping: adopt the gradients and add the
        penalty's, times `grad_scale` where gradients are still scaled. Raises RuntimeError when called before
        `attach` or twice on the same gradients."""
        if self._optimizer is None:
            raise RuntimeError("the RankController is not attached; call controller.attach(optimizer) first")
        if self._armed and not self._fresh:
            raise RuntimeError(
                "controller.after_backward() was called twice for one optimiser step; call it once, after the last "
                "backward pass of the accumulation and before clipping"
            )
        self._adopt()
        if self.penalty is not None and self.penalty.add is not None:
            self.penalty.add(self.bank, grad_scale, self.mode == "paper")
        if self.pruned == "frozen":
            self.bank.lam_grad.masked_fill_(~self.bank.mask, 0.0)
        self._armed, self._fresh = True, False

    def _adopt(self) -> None:
        """Adopt, and let the averages follow a model that was moved."""
        self.bank.adopt()
        weight = self.bank.weight
        dtype = self.bank.dtype
        if any((b.device, b.dtype) != (weight.device, dtype) for b in self.buffers.values()):
            self.buffers = {name: b.to(weight.device, dtype) for name, b in self.buffers.items()}
            self.missed, self.held = self.missed.to(weight.device), self.held.to(weight.device)
            self.generator = torch.Generator(device=weight.device).manual_seed(self.generator.initial_seed())

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if not self._armed:
            raise RuntimeError(
                "optimizer.step() came without controller.after_backward(); call it once per optimiser step, after "
                "the last backward pass and before clipping"
            )
        if self.mode == "paper":
            if getattr(optimizer, "grad_scale", None) is not None:
                raise RuntimeError(
                    'mode="paper" observes before the step, where gradients are still scaled; call '
                    "scaler.unscale_(optimizer) before controller.after_backward()"
                )
            self._observe(optimizer)

    @torch.no_grad()
    def _observe(self, optimizer: Optimizer) -> None:
        """Update the score's averages, but for a step that overflowed.

        A gradient scaler does not call the hooks for such a step; only with a *fused* optimiser it does, and leaves
        the finding on the device in `found_inf` (a step without overflow has unscaled its gradients by then). The
        step counts all the same: reading the flag would synchronise.
        """
        if self.score is None or self.step >= self.schedule.settled:
            return
        if self._ears is not None:
            self.bank.activation = self._ears.mean()
        overflow: Any = getattr(optimizer, "found_inf", None)
        before = None if overflow is None else {name: buffer.clone() for name, buffer in self.buffers.items()}
        self.score.observe(self.buffers, self.bank)
        if before is not None:
            for name, buffer in self.buffers.items():
                buffer.copy_(torch.where(overflow > 0, before[name], buffer))

    def _proximal(self, optimizer: Optimizer) -> None:
        if self.penalty is None or self.penalty.proximal is None:
            return
        overflow: Any = getattr(optimizer, "found_inf", None)
        before = None if overflow is None else self.bank.weight.clone()
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        learns = next(p for a in self.bank.adapters for p in (a.lam, a.Q) if isinstance(p, nn.Parameter))
        self.penalty.proximal(self.bank, rates[id(learns)])
        if before is not None:
            self.bank.weight.copy_(torch.where(overflow > 0, before, self.bank.weight))

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._armed = False
        if self.pruned == "frozen":
            self.bank.zero_pruned()  # momentum moved λ; scores see it as the forward pass will
        if self.mode != "paper":
            self._observe(optimizer)
        self._proximal(optimizer)
        last = self.last_allocation
        held = last is not None and last.step >= self.schedule.settled
        due = self.schedule.due(self.step)
        if due and not held:
            self._allocate()
        if self.pruned == "frozen" or (due and self.pruned == "learning"):
            self.bank.zero_pruned()
        if due and not held and self.compaction != "off":
            self._compact_if_due()
        self.step += 1

    def _allocate(self) -> None:
        assert self.score is not None, "a schedule that allocates came with a score"
        bank, budget = self.bank, self.schedule.budget(self.step)
        if self.basis == "singular":
            for adapter in bank.adapters:
                to_singular(adapter)
        scores = self.score.score(self.buffers, bank)
        ranked = scores.masked_fill(~bank.mask, -torch.inf) if self.pruned == "frozen" else scores
        paced = {"progress": self._progress()} if getattr(self.allocator, "paced", False) else {}
        self._set_mask(self.allocator(ranked, bank.mask, budget, self.cost, bank.module, self.generator, **paced))
        mask = bank.mask.clone()
        self.missed = torch.where(mask, 0, self.missed + 1)
        cost = torch.where(mask, bank.cost, 0).sum()  # not cost[mask]: its size would be read back from the device
        self.last_allocation = self._record(self.step, scores, mask, bank.module, cost)

    def _progress(self) -> float:
        """From 0 at the first possible allocation to 1 at the final budget."""
        begin, settled = self.schedule.begin, self.schedule.settled
        return min(max((self.step - begin) / max(settled - begin, 1), 0.0), 1.0)

    @torch.no_grad()
    def _set_mask(self, mask: Tensor) -> None:
        """Take `mask` over. Where pruned triplets are frozen, those that it turns on start anew."""
        fresh = mask & ~self.bank.mask
        self.bank.mask.copy_(mask)
        if self.pruned == "frozen":
            self._renew(fresh)
            self.bank.zero_pruned()

    def _renew(self, fresh: Tensor) -> None:
        """Fresh factors, as the default init draws them, and no past, for the triplets where `fresh` is true."""
        bank = self.bank
        where = bank.spread(fresh)
        drawn = bank.join(draw(bank.cut(bank.weight), bank.adapters, self.generator))
        bank.weight.copy_(torch.where(where, drawn, bank.weight))
        for buffer in self.buffers.values():
            if buffer.ndim:
                buffer.masked_fill_(fresh if len(buffer) == bank.triplets else where, 0.0)
        state = {} if self._optimizer is None else self._optimizer.state
        if self._optimizer is not None:
            check_state(
                self._optimizer, [getattr(a, part) for a in bank.adapters for part in ("Q", "lam", "P")], "grown"
            )
        for (part, i), rows in bank.cut(where).items():
            for value in state.get(getattr(bank.adapters[i], part), {}).values():
                if isinstance(value, Tensor) and value.shape == rows.shape:
                    value.masked_fill_(rows, 0.0)

    def _record(self, step: int, scores: Tensor, mask: Tensor, module: Tensor, cost: Tensor) -> Allocation:
        names = tuple(self.bank.names)
        return Allocation(step, self.schedule.budget(step), self.unit, mask.sum(), cost, scores, mask, module, names)

    def _compact_if_due(self) -> None:
        if self.step >= self.schedule.settled:
            self.compact()
        elif self.compaction == "progressive" and self.patience is not None:
            gone = self.missed >= self.patience
            if gone.any():
                self._drop(~gone)

    def compact(self) -> None:
        """Drop every triplet that is pruned now, optimiser state and averages included (see `adarank.compact`)."""
        self._drop(self.bank.mask.clone())

    def _drop(self, keep: Tensor) -> None:
        """Keep the triplets where `keep` (bool [triplets]) is true, and forget that there were others."""
        bank = self.bank
        keeps = keep.split([a.rank for a in bank.adapters])
        per_parameter = {name: bank.cut(b) for name, b in self.buffers.items() if b.numel() == bank.weight.numel()}
        for name, buffer in self.buffers.items():
            if buffer.ndim and name not in per_parameter:
                self.buffers[name] = buffer[keep]
        indices = drop(bank.adapters, keeps, self._optimizer)
        bank.lay_out()
        for name, pieces in per_parameter.items():
            self.buffers[name] = bank.join({(part, i): t[indices[i]] for (part, i), t in pieces.items()})
        if self._ears is not None:
            self._ears.forget()
        self.missed = self.missed[keep]
        self.held[self.held.clone()] = keep
        self._watch()

    def _save(self, _: Optimizer, state: dict[str, Any]) -> None:
        last = self.last_allocation
        state[STATE] = {
            "step": self.step,
            "held": self.held.clone(),
            "mask": self.bank.mask.clone(),
            "missed": self.missed.clone(),
            "generator": self.generator.get_state(),
            **{f"score.{name}": buffer.clone() for name, buffer in self.buffers.items()},
        }
        if last is not None:
            found = {"step": last.step, "scores": last.scores, "mask": last.mask, "module": last.module}
            state[STATE]["last"] = {**found, "parameters": last.parameters}

    def _load(self, _: Optimizer, state: dict[str, Any]) -> None:
        """Take the controller's part out of an optimiser's state dict; checked whole before anything changes.

        Where the saved run had dropped triplets, they are dropped here first: load the optimiser, then the model.
        """
        saved = state.get(STATE)
        if saved is None:
            raise RuntimeError("the optimiser state to load holds no RankController; it was saved without one attached")
        names = {f"score.{name}" for name in self.buffers}
        if missing := sorted(names - saved.keys()):
            raise RuntimeError(f"the saved controller has no {missing[0]}: it was saved with another score")
        held = saved["held"].to(self.held.device)
        if held.shape != self.held.shape or not torch.equal(held & self.held, held):
            raise RuntimeError(
                f"the saved controller's mask is over {len(held)} triplets, of which {int(held.sum())} are left, this "
                f"one's over {len(self.held)}, of which {int(self.held.sum())} are left: other adapters"
            )
        self.bank.adopt()
        if not torch.equal(held, self.held):
            self._drop(held[self.held])
        self.bank.mask.copy_(saved["mask"])
        self.missed.copy_(saved["missed"])
        for name, buffer in self.buffers.items():
            buffer.copy_(saved[f"score.{name}"])
        self.generator.set_state(saved["generator"].cpu())
        self.step = saved["step"]
        self._armed = self._fresh = False
        self.last_allocation = None
        if (last := saved.get("last")) is not None:
            moved = {k: v.to(self.held.device) if isinstance(v, Tensor) else v for k, v in last.items()}
            self.last_allocation = self._record(
                last["step"], moved["scores"], moved["mask"], moved["module"], moved["parameters"]
            )
