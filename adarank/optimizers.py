"""Checks on optimisers: they must step in the right order, and their state must be gatherable row by row."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adarank.errors import SettingError

CONTROLLER = "adarank_controller"  # the optimiser's attribute that holds its RankController


def unwrap(optimizer: Any) -> Optimizer:
    """The torch optimiser inside the wrapper of accelerate or Lightning, or the optimiser itself."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def check_optimizers(optimizers: Sequence[Optimizer], factors: Mapping[str, nn.Parameter]) -> None:
    """Raise RuntimeError unless each of `factors` is in exactly one of `optimizers`; a frozen one may be in none.

    Also raises RuntimeError for an optimiser that is given twice or already has a controller, and SettingError for one
    whose step needs several evaluations of its closure.
    """
    if not optimizers or len({id(o) for o in optimizers}) < len(optimizers):
        raise RuntimeError(f"attach needs one optimiser, or several different ones (got {len(optimizers)})")
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise SettingError(evaluates_repeatedly(optimizer))
        if getattr(optimizer, CONTROLLER, None) is not None:
            raise RuntimeError("another RankController is attached to this optimiser; use one controller per optimiser")
    optimized = [{id(p) for group in o.param_groups for p in group["params"]} for o in optimizers]
    for name, parameter in factors.items():
        count = sum(id(parameter) in ids for ids in optimized)
        if count > 1:
            raise RuntimeError(f"{name} is in {count} of the optimisers; give each parameter to one of them")
        if count == 0 and parameter.requires_grad:
            lacking = "the optimiser lacks" if len(optimizers) == 1 else "the optimisers lack"
            raise RuntimeError(
                f"{lacking} {name}; build it after adarank.adapt, from all parameters of the model with requires_grad"
            )


def evaluates_repeatedly(optimizer: Optimizer) -> str:
    return (
        f"{type(optimizer).__name__} evaluates its closure several times per step, but the RankController needs one "
        "gradient per step; use an optimiser that evaluates it once, such as torch.optim.AdamW"
    )


