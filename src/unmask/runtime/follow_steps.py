"""A schedule that is a shape over the run, also where `trainer.max_steps` ends the run before its epochs do."""

from typing import Any

from lightning.pytorch.accelerators import CUDAAccelerator
from omegaconf import DictConfig, ListConfig, OmegaConf

from unmask.optim.accumulation import accumulated_batches

_PLANNED = "${trainer.max_epochs}"  # what recipes state warm-up and milestones as fractions of


def follow_steps(config: DictConfig, *, num_train_images: int) -> None:
    """Lets warm-up and milestones that are fractions of the epochs be fractions of the steps that are really made.

    Lengths written as numbers stay as they are.

    Args:
        config: Of the run; `schedule` is changed where `trainer.max_steps` or `trainer.fast_dev_run` ends the run
            before `trainer.max_epochs`.
        num_train_images: Of the training split; what does not fill a batch is left to the next epoch.
    """
    epochs = _epochs_made(config, num_train_images=num_train_images)
    if epochs is not None:
        raw: Any = OmegaConf.to_container(config.schedule, resolve=False)
        config.schedule = _with_length(raw, repr(epochs))


def _epochs_made(config: DictConfig, *, num_train_images: int) -> float | None:
    """The length of a run that ends before `trainer.max_epochs`; None where that is its length."""
    if config.trainer.get("fast_dev_run"):
        return 1.0  # of so many batches, whatever else is set
    max_steps, max_epochs = config.trainer.get("max_steps"), config.trainer.get("max_epochs")
    if not isinstance(max_steps, int) or max_steps <= 0:
        return None
    epochs = max_steps / steps_an_epoch(config, num_train_images=num_train_images)
    return None if isinstance(max_epochs, int) and 0 <= max_epochs <= epochs else epochs


def steps_an_epoch(config: DictConfig, *, num_train_images: int) -> int:
    """Counts the optimizer steps of an epoch as the Trainer will, 1 at least.

    Args:
        config: Of the run, which may limit the batches of an epoch (`trainer.limit_train_batches`, `overfit_batches`).
        num_train_images: Of the training split; what does not fill a batch is left to the next epoch.
    """
    steps = max(1, num_train_images // int(config.global_batch_size))
    limit = config.trainer.get("overfit_batches") or config.trainer.get("limit_train_batches")
    if limit is None:
        return steps
    parts = _accumulated(config)  # the Trainer's batches are these
    batches = min(limit, steps * parts) if isinstance(limit, int) else int(steps * parts * float(limit))
    return max(1, -(-int(batches) // parts))


def _accumulated(config: DictConfig) -> int:
    given = config.trainer.get("accumulate_grad_batches")
    if given is not None:
        return int(given)
    num_devices = _num_devices(config.trainer) * int(config.trainer.get("num_nodes") or 1)
    return accumulated_batches(
        config.global_batch_size, num_devices=num_devices, images_per_device=config.images_per_device
    )


def _num_devices(trainer: DictConfig) -> int:
    """Devices of a machine; where all there are is asked for, those that Lightning would find."""
    devices = trainer.get("devices", "auto")
    if isinstance(devices, int) and devices > 0:
        return devices
    if isinstance(devices, ListConfig):
        return len(devices)
    is_cpu = trainer.get("accelerator") == "cpu"
    return 1 if is_cpu else max(1, CUDAAccelerator.auto_device_count())


def _with_length(value: Any, epochs: str) -> Any:
    if isinstance(value, dict):
        return {key: _with_length(inner, epochs) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_length(inner, epochs) for inner in value]
    return value.replace(_PLANNED, epochs) if isinstance(value, str) else value
