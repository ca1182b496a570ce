"""What several callbacks read from a running trainer."""

import math

from lightning import Trainer


def ends_interval(trainer: Trainer, batch_idx: int, every_n_steps: int) -> bool:
    """Whether the batch just done completed an optimizer step whose number is a multiple of `every_n_steps`."""
    return completes_step(trainer, batch_idx) and trainer.global_step % every_n_steps == 0


def completes_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the batch just done completed an optimizer step; otherwise gradients wait for further batches."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def precedes_validation(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the epoch's end or a validation within the epoch follows the batch just done."""
    interval = trainer.val_check_batch  # batches; None or infinite without validations
    if trainer.is_last_batch or interval is None or math.isinf(interval):
        return trainer.is_last_batch
    counts_within_epoch = trainer.check_val_every_n_epoch is not None
    batches = batch_idx + 1 if counts_within_epoch else trainer.fit_loop.total_batch_idx + 1
    return bool(batches % interval == 0)


def is_last_epoch(trainer: Trainer) -> bool:
    """Whether the epoch that ends now completes the run."""
    epochs_done = trainer.current_epoch + 1
    has_all_epochs = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs_done
    return has_all_epochs or 0 <= trainer.max_steps <= trainer.global_step


def logging_interval(trainer: Trainer) -> int:
    """Optimizer steps between two logged ones."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]  # set where Lightning declares no type


def learning_rate(trainer: Trainer) -> float:
    """The largest rate of the first optimizer's groups: the undecayed one where layers have their own."""
    return float(max(group["lr"] for group in trainer.optimizers[0].param_groups))


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run; None where it has no end."""
    steps = trainer.estimated_stepping_batches
    return None if math.isinf(steps) else int(steps)


def require_positive(name: str, value: int) -> None:
    """Raises a ValueError that names the setting unless it is at least 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
