"""Adaptive rank in transformers.Trainer and its subclasses.

    class RankTrainer(RankTrainerMixin, Trainer): ...

    RankTrainer(model=model, args=args, train_dataset=rows, controller=controller).train()

    the Trainer                          the mixin
    create_optimizer                     attaches the controller; a checkpoint's optimiser state is loaded after this
    training_step, once per micro-batch  after the last one of a step: controller.after_backward
    clipping, optimizer.step             the controller's own hooks
    log                                  adds the budget and the mean rank to the training loss
    _save                                also writes TRAINED: all but the frozen parameters, including masks
    _load_from_checkpoint, _load_best…   read it: some Trainers would build a model without adapters from the folder

Callbacks run too late: `on_train_begin` after the optimiser's state is loaded, `on_pre_optimizer_step` after clipping.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adarank import adaptation
from adarank.adapters.layers import wrappers_of
from adarank.controller import RankController
from adarank.errors import SettingError
from adarank.optimizers import CONTROLLER, unwrap
from adarank.schedules import never

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object

TRAINED = "trained.safetensors"  # in a checkpoint, next to the Trainer's own files


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without the base's frozen parameters, but with frozen adapters, which were trained or drawn."""
    factors = {id(p) for wrapper in wrappers_of(model).values() for p in wrapper.parameters(recurse=False)}
    named = model.named_parameters(remove_duplicate=False)
    frozen = {name for name, p in named if not p.requires_grad and id(p) not in factors}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


class RankTrainerMixin(Trainer):
    """A mixin to list before a Trainer class; the keyword `controller` is a RankController over the model's adapters.

    The schedule's total must be the number of optimiser steps that the Trainer takes (`max_steps`, or epochs × steps
    per epoch). Raises SettingError if it is not, for FSDP, DeepSpeed and nn.DataParallel, and for compaction if the
    Trainer would load or share the Parameters that compaction replaces; RuntimeError if the controller and the Trainer
    are at different steps (a checkpoint without optimiser state, a second `train()`).
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
                    f"{name} replaces the adapters' parameters or the optimiser without the RankController noticing; "
                    "use one device, or DistributedDataParallel (torchrun, accelerate launch)"
                )
        if self.args.auto_find_batch_size:
            raise SettingError(
                "auto_find_batch_size must be False with a RankController (got True): after an out-of-memory error the "
                "Trainer starts again with a new optimiser and a different number of steps; set "
                "per_device_train_batch_size instead"
            )
        if getattr(self.args, "sync_ref_model", False):  # TRL's
            raise SettingError(
                "sync_ref_model must be False with adapters (got True): it mixes the parameters of two models in their "
                "order, and the reference model has no adapters"
            )
        self._check_compaction(
            self.args.load_best_model_at_end, "load_best_model_at_end=True loads weights of different shapes"
        )
        self._check_compaction(self.args.world_size > 1, "DistributedDataParallel keeps only the old Parameters")

    def _check_compaction(self, concerned: bool, reason: str) -> None:
        if concerned and self.rank_controller.compaction != "off":
            raise SettingError(
                f"compaction={self.rank_controller.compaction!r} creates new Parameters, and {reason}; use "
                "compaction='off', and adarank.compact(model) after training"
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        self._check_compaction(
            bool(resume_from_checkpoint),
            "when resuming, the Trainer loads the model before it knows which triplets are left",
        )
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self._report_ranks()
        return output

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
        """Before the first backward pass of a `train()`, check that the controller and the Trainer are at the same step
        of the same total. With a scaler the controller may lag, because only the Trainer counts overflows."""
        controller, state = self.rank_controller, self.state
        total = controller.schedule.total
        if total not in (state.max_steps, never(1).total):
            raise SettingError(
                f"schedule.total must be {state.max_steps}, the Trainer's number of optimiser steps (got {total}); set "
                f"total={state.max_steps}, or max_steps={total} in its arguments"
            )
        lag = state.global_step - controller.step
        if lag and not (self.accelerator.scaler is not None and 0 < controller.step < state.global_step):
            raise RuntimeError(
                f"the Trainer is at step {state.global_step}, but its RankController is at {controller.step}; resuming "
                "needs a checkpoint with the optimiser's state (save_only_model=False), and a new run needs a new "
                "controller"
            )
        self._begun = True

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs | self.rank_controller.budget_now() if "loss" in logs else logs, *args, **kwargs)

    def _report_ranks(self) -> None:
        """Print the final ranks; warn if the final budget was never reached."""
        controller = self.rank_controller
        if not self.is_world_process_zero() or controller.score is None:
            return
        if not controller.is_settled:
            warnings.warn(
                f"training ended after {controller.step} steps, before the final budget of {controller.schedule.final} "
                f"{controller.unit}, which the schedule reaches at step {controller.schedule.settled + 1}; the ranks "
                "are not the requested ones: train longer, or give the schedule a smaller total",
                stacklevel=3,
            )
        kept = adaptation.ranks(self.model)
        mean = sum(kept.values()) / len(kept)
        print(f"Final ranks (mean {mean:.2f}): " + ", ".join(f"{name} {rank}" for name, rank in kept.items()))

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        super()._save(output_dir, *args, **kwargs)
        if self.args.should_save:
            trained = {name: tensor.clone() for name, tensor in _trained(self.model).items()}  # tied ones share memory
            save_file(trained, Path(output_dir or self.args.output_dir) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *_: Any, **__: Any) -> None:
        path = Path(resume_from_checkpoint) / TRAINED
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; the checkpoint was saved by a Trainer without RankTrainerMixin"
            )
        state = load_file(path)
        if other := sorted(state.keys() ^ _trained(self.model).keys()):
            raise RuntimeError(f"{path} and the model have different adapters: only one of them has {other[0]}")
        self.model.load_state_dict(state, strict=False)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)
