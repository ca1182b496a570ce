"""What a run is about to do, read from the objects that will do it."""

import logging
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Int
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from unmask.backbones.base import MaskedBackbone
from unmask.callbacks.time_left import describe_duration
from unmask.callbacks.trainer_state import completes_step, total_steps
from unmask.data.datamodule import ImageDataModule
from unmask.methods.backbone_module import BackboneModule

_LABEL_WIDTH = 13  # characters
_TIMED_STEPS = 10  # after the first, which may compile kernels or start workers
_WARMED_UP = 1.0 - 1e-9  # of the peak: schedules compute it by a cosine

_log = logging.getLogger("unmask")


class SettingsCard(Callback):
    """Prints, before the first step, what the built objects hold, and after some steps what the run will cost.

    Method and backbone with their parameters; images of each split and where they come from; how the batch comes
    together; the steps; the peak of the learning rate, its warm-up and its end, as the built schedule computes them;
    the masked fraction; device, precision and seed; the folder. From the first process alone.

    Args:
        learning_rate: How the peak came about, such as "= base_lr 0.00015 x 64 / 256 (linear scaling)".
        seed: Of the run.
        limits_batch: What an explanation of the batch ends with where `images_per_device` decided it; may be empty.
        waiting: How threads of the CPU wait for each other; may be empty.
    """

    def __init__(self, *, learning_rate: str, seed: int, limits_batch: str = "", waiting: str = "") -> None:
        self.learning_rate = learning_rate
        self.seed = seed
        self.limits_batch = limits_batch
        self.waiting = waiting
        self._steps_seen = 0
        self._timed_from: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps_seen, self._timed_from = 0, None
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        method: Any = pl_module
        for name, value in self._lines(trainer, method, data).items():
            _log.info(f"{name:>{_LABEL_WIDTH}}  {value}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if self._steps_seen > _TIMED_STEPS or not completes_step(trainer, batch_idx):
            return
        self._steps_seen += 1
        if self._timed_from is None:
            self._timed_from = perf_counter()
        elif self._steps_seen > _TIMED_STEPS and trainer.is_global_zero:
            seconds = (perf_counter() - self._timed_from) / _TIMED_STEPS
            _log.info(f"{'expected':>{_LABEL_WIDTH}}  {_describe_cost(trainer, pl_module, seconds)}")

    def _lines(self, trainer: Trainer, method: BackboneModule, data: ImageDataModule) -> dict[str, str]:
        height, width = method.exported_backbone.image_size
        batch = describe_batch(trainer, data.global_batch_size)
        return {
            "method": _describe_method(method),
            "images": f"{data.describe_splits()}; {height}x{width} px",
            **(
                {"pixels": data.statistics.describe(len(data.dataset("train")))} if data.statistics.are_measured else {}
            ),
            **_described("masked", _masked_fraction(method, data)),
            "batch": f"{batch}{self.limits_batch}; {_describe_length(trainer)}",
            "learning rate": describe_schedule(trainer, self.learning_rate),
            "device": f"{_describe_devices(trainer)}, precision {trainer.precision}, seed {self.seed}",
            **_described("best.ckpt", _describe_best(trainer, method)),
            **_described("threads", self._describe_threads(trainer)),
            "output": str(trainer.default_root_dir),
        }

    def _describe_threads(self, trainer: Trainer) -> str | None:
        computes_on_threads = self.waiting and trainer.strategy.root_device.type == "cpu"
        return f"{torch.get_num_threads()}, {self.waiting}" if computes_on_threads else None


def _describe_devices(trainer: Trainer) -> str:
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    machines = f" on each of {trainer.num_nodes} machines" if trainer.num_nodes > 1 else ""
    return f"{trainer.num_devices} x {kind}{machines}"


def describe_batch(trainer: Trainer, global_batch_size: int) -> str:
    """Says how the images of an optimizer step come together: `256 = 64 x 2 device(s) x 2 accumulated`."""
    accumulated = trainer.accumulate_grad_batches
    each = global_batch_size // (trainer.world_size * accumulated)
    return f"{global_batch_size} = {each} x {trainer.world_size} device(s) x {accumulated} accumulated"


def describe_schedule(trainer: Trainer, origin: str) -> str:
    """Says what the learning rate does, by asking the built schedule for every step of the run.

    Args:
        trainer: Whose optimizer and schedule are built.
        origin: How the peak came about.
    """
    optimizer = trainer.optimizers[0]
    peaks = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    peak, steps = max(peaks), total_steps(trainer)
    schedules = trainer.lr_scheduler_configs
    if not schedules or not isinstance(schedules[0].scheduler, LambdaLR) or steps is None:
        return f"{peak:.3g} at its peak {origin}"
    rate = schedules[0].scheduler.lr_lambdas[peaks.index(peak)]
    factors = torch.tensor([float(rate(step)) for step in range(steps)])
    first_peak = int((factors >= _WARMED_UP * factors.max()).nonzero()[0])
    steps_up = f"{first_peak:,} step{'s' if first_peak > 1 else ''}"
    rise = f"; {steps_up} of warm-up from {peak * factors[0]:.3g}" if first_peak else "; no warm-up"
    return f"{peak * float(factors.max()):.3g} at its peak {origin}{rise}, {peak * factors[-1]:.3g} at the last step"


def _describe_method(method: BackboneModule) -> str:
    backbone: MaskedBackbone = method.exported_backbone
    trainable = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    own = sum(parameter.numel() for parameter in backbone.parameters())
    return (
        f"{type(method).__name__}, {trainable / 1e6:.2f} M trainable parameters; "
        f"backbone {type(backbone).__name__}, {own / 1e6:.2f} M"
    )


def _describe_best(trainer: Trainer, method: BackboneModule) -> str | None:
    """What the best checkpoint is the best of; None where none is kept."""
    kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    best = next((callback for callback in kept if callback.monitor is not None), None)
    if best is None:
        return None
    said = f"{'largest' if best.mode == 'max' else 'smallest'} {best.monitor}"
    if best.monitor == "val/loss" and method.has_moving_targets:
        return f"{said}, which says little of {type(method).__name__}; with probes.mine.data=own it follows a probe"
    return said


def _describe_length(trainer: Trainer) -> str:
    steps, accumulated = total_steps(trainer), trainer.accumulate_grad_batches
    an_epoch = -(-int(trainer.num_training_batches) // accumulated)
    if steps is None:
        return f"{an_epoch:,} steps an epoch, no end"
    return f"{an_epoch:,} steps an epoch, {steps / an_epoch:.4g} epochs, {steps:,} steps"


def _masked_fraction(method: BackboneModule, data: ImageDataModule) -> str | None:
    """The fraction of an image that the method masks, on average over its stages; None where it masks nothing."""
    images = torch.zeros(1, len(data.pixel_mean), *method.exported_backbone.image_size, device=method.device)
    index: Int[Tensor, " 1"] = torch.zeros(1, dtype=torch.int64, device=method.device)
    mask = method.held_out_mask(images, index)
    if mask is None:
        return None
    by_stage = [stage for stage in mask.by_stage if stage is not None]
    fractions = [float(stage.masked.float().mean()) for stage in by_stage or [mask]]
    if len(fractions) == 1:
        return f"{fractions[0]:.0%} of an image"
    return f"{', '.join(f'{fraction:.0%}' for fraction in fractions)} of an image, by stage"


def _describe_cost(trainer: Trainer, module: LightningModule, seconds: float) -> str:
    steps = total_steps(trainer)
    left = "" if steps is None else f"{describe_duration(seconds * (steps - trainer.global_step))} to the end, "
    moments = [value for state in trainer.optimizers[0].state.values() for value in state.values()]
    size = sum(value.nbytes for value in [*module.state_dict().values(), *moments] if torch.is_tensor(value))
    return f"{left}{seconds:.3g} s a step without validation; {size / 1e6:,.0f} MB a checkpoint"


def _described(name: str, value: str | None) -> dict[str, str]:
    return {} if value is None else {name: value}
