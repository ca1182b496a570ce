"""What several callbacks read from a running trainer."""

import math

from lightning import Trainer


def ends_interval(trainer: Trainer, batch_idx: int, every_n_steps: int) -> bool:
    """Whether the batch just done completed an optimizer step whose number is a multiple of `every_n_steps`."""
    completes_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
    return completes_step and trainer.global_step % every_n_steps == 0


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
