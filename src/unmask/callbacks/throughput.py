"""Images trained on per second, what they cost, and how much of the time is spent waiting for them."""

from time import perf_counter

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.utilities.types import STEP_OUTPUT

from unmask.callbacks.model_flops import count_flops
from unmask.callbacks.trainer_state import ends_interval, logging_interval
from unmask.types import ImageBatch

IMAGES_PER_S = "system/images_per_s"
DATA_WAIT = "system/data_wait"
TFLOPS = "system/model_tflops"
UTILIZATION = "system/mfu"


class Throughput(Callback):
    """Logs `system/images_per_s`, over all devices, and `system/data_wait` every `trainer.log_every_n_steps` steps.

    `system/data_wait` is the fraction, in 0..1, of this device's time from the end of one batch to the start of the
    next: waiting for the loader, moving the batch to the device and what is done to it there. Above some 0.05 a faster
    loader would speed training up. Whatever later callbacks do at the end of a batch, such as writing a checkpoint, is
    in it too.

    Counted is the time between the ends of consecutive training batches: loading and whatever else happens between
    them is in it; validation, what is done between epochs and the process's first batch are not. The device is
    never waited for, so a value says how fast steps were queued, which in a steady run is how fast they are done.

    `system/model_tflops` is what these images take of the method itself, in 1e12 operations per second over all
    devices: matrix products, convolutions and attention of the tokens that are encoded and decoded, forward and
    backward (`count_flops`). `system/mfu` is that over the peak of the devices, in 0..1 (model FLOP utilization).

    Args:
        peak_tflops: Of one device in the run's precision. None takes what Lightning knows of it; of a CPU it knows
            nothing, and no utilization is logged.

    Raises:
        ValueError: The peak is not positive.
    """

    def __init__(self, *, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"callbacks.throughput.peak_tflops must be above 0, got {peak_tflops}")
        self.peak_tflops = peak_tflops
        self._flops_an_image: float | None = None
        self._last_end: float | None = None
        self._seconds = 0.0
        self._waited = 0.0
        self._images = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._flops_an_image = count_flops(pl_module)
            if self.peak_tflops is None:
                self.peak_tflops = _known_peak(trainer)

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
            if self._flops_an_image is not None:
                tflops = 1e-12 * self._flops_an_image * self._images / self._seconds
                pl_module.log(TFLOPS, tflops)
                if self.peak_tflops is not None:
                    pl_module.log(UTILIZATION, tflops / (self.peak_tflops * trainer.world_size))
            self._seconds, self._waited, self._images = 0.0, 0.0, 0

    def _leave_out_pause(self) -> None:
        if self._last_end is not None:
            self._last_end = perf_counter()


def _known_peak(trainer: Trainer) -> float | None:
    """The peak of a device in the run's precision, in 1e12 operations per second; None where Lightning has none."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    name = str(trainer.precision)
    dtype = torch.bfloat16 if name.startswith("bf16") else torch.float16 if name.startswith("16") else torch.float32
    flops = get_available_flops(device, dtype)
    return None if flops is None else 1e-12 * flops
