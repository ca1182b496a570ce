"""No step is made with numbers that are not finite."""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer

from unmask.callbacks.first_nonfinite import find_first_nonfinite
from unmask.callbacks.step_seeding import StepSeeding
from unmask.callbacks.stopping import NumbersFailed
from unmask.callbacks.trainer_state import require_positive
from unmask.types import ImageBatch

BOX_KEY = "nonfinite"
CHOICES = ("stop", "skip")
_NUM_NAMES_SHOWN = 3

_log = logging.getLogger("unmask")


class NonfiniteGuard(Callback):
    """Looks at loss and gradients before every optimizer step; where one is not finite, the step is not made.

    The batch, the weights, the step, the layer where it began and the parameters with bad gradients are written to
    `nonfinite/step_00000012.ckpt` in the run's folder, a checkpoint which `python -m unmask.replay FILE` computes
    again. Then the run stops, or, with "skip", goes on with the next batch. All devices do the same.

    A gradient scaler (float16) tries scales that are too large and leaves out those steps itself; only their number in
    a row is watched then.

    Args:
        folder: The run's.
        on_nonfinite: "stop": the run ends with exit code 3; "skip": the step is left out.
        max_skips: Steps in a row that may be left out; one more ends the run.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(self, *, folder: str | Path, on_nonfinite: str = "stop", max_skips: int = 20) -> None:
        if on_nonfinite not in CHOICES:
            raise ValueError(f"on_nonfinite must be 'stop' or 'skip', got {on_nonfinite!r}")
        require_positive("max_skips", max_skips)
        self.folder = Path(folder) / "nonfinite"
        self.on_nonfinite = on_nonfinite
        self.max_skips = max_skips
        self._skipped_in_a_row = 0
        self._batch: tuple[ImageBatch, int] | None = None
        self._is_loss_finite: Tensor | None = None
        self._box: dict[str, Any] | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch, batch_idx: int
    ) -> None:
        self._batch = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        is_finite = loss.detach().isfinite()
        before = self._is_loss_finite  # of the batches accumulated so far
        self._is_loss_finite = is_finite if before is None else before & is_finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        is_loss_bad = self._is_loss_finite is not None and not bool(self._is_loss_finite)
        self._is_loss_finite = None
        is_bad = is_loss_bad or not _has_finite_gradients(pl_module)
        first_rank = trainer.global_rank if is_bad else trainer.world_size
        if trainer.world_size > 1:
            shared = torch.tensor(first_rank, device=trainer.strategy.root_device)
            first_rank = int(trainer.strategy.reduce(shared, reduce_op="min"))
        if first_rank == trainer.world_size:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
        if has_scaler and not is_loss_bad and self._skipped_in_a_row <= self.max_skips:
            return  # which leaves the step out itself
        self._leave_out(trainer, pl_module, first_rank)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: ImageBatch, batch_idx: int
    ) -> None:
        self._batch = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._box is not None:
            checkpoint[BOX_KEY] = self._box

    def state_dict(self) -> dict[str, Any]:
        return {"skipped_in_a_row": self._skipped_in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._skipped_in_a_row = int(state_dict["skipped_in_a_row"])

    def _leave_out(self, trainer: Trainer, pl_module: LightningModule, rank: int) -> None:
        path = self.folder / f"step_{trainer.global_step:08d}.ckpt"
        box = self._describe(trainer, pl_module) if trainer.global_rank == rank else None
        box = box if trainer.world_size == 1 else trainer.strategy.broadcast(box, src=rank)
        assert box is not None
        if self._skipped_in_a_row == 1 or self.on_nonfinite == "stop":  # of a row the first alone: they are large
            self._box = box
            trainer.save_checkpoint(path)
            self._box = None
        for parameter in pl_module.parameters():
            parameter.grad = None  # an optimizer leaves out what has no gradient
        what = f"{_sentence(box)} at step {trainer.global_step} (epoch {trainer.current_epoch + 1})"
        if self.on_nonfinite == "stop":
            raise NumbersFailed(
                f"{what}; the step was not taken. python -m unmask.replay {path} computes it again; lower the learning "
                "rate, set trainer.gradient_clip_val, or skip such steps by on_nonfinite=skip"
            )
        if self._skipped_in_a_row > self.max_skips:
            raise NumbersFailed(f"{what}; {self.max_skips} steps in a row were skipped before it")
        if trainer.is_global_zero:
            _log.warning(f"{what}; the step is skipped ({self._skipped_in_a_row} in a row of at most {self.max_skips})")

    def _describe(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        assert self._batch is not None
        batch, batch_idx = self._batch
        gradients = [name for name, p in pl_module.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepSeeding):  # the generators as the step found them
                callback.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        with trainer.precision_plugin.forward_context():
            layer, loss = find_first_nonfinite(pl_module, batch, batch_idx)
        return {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "batch_idx": batch_idx,
            "images": batch.image.detach().cpu(),
            "labels": batch.label.detach().cpu(),
            "indices": batch.index.detach().cpu(),
            "loss": loss,
            "first_layer": layer,
            "bad_gradients": gradients,
            "precision": str(trainer.precision),
        }


def _sentence(box: dict[str, Any]) -> str:
    where = f"first in {box['first_layer']}" if box["first_layer"] else "the layers' outputs are finite"
    names = ", ".join(box["bad_gradients"][:_NUM_NAMES_SHOWN])
    what = f"the gradient of {names}" if box["loss"] == box["loss"] and names else "the loss"
    return f"{what} is not finite ({where}, images {box['indices'].tolist()})"


def _has_finite_gradients(module: LightningModule) -> bool:
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if not gradients:
        return True
    norms = torch._foreach_norm(gradients)  # one kernel, and one wait for the device
    return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
