"""Progress in checkpoints from which Lightning continues without leaving out a validation or an epoch."""

import math
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

_COUNTERS = ("ready", "started", "processed", "completed")


class ExactResume(Callback):
    """Rewrites a checkpoint's progress where Lightning 2.6 would leave something out when continuing from it.

    Written before or within a validation: the resumed run validates from the first batch, where Lightning leaves the
    validation out. Written on the last batch of an epoch without a validation: the next epoch begins as any other,
    where Lightning forgets to count it. Written at the end of an epoch in a run with `max_steps`: the next epoch is
    trained, where Lightning takes it for done. Written as an epoch ends early, by `max_time` or `max_steps`: its rest
    is trained, where Lightning goes on with the next one.

    It should be the first callback, so that the others find the epoch counted right when a resumed training starts.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        progress = checkpoint["loops"]["fit_loop"]
        batches = progress["epoch_loop.batch_progress"]
        is_batch_ending = batches["total"]["processed"] == batches["total"]["completed"] + 1
        if (is_batch_ending and _is_validation_due(trainer)) or (trainer.validating and not _has_validated(progress)):
            _complete_batch(batches)
            _leave_validation_to_do(progress["epoch_loop.val_loop.batch_progress"])
        elif is_batch_ending and trainer.is_last_batch:
            _complete_batch(batches)
            progress["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
            for counters in _both(progress["epoch_progress"]):
                counters["processed"] += 1
        elif _ends_early(progress, trainer):
            for counters in _both(progress["epoch_progress"]):
                counters["processed"] -= 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loop = trainer.fit_loop
        if loop.restarted_on_epoch_end:
            loop.epoch_progress.increment_completed()
            loop.epoch_loop.restarting = False
            loop.reset_restart_stage()


def _ends_early(progress: dict[str, Any], trainer: Trainer) -> bool:
    """Whether an epoch counts as processed of which batches are left."""
    epochs, batches = progress["epoch_progress"]["current"], progress["epoch_loop.batch_progress"]
    are_left = not batches["is_last_batch"] and batches["current"]["ready"] < trainer.num_training_batches
    return bool(epochs["processed"] == epochs["completed"] + 1 and are_left)


def _is_validation_due(trainer: Trainer) -> bool:
    every_n_epochs, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or (every_n_epochs and (trainer.current_epoch + 1) % every_n_epochs):
        return False
    if interval is None or math.isinf(interval):  # by time, or as the epoch ends
        return interval is not None and trainer.is_last_batch
    batch_idx = trainer.fit_loop.batch_idx if every_n_epochs else trainer.fit_loop.total_batch_idx
    return (batch_idx + 1) % interval == 0


def _has_validated(progress: dict[str, Any]) -> bool:
    validation = progress["epoch_loop.val_loop.batch_progress"]
    return bool(validation["is_last_batch"] and validation["total"]["ready"] == validation["total"]["completed"])


def _complete_batch(batches: dict[str, Any]) -> None:
    for counters in _both(batches):
        counters["completed"] = counters["processed"]


def _leave_validation_to_do(validation: dict[str, Any]) -> None:
    """Lightning repeats a validation that was interrupted in its first step."""
    validation["is_last_batch"] = False
    validation["current"] |= dict.fromkeys(_COUNTERS, 0)
    validation["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}


def _both(progress: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    return progress["total"], progress["current"]
