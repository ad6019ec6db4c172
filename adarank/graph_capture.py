"""The whole optimiser step as CUDA graphs, so that no GPU waits for its host.

    graph A, one for each shape of the batch    forward, backward, gradients at fixed addresses
    graph B, with and without observed scores   penalty, clipping, the optimiser, the score's averages
    the host, when they are due                 allocation and compaction; the learning rate and the batch are copied in

The bank feeds the adapters (see `adarank.feed`). Without graphs the same code runs step by step.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adarank.adapters.lowrank import adapters_of
from adarank.bank import Bank
from adarank.controller import RankController
from adarank.errors import SettingError, number
from adarank.feed import feed_of
from adarank.optimizers import unwrap

Loss = Callable[[Any, Mapping[str, Tensor]], Tensor]
SHAPES = 8  # batch shapes that get a graph; others run without one
WARM_UP = 2  # steps before the first graph, which create the optimiser's state and the libraries' workspaces
SMALLEST_REMOVAL = 0.1  # share of the triplets worth recapturing graphs for while the budget still falls


def capture(
    model: nn.Module,
    optimizer: Any,
    controller: RankController | None = None,
    *,
    loss: Loss | None = None,
    max_grad_norm: float = 1.0,
    autocast: torch.dtype | None = None,
    graphs: Any = "auto",
) -> "CapturedStep":
    """A function that trains `model` by one whole step: step(batch) -> the detached loss.

    It does what this loop does, and leaves no gradients behind:

        loss(model, batch).backward()
        controller.after_backward()
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    model: with or without adapters of adarank.
    controller: attached to `optimizer` here, if it is not yet; None for fixed ranks.
    loss: (model, batch) -> scalar; None: model(**batch).loss.
    max_grad_norm: 0 switches clipping off.
    autocast: the dtype of autocast in the forward pass; None for none.
    batch: {name: tensor}; the first `SHAPES` shapes get a graph each, so pad to few lengths (`pad_to_multiple_of=16` in
        Transformers' collators).
    graphs: "auto": CUDA graphs on a CUDA device if the step can be captured; otherwise a warning says why not. True:
        raises SettingError instead of warning. False, and "auto" on other devices: no graphs. For tests: a class with
        `recording()`, a context manager that records and computes, and `replay()`.

    A step cannot be captured if its score records activations, its penalty declares `reads_back`, several processes or
    devices share the model (DDP, FSDP2), bitsandbytes computes a layer, activations are recomputed, the optimiser has
    no `capturable` form, or anything reads a value back from the device. With graphs, progressive compaction waits
    until it can remove a tenth of the triplets.

    Learning rates may change between steps, by hand or by a scheduler. Create the scheduler before this call; each step
    of a scheduler created later waits for the device. `load_state_dict` may change the model's weights and the
    optimiser's state. A score, a penalty and a loss must be functions of tensors, because anything else that they read
    is read only once. Pass `autocast` instead of calling the step under autocast, which would also affect the penalty.

    Example:
        >>> import adarank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> adapters = adarank.adapt(model, rank=2, targets=["0", "2"])
        >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        >>> step = adarank.capture(model, optimizer, loss=lambda model, batch: model(batch["x"]).square().mean())
        >>> losses = [step({"x": torch.ones(16, 8)}).item() for _ in range(20)]
        >>> losses[-1] < losses[0]
        True
    """
    valid = graphs == "auto" or isinstance(graphs, bool) or callable(graphs)
    if not valid:
        raise SettingError(f"graphs must be auto, true or false (got {graphs!r})")
    max_grad_norm = number("max_grad_norm", max_grad_norm, "at least 0", lambda norm: norm >= 0)
    optimizer = unwrap(optimizer)
    if controller is not None and not controller.optimizers:
        controller.attach(optimizer)
    if controller is not None and controller.optimizers != [optimizer]:
        raise RuntimeError(
            "the RankController is attached to another optimiser, or to several; capture takes its only one"
        )
    on_cuda = all(p.is_cuda for group in optimizer.param_groups for p in group["params"])
    if graphs is True and not on_cuda:
        raise SettingError("graphs must be auto or false without a CUDA device (got true)")
    make: Callable[[], Any] | None = None
    if graphs is not False and (on_cuda or callable(graphs)):
        why = why_not(model, optimizer, controller)
        if why is not None and graphs is True:
            raise SettingError(f"graphs must be auto or false here: {why} (got true)")
        if why is not None:
            warnings.warn(f"the step runs without CUDA graphs: {why}", stacklevel=2)
        else:
            make = graphs if callable(graphs) else partial(CudaGraph, torch.cuda.graph_pool_handle())
    return CapturedStep(
        model, optimizer, controller, loss or _own_loss, max_grad_norm, autocast, make, required=graphs is True
    )


def why_not(model: nn.Module, optimizer: Optimizer, controller: RankController | None) -> str | None:
    """Why this step cannot be captured in CUDA graphs; None if no reason is known before an attempt."""
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        return "several processes train the model together"
    if controller is not None and controller.score is not None and controller.score.activation is not None:
        return "the score records activations"
    if controller is not None and controller.penalty is not None and controller.penalty.reads_back:
        return "the penalty reads values back from the device"
    if any(type(module).__module__.startswith("bitsandbytes") for module in model.modules()):
        return "bitsandbytes computes in it"
    if "capturable" not in optimizer.defaults and not isinstance(optimizer, torch.optim.SGD):
        return f"{type(optimizer).__name__} has no capturable form"
    newer = getattr(model, "is_activation_checkpointing", None)  # its name in newer Transformers
    if getattr(model, "is_gradient_checkpointing", False) if newer is None else newer:
        return "activations are recomputed in the backward pass"
    if len({p.device for p in model.parameters()}) > 1:
        return "the model lies on several devices"
    return None


def _own_loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    return model(**batch).loss  # type: ignore[no-any-return]


class CudaGraph:
    """One CUDA graph, which runs on the current stream and uses the memory pool of all graphs of a step."""

    def __init__(self, pool: Any) -> None:
        self.graph, self.pool = torch.cuda.CUDAGraph(), pool

    @contextmanager
    def recording(self) -> Iterator[None]:
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(self.graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            yield
        self.graph.replay()  # capturing computes nothing

    def replay(self) -> None:
        self.graph.replay()


class CapturedStep:
    """What `capture` returns: step(batch) -> loss. make: creates a graph; None if the step runs without graphs."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        controller: RankController | None,
        loss: Loss,
        max_grad_norm: float,
        autocast: torch.dtype | None,
        make: Callable[[], Any] | None,
        required: bool,
    ) -> None:
        self.model, self.optimizer, self.controller = model, optimizer, controller
        self.loss, self.max_grad_norm, self.autocast = loss, max_grad_norm, autocast
        self.make, self.required = make, required
        self.device = self._trained()[0].device
        self.bank: Bank | None = None
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" and make is not None else None
        self.rates: list[Tensor] = []
        self._gradients: list[Tensor] = []  # where graph A leaves those of `_given`, the parameters outside the bank
        self._given: list[nn.Parameter] = []
        self._modules: list[bool] = []  # whether a backward pass reaches each module of the bank
        self._reached: list[bool] | None = None  # and each trained parameter; None until one has run
        self._lay_out()
        if make is not None:
            self._make_capturable()
            optimizer.register_load_state_dict_post_hook(lambda _: self._make_capturable())
            optimizer.register_state_dict_post_hook(self._as_before)
            if controller is not None:
                controller.smallest_removal = SMALLEST_REMOVAL

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Train by one step on `batch`, {name: tensor}; returns its loss, detached."""
        if self._has_moved():
            self._lay_out()
        if self.make is None:
            return self._eager(batch)
        self._keep_rates()
        try:
            if self.controller is not None:
                self.controller.holds_decisions = True
            with self._on_stream():
                shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items())
                if self._warm >= WARM_UP and (shape in self._passes or len(self._passes) < SHAPES):
                    loss = self._replayed(batch, shape)
                else:
                    loss = self._eager(batch)
                self._warm += 1
                if self.controller is not None:
                    self.controller.decide()
                return loss.clone()  # the next replay overwrites it
        finally:
            if self.controller is not None:
                self.controller.holds_decisions = False

    def _eager(self, batch: Mapping[str, Tensor]) -> Tensor:
        loss = self._forward_backward(batch)
        if self.make is not None and self._reached is None:
            self._note_gradients()
        self._update()
        self.optimizer.zero_grad()
        return loss

    def _replayed(self, batch: Mapping[str, Tensor], shape: Any) -> Tensor:
        """A step by graphs, which are recorded first if they are missing."""
        if shape in self._passes:
            graph, inputs, loss = self._passes[shape]
            for name, tensor in batch.items():
                inputs[name].copy_(tensor, non_blocking=True)
            graph.replay()
        else:
            inputs = {name: tensor.clone() for name, tensor in batch.items()}
            graph, found = self._record(lambda: self._pass(inputs))
            if graph is None:
                return self._eager(batch)
            loss = found
            self._passes[shape] = graph, inputs, loss
        observes = self.controller is not None and self.controller.observes
        if observes in self._updates:
            self._updates[observes].replay()
        else:
            self._point_gradients()
            graph, _ = self._record(self._update)
            if graph is None:
                if self.controller is not None:
                    self.controller.forget_gradients()
                self._update()
            self._updates[observes] = graph
        self.optimizer.zero_grad()  # the next recording starts without gradients
        return loss

    def _record(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        """Record and do `work`: (its graph, its result). If it cannot be captured: (None, None), the work is not done,
        and no graph is recorded from then on."""
        assert self.make is not None
        graph = self.make()
        try:
            with graph.recording():
                found = work()
        except RuntimeError as error:
            if self.required or self.stream is None:
                raise
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"the step runs without CUDA graphs, because capturing it failed: {reason}", stacklevel=4)
            self.make = None
            self.optimizer.zero_grad()
            self._point_gradients()
            return None, None
        return graph, found

    def _pass(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Graph A: forward, backward, and the gradients at the addresses from which graph B reads them."""
        loss = self._forward_backward(inputs)
        if self.controller is not None:
            self.controller.bank.sync_views()
        if self._reached != [p.grad is not None for p in self._trained()]:
            raise ValueError(
                "this batch reaches other parameters than an earlier one did, which graphs cannot follow; use "
                "adarank.capture(…, graphs=False)"
            )
        sources = [p.grad for p in self._others if p.grad is not None]
        if sources:
            torch._foreach_copy_(self._gradients, sources)
        return loss

    def _forward_backward(self, batch: Mapping[str, Tensor]) -> Tensor:
        if self.feed is not None:
            self.feed.begin()
        try:
            with nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast):
                loss = self.loss(self.model, batch)
            loss.backward()
        finally:
            if self.feed is not None:
                self.feed.leave()
        if self.feed is not None:
            self.feed.finish()
        return loss.detach()

    def _update(self) -> None:
        """Graph B: penalty, clipping, the optimiser with the controller's hooks."""
        if self.controller is not None:
            self.controller.after_backward()
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_(self._trained(), self.max_grad_norm)
        self.optimizer.step()

    def _note_gradients(self) -> None:
        """After a backward pass without a graph: note which parameters get a gradient, and allocate memory for the
        gradients outside the bank."""
        if self.controller is not None:
            self._modules = [True] * len(self.controller.bank.adapters)
        elif self.feed is not None:
            self._modules = [fed.reached[0] for fed in self.feed.fed]
        factors = self._factors() if self.controller is not None else set()
        self._reached = [
            p.grad is not None or (id(p) in factors and p.requires_grad and p.numel() > 0) for p in self._trained()
        ]
        self._gradients = [torch.empty_like(p) for p in self._others if p.grad is not None]
        self._given = [p for p in self._others if p.grad is not None]

    def _point_gradients(self) -> None:
        """Point every .grad at the memory that graph B reads."""
        if self._factors():
            assert self.bank is not None
            self.bank.point_gradients(self._modules)
        for parameter, gradient in zip(self._given, self._gradients, strict=True):
            parameter.grad = gradient

    def _lay_out(self) -> None:
        """Start over without graphs, with the bank's current layout."""
        adapters = adapters_of(self.model)
        if self.controller is not None:
            self.controller.sync_views()
            self.bank = self.controller.bank
        else:
            self.bank = Bank(adapters) if adapters and all(a.can_be_fed for a in adapters.values()) else None
        self.optimizer.zero_grad()
        self.feed = None if self.bank is None else feed_of(self.bank, self.autocast)
        self._all = list(self.model.modules())
        factors = self._factors()
        self._others = [p for p in self._trained() if id(p) not in factors]
        self._weight = None if self.bank is None else self.bank.weight
        self._layout = self._layout_now()
        self._reached = None
        self._passes: dict[Any, tuple[Any, dict[str, Tensor], Tensor]] = {}
        self._updates: dict[bool, Any] = {}
        self._warm = 1 if self.optimizer.state else 0  # steps without a graph so far

    def _factors(self) -> set[int]:
        """The ids of the factors whose gradients lie in the bank."""
        if self.bank is None or (self.controller is None and self.feed is None):
            return set()
        return {id(p) for adapter in self.bank.adapters for p in (adapter.Q, adapter.lam, adapter.P)}

    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _layout_now(self) -> tuple[Any, ...]:
        trained = self._trained()
        modes = [module.training for module in self._all]
        return trained[0].data_ptr(), [(id(p), p.requires_grad) for p in trained], modes

    def _has_moved(self) -> bool:
        """Whether compaction, a move to another device, requires_grad_, train or eval has changed what graphs take for
        granted."""
        return (
            None if self.bank is None else self.bank.weight
        ) is not self._weight or self._layout_now() != self._layout

    def _make_capturable(self) -> None:
        """Have the optimiser read its learning rates and count its steps on the device."""
        groups = self.optimizer.param_groups
        self._lay_out()
        self.rates = [torch.zeros((), device=self.device) for _ in groups]
        self._keep_rates()
        if self.stream is not None:
            for group in groups:
                if "capturable" in group:
                    group["capturable"] = True
            for state in self.optimizer.state.values():
                if isinstance(state.get("step"), Tensor):
                    state["step"] = state["step"].to(self.device)

    def _keep_rates(self) -> None:
        """Copy changed learning rates into the tensors that the graphs read."""
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            if group["lr"] is not rate:
                rate.fill_(float(group["lr"]))
                group["lr"] = rate

    @staticmethod
    def _as_before(_: Optimizer, state: dict[str, Any]) -> None:
        """Put numbers into a state dict in place of the tensors that graphs read."""
        for group in state["param_groups"]:
            group |= {name: float(group[name]) for name in ("lr", "initial_lr") if isinstance(group.get(name), Tensor)}
            group |= {"capturable": False} if "capturable" in group else {}

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Run on the stream of the captures, after the work that the caller has queued and before its later work."""
        if self.stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)
