"""Images trained on per second, and how much of the time is spent waiting for them."""

from time import perf_counter

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from unmask.callbacks.trainer_state import ends_interval, logging_interval
from unmask.types import ImageBatch

IMAGES_PER_S = "system/images_per_s"
DATA_WAIT = "system/data_wait"


class Throughput(Callback):
    """Logs `system/images_per_s`, over all devices, and `system/data_wait` every `trainer.log_every_n_steps` steps.

    `system/data_wait` is the fraction, in 0..1, of this device's time from the end of one batch to the start of the
    next: waiting for the loader, moving the batch to the device and what is done to it there. Above some 0.05 a faster
    loader would speed training up. Whatever later callbacks do at the end of a batch, such as writing a checkpoint, is
    in it too.

    Counted is the time between the ends of consecutive training batches: loading and whatever else happens between
    them is in it; validation, what is done between epochs and the process's first batch are not. The device is
    never waited for, so a value says how fast steps were queued, which in a steady run is how fast they are done.
    """

    def __init__(self) -> None:
        self._last_end: float | None = None
        self._seconds = 0.0
        self._waited = 0.0
        self._images = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_end, self._seconds, self._waited, self._images = None, 0.0, 0.0, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_out_pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_out_pause()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch, batch_idx: int
    ) -> None:
        if self._last_end is not None:
            self._waited += perf_counter() - self._last_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: ImageBatch, batch_idx: int
    ) -> None:
        now = perf_counter()
        if self._last_end is not None:
            self._seconds += now - self._last_end
            self._images += len(batch.image) * trainer.world_size
        self._last_end = now
        if self._images and ends_interval(trainer, batch_idx, logging_interval(trainer)):
            pl_module.log(IMAGES_PER_S, self._images / self._seconds)
            pl_module.log(DATA_WAIT, self._waited / self._seconds)
            self._seconds, self._waited, self._images = 0.0, 0.0, 0

    def _leave_out_pause(self) -> None:
        if self._last_end is not None:
            self._last_end = perf_counter()
