"""The newest state of a run, whatever its validation loss."""

import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT

from unmask.callbacks.trainer_state import completes_step, precedes_validation

LAST_NAME = "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` after every epoch and, within epochs, every `every_minutes` minutes.

    Lightning's `ModelCheckpoint` writes its `last` only together with a best one, and its own timer also in the middle
    of accumulated batches, where no run can be continued. Within an epoch the file is written as an optimizer step
    ends, and never right before a validation, which a continued run would leave out.

    It should be the last of the callbacks that write checkpoints, so that the file holds what the others remember.

    Args:
        dirpath: Folder of the file.
        every_minutes: Most minutes between two files, besides those of the ends of epochs; null writes only these.

    Raises:
        ValueError: `every_minutes` is not positive.
    """

    def __init__(self, *, dirpath: str | Path, every_minutes: float | None = 10.0) -> None:
        if every_minutes is not None and not every_minutes > 0:
            raise ValueError(f"checkpoint_every_minutes must be above 0, or null for none, got {every_minutes}")
        self.path = Path(dirpath) / LAST_NAME
        self.every_minutes = every_minutes
        self._saved_at_step: int | None = None
        self._saved_at = 0.0  # seconds, of the monotonic clock

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at_step, self._saved_at = None, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if not completes_step(trainer, batch_idx) or precedes_validation(trainer, batch_idx):
            return
        if self._is_due(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        if self.every_minutes is None:
            return False
        is_due = time.monotonic() - self._saved_at >= 60.0 * self.every_minutes
        # The clocks of several processes differ, and all take part in saving.
        return is_due if trainer.world_size == 1 else bool(trainer.strategy.broadcast(is_due))

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run or self._saved_at_step == trainer.global_step:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path)
        self._saved_at_step, self._saved_at = trainer.global_step, time.monotonic()
