"""Adaptive rank inside transformers.Trainer and whatever is derived from it.

    class RankTrainer(RankTrainerMixin, Trainer): ...

    RankTrainer(model=model, args=args, train_dataset=rows, controller=controller).train()

    the Trainer                          the mixin
    create_optimizer                     attaches the controller; a checkpoint's optimiser state is loaded after this
    training_step, once per micro-batch  after the accumulation's last: controller.after_backward
    clipping, optimizer.step             the controller's own hooks
    model.zero_grad

No callback will do: `on_train_begin` comes after the optimiser state was loaded, `on_pre_optimizer_step` after clipping.
Written against transformers 5's Trainer, of which only `create_optimizer`, `training_step` and `train` are overridden.
"""

from typing import TYPE_CHECKING, Any

import torch

from adarank.compaction import CONTROLLER, unwrap
from adarank.controller import RankController
from adarank.errors import SettingError
from adarank.schedules import never

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


class RankTrainerMixin(Trainer):
    """Put it before a Trainer class; the keyword `controller` is a RankController over the adapters of `model`.

    The schedule's total is the number of optimiser steps that the Trainer takes (`max_steps`, or epochs × steps per
    epoch). Raises SettingError where it is not, for FSDP, DeepSpeed and nn.DataParallel, and for compaction where the
    Trainer would load or share the Parameters that compaction replaces; RuntimeError where the controller's steps are
    not the Trainer's (a checkpoint without optimiser state, a second `train()`).
    """

    def __init__(self, *args: Any, controller: RankController, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rank_controller = controller
        self._begun = False
        for parallel, name in (
            (self.is_deepspeed_enabled, "DeepSpeed"),
            (self.is_fsdp_enabled, "FSDP"),
            (self.args.n_gpu > 1, "nn.DataParallel"),
        ):
            if parallel:
                raise SettingError(
                    f"{name} replaces the adapters' parameters or the optimiser, and a RankController would not "
                    "notice; valid: one device, or DistributedDataParallel (torchrun, accelerate launch)"
                )
        self._check_compaction(self.args.load_best_model_at_end, "load_best_model_at_end=True loads weights of other shapes")
        self._check_compaction(self.args.world_size > 1, "DistributedDataParallel knows the old Parameters alone")

    def _check_compaction(self, concerned: bool, reason: str) -> None:
        if concerned and self.rank_controller.compaction != "off":
            raise SettingError(
                f"compaction={self.rank_controller.compaction!r} makes new Parameters, and {reason}; valid: "
                "compaction='off', and adarank.compact(model) after training"
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        self._check_compaction(
            bool(resume_from_checkpoint), "to resume, the Trainer loads the model before it knows which triplets are left"
        )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if getattr(unwrap(optimizer), CONTROLLER, None) is not self.rank_controller:
            self.rank_controller.attach(optimizer)
        self._begun = False
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self._begun:
            self._begin()
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            scaler = self.accelerator.scaler  # fp16: gradients are still scaled here, clipping unscales them
            scale = None if scaler is None else scaler.scale(torch.ones((), device=loss.device))
            self.rank_controller.after_backward(scale)
        return loss

    def _begin(self) -> None:
        """Before the first backward pass of a `train()`: are the schedule and the Trainer at the same step of the same
        number? With a scaler the controller may lag: it does not count overflows, the Trainer does."""
        controller, state = self.rank_controller, self.state
        total = controller.schedule.total
        if total not in (state.max_steps, never(1).total):
            raise SettingError(
                f"schedule.total={total}, but the Trainer takes {state.max_steps} optimiser steps; valid: "
                f"total={state.max_steps}, or max_steps={total} in its arguments"
            )
        lag = state.global_step - controller.step
        if lag and not (self.accelerator.scaler is not None and 0 < controller.step < state.global_step):
            raise RuntimeError(
                f"the Trainer is at step {state.global_step}, its RankController at {controller.step}; a checkpoint to "
                "resume from needs its optimiser state (save_only_model=False), and another run a controller of its own"
            )
        self._begun = True
