"""The newest state of a run, whatever its validation loss."""

import time
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT

from unmask.callbacks.durable_checkpoint import LAST_NAME, DurableCheckpointIO
from unmask.callbacks.stopping import Preempted, RunStopped, StopSignals, launched_processes
from unmask.callbacks.trainer_state import completes_step, is_last_epoch, precedes_validation


class _Request(IntEnum):
    """What a process wants to happen now; of several, all do the greatest."""

    NOTHING = 0
    SAVE = 1
    SAVE_AND_STOP = 2
    STOP = 3


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` after every epoch, every `every_minutes` minutes, and when the run is asked to stop.

    Lightning's `ModelCheckpoint` writes its `last` only together with a best one, and its own timer also in the middle
    of accumulated batches, where no run can be continued. Within an epoch the file is written as an optimizer step
    ends, and never right before a validation, which a continued run would leave out.

    Asked to stop (SIGTERM, Ctrl-C, SIGUSR1, SIGUSR2, SIGHUP) the processes agree at the end of the optimizer step under
    way, save together and raise `Preempted`. During a validation they do not wait for its end; a continued run does it
    anew.

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
        self.signals = StopSignals()
        self._saved_at_step: int | None = None
        self._saved_at = 0.0  # seconds, of the monotonic clock
        self._validation_batches = 0  # during which all processes can still agree
        self._repeats_validation = False
        self._unlogged: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._install_signals(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install_signals(trainer)  # Lightning has set its own in between
        self._saved_at_step, self._saved_at = None, time.monotonic()
        if self._unlogged is not None:
            for logger in trainer.loggers:
                logger.log_metrics(**self._unlogged)
            self._unlogged = None

    def state_dict(self) -> dict[str, Any]:
        return {"unlogged": self._unlogged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._unlogged = state_dict["unlogged"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if completes_step(trainer, batch_idx) and not precedes_validation(trainer, batch_idx):
            request = self._agree(trainer)
            self._unlogged = _readings_to_come(trainer) if request else None
            self._act(trainer, request)
            self._unlogged = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts = [torch.tensor(sum(trainer.num_val_batches), device=trainer.strategy.root_device)]
        if trainer.world_size > 1:
            counts = [trainer.strategy.reduce(counts[0], reduce_op="min")]
        self._validation_batches = int(counts[0])

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking or dataloader_idx > 0 or batch_idx >= self._validation_batches:
            return
        if self._agree(trainer) >= _Request.SAVE_AND_STOP:
            self._repeats_validation = True
            self._act(trainer, _Request.SAVE_AND_STOP)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        request = max(_Request.SAVE, self._agree(trainer))
        self._act(trainer, _Request.SAVE if is_last_epoch(trainer) and request < _Request.STOP else request)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._repeats_validation:
            _begin_validation_anew(checkpoint)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, Preempted):  # then a second signal may be on its way
            self.signals.restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.signals.restore()

    def _install_signals(self, trainer: Trainer) -> None:
        self.signals.install(lambda: [process.pid for process in launched_processes(trainer)])

    def _agree(self, trainer: Trainer) -> _Request:
        request = self._own_request(trainer)
        if trainer.world_size == 1:
            return request
        shared = torch.tensor(int(request), device=trainer.strategy.root_device)
        return _Request(int(trainer.strategy.reduce(shared, reduce_op="max")))

    def _own_request(self, trainer: Trainer) -> _Request:
        if _reason_to_stop(trainer) is not None:
            return _Request.STOP
        if self.signals.received is not None:
            return _Request.SAVE_AND_STOP
        if self.every_minutes is None or not trainer.is_global_zero:  # the clocks of several processes differ
            return _Request.NOTHING
        is_due = time.monotonic() - self._saved_at >= 60.0 * self.every_minutes
        return _Request.SAVE if is_due else _Request.NOTHING

    def _act(self, trainer: Trainer, request: _Request) -> None:
        if request in (_Request.SAVE, _Request.SAVE_AND_STOP):
            self._save(trainer)
        if request is _Request.SAVE_AND_STOP:
            name = "a signal to another process" if self.signals.received is None else self.signals.received.name
            raise Preempted(f"stopped by {name} at step {trainer.global_step}, saved as {self.path}")
        if request is _Request.STOP:
            raise _reason_to_stop(trainer) or RunStopped("another process of this run has stopped it")

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run or self._saved_at_step == trainer.global_step:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path)
        self._saved_at_step, self._saved_at = trainer.global_step, time.monotonic()


def _reason_to_stop(trainer: Trainer) -> RunStopped | None:
    writer = trainer.strategy.checkpoint_io
    return writer.reason_to_stop if isinstance(writer, DurableCheckpointIO) else None


def _readings_to_come(trainer: Trainer) -> dict[str, Any] | None:
    """What Lightning will log of the step just done, only after the callbacks; None where it is no logged step.

    A run that continues from a file written in between would never log it.
    """
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return None
    metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    return {"metrics": {**metrics, "epoch": trainer.current_epoch}, "step": step}


def _begin_validation_anew(checkpoint: dict[str, Any]) -> None:
    """Lets the loops' state say that the validation under way has done nothing yet.

    As Lightning would save it, a continued run would go on in the middle of the validation, with the losses of the
    batches before it forgotten.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    before = progress["total"]["completed"] - progress["current"]["completed"]
    for counters, done in ((progress["current"], 0), (progress["total"], before)):
        counters.update(ready=done + 1, started=done + 1, processed=done, completed=done)