class StepOrder:
    """Holds `optimizers` to one order: backward passes, one `after_backward`, then one step of each optimiser.

    ready: after_backward was called for the current gradients. dropped: those gradients were then dropped without a
    step, and a new backward pass began. stepped: the optimisers that have stepped since then, while others have not.
    """

    def __init__(self, optimizers: Sequence[Optimizer] = ()) -> None:
        self.optimizers = list(optimizers)
        self.reset()

    def reset(self) -> None:
        """Forget the current gradients."""
        self.ready = self.dropped = False
        self.stepped: list[Optimizer] = []
        self._not_finite: Tensor | None = None  # with several optimisers: whether the gradients contain an inf or a NaN
        self._within: Optimizer | None = None  # the optimiser whose step has begun
        self._depth = 0  # nesting of its step: hooks run again if a subclass calls super().step()
        self._closure: Callable[[], Any] | None = None  # the closure that `before_step` gave it

    def notice(self, watched: Tensor) -> None:
        """Before a gradient is accumulated, check whether the last ones were dropped without a step (after an
        overflow).

        Reads a value back from the device, but only in that case or if after_backward was called too early.
        """
        if self.ready and not self.dropped:
            self.dropped = watched.grad is None or not bool(watched.grad.any())

    def check_gradients(self) -> None:
        """Raise RuntimeError if after_backward may not be called now."""
        self._within = None
        if not self.optimizers:
            raise RuntimeError("the RankController is not attached; call controller.attach(optimizer) first")
        # a gradient scaler skips optimisers with an overflowed gradient; such a step does not count
        if self.stepped and not (self._not_finite is not None and bool(self._not_finite)):
            number, missing = next((i, o) for i, o in enumerate(self.optimizers, 1) if o not in self.stepped)
            raise RuntimeError(
                f"optimiser {number} of {len(self.optimizers)} ({type(missing).__name__}) did not step after the last "
                "controller.after_backward(), but another one did; step every attached optimiser once per "
                "after_backward()"
            )
        self.stepped = []
        if self.ready and not self.dropped:
            raise RuntimeError(
                "controller.after_backward() was called twice for one optimiser step; call it once, after the last "
                "backward pass of the accumulation and before clipping"
            )

    def gradients_ready(self) -> None:
        """Note the end of after_backward."""
        self.ready, self.dropped = True, False
        if len(self.optimizers) > 1:
            parameters = [p for o in self.optimizers for group in o.param_groups for p in group["params"]]
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], math.inf)
            self._not_finite = ~torch.isfinite(norm)

    def before_step(
        self, optimizer: Optimizer, args: Sequence[Any], kwargs: Mapping[str, Any], observe: Callable[[], None]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Check the order and call `observe` before the first optimiser changes the weights.

        If step(*args, **kwargs) has a closure, both happen at the end of the closure, and the new arguments are
        returned. Raises RuntimeError for a step out of order, and if a closure is called a second time.
        """
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if self._within is optimizer and closure in (None, self._closure):
            self._depth += 1
            return None
        if optimizer in self.stepped:
            raise RuntimeError(
                f"{type(optimizer).__name__} stepped twice after one controller.after_backward(), before another "
                "attached optimiser stepped; step every attached optimiser once per after_backward()"
            )
        self._closure, called = None, False
        if closure is None:
            self._begin_step(optimizer, observe)
            return None

        def closure_in_order() -> Any:
            nonlocal called
            if called:
                raise RuntimeError(evaluates_repeatedly(optimizer))
            called = True
            loss = closure()
            self._begin_step(optimizer, observe)
            return loss

        self._within, self._depth, self._closure = optimizer, 1, closure_in_order
        if "closure" in kwargs:
            return tuple(args), {**kwargs, "closure": closure_in_order}
        return (args[0], closure_in_order, *args[2:]), dict(kwargs)

    def _begin_step(self, optimizer: Optimizer, observe: Callable[[], None]) -> None:
        if not self.ready or self.dropped:
            raise RuntimeError(
                "optimizer.step() was called without controller.after_backward(); call it once per optimiser step, "
                "after the last backward pass and before clipping: inside the closure, if step gets one (in "
                "Lightning, in on_before_optimizer_step)"
            )
        if not self.stepped:
            observe()
        if self._closure is None:
            self._depth = 1
        self._within = optimizer

    def after_step(self, optimizer: Optimizer) -> bool:
        """Whether all optimisers have now stepped. Raises RuntimeError if the optimiser ignored its closure."""
        self._depth -= 1
        if self._depth > 0:
            return False
        self._within = self._closure = None  # the closure may hold a batch
        if not self.ready:
            raise RuntimeError(
                f"{type(optimizer).__name__} did not call its closure, so the step has no gradients; call "
                "backward() and controller.after_backward() before step() instead"
            )
        self.stepped.append(optimizer)
        if len(self.stepped) < len(self.optimizers):
            return False
        self.stepped, self.ready = [], False
        return True

    def overflow(self, optimizer: Optimizer) -> Tensor | None:
        """A flag on the device that tells whether this step overflowed; None if that is unknown.

        On overflow a gradient scaler runs the step hooks of *fused* optimisers only, and leaves its flag in `found_inf`
        (other steps have unscaled gradients by then). The step counts, because reading the flag would synchronise.
        """
        return self._not_finite if len(self.optimizers) > 1 else getattr(optimizer, "found_inf", None)


def before_load(optimizer: Optimizer, load: Callable[[Optimizer, dict[str, Any]], None]) -> None:
    """Call `load(optimizer, state)` at the start of every `optimizer.load_state_dict(state)`."""
    if type(optimizer).load_state_dict is Optimizer.load_state_dict:
        optimizer.register_load_state_dict_pre_hook(load)
        return
    load_state_dict = optimizer.load_state_dict  # bitsandbytes overrides it and calls no hooks

    def load_both(state: dict[str, Any]) -> None:
        load(optimizer, state)
        load_state_dict(state)

    optimizer.load_state_dict = load_both  # type: ignore[assignment, method-assign]


def check_state(optimizers: Sequence[Optimizer], tensors: Sequence[Tensor], operation: str = "compaction") -> None:
    """Raise SettingError if an optimiser's state for one of `tensors` cannot be gathered or zeroed row by row.

    operation: "compaction" or "growth", for the message.
    """
    for optimizer in optimizers:
        for tensor in tensors:
            for key, value in optimizer.state.get(tensor, {}).items():
                if value is None or isinstance(value, bool | int | float):
                    continue
                if isinstance(value, Tensor) and (value.numel() == 1 or value.shape == tensor.shape):
                    continue
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise SettingError(
                    f"{operation} needs an optimiser whose state is scalars and tensors of the parameter's shape "
                    f"(got {type(optimizer).__name__}, whose state {key!r} is {shape} for a parameter of "
                    f"{tuple(tensor.shape)})"
                )


@torch.no_grad()
def update_unless_overflow(overflow: Tensor | None, tensors: Sequence[Tensor], update: Callable[[], None]) -> None:
    """Call `update`, which changes `tensors` in place, and undo it if `overflow`, a flag on the device, is set."""
    before = [] if overflow is None else [tensor.clone() for tensor in tensors]
    update()
    for old, tensor in zip(before, tensors, strict=False):
        assert overflow is not None
        tensor.copy_(torch.where(overflow > 0, old, tensor))
