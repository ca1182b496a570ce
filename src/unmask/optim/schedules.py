"""Learning-rate schedules, one value an optimizer step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: float,
    warmup_epochs: float,
    start_factor: float = 0.0,
    final_factor: float = 0.0,
) -> LambdaLR:
    """Rises linearly from `start_factor` to 1, then falls to `final_factor` along half a cosine (MAE).

    With t steps done, w of warm-up and T in all: `start + (1 - start) t / w` for t < w, then
    `final + (1 - final) / 2 * (1 + cos(pi (t - w) / (T - w)))`.

    Args:
        optimizer: Each group's rate is multiplied, so layer-wise rates keep their proportions to the end.
        total_steps: Optimizer steps of the run, over all epochs.
        steps_per_epoch: Optimizer steps an epoch.
        warmup_epochs: Length of the rise.
        start_factor, final_factor: Shares of the peak at the first step and after the last.

    Raises:
        ValueError: The warm-up is as long as the run.
    """
    warmup = _warmup_steps(warmup_epochs, steps_per_epoch, total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return start_factor + (1.0 - start_factor) * step / warmup
        return _half_cosine((step - warmup) / (total_steps - warmup), final_factor)

    return LambdaLR(optimizer, factor)


def warmup_then_cosine_from_start(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: float,
    warmup_epochs: float,
    start_factor: float = 0.0,
    final_factor: float = 0.0,
) -> LambdaLR:
    """As `warmup_cosine`, but the cosine counts from step 0, so the rate drops where warm-up ends (SimMIM).

    The official SimMIM code behaves so: with a tenth of the run as warm-up the rate falls to 0.976 of the peak.
    Arguments and errors are those of `warmup_cosine`.
    """
    warmup = _warmup_steps(warmup_epochs, steps_per_epoch, total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return start_factor + (1.0 - start_factor) * step / warmup
        return _half_cosine(step / total_steps, final_factor)

    return LambdaLR(optimizer, factor)


def step_decay(
    optimizer: Optimizer, *, steps_per_epoch: float, every_n_epochs: float, factor: float, **_: float
) -> LambdaLR:
    """Multiplies every rate by `factor` after each `every_n_epochs` epochs (the original DDMIM: 0.1 after 20).

    Raises:
        ValueError: `every_n_epochs` is not positive.
    """
    if every_n_epochs <= 0:
        raise ValueError(f"schedule.every_n_epochs must be above 0, got {every_n_epochs}")
    period = max(1, round(every_n_epochs * steps_per_epoch))  # optimizer steps
    return LambdaLR(optimizer, lambda step: factor ** (step // period))


def constant(optimizer: Optimizer, **_: float) -> LambdaLR:
    """Keeps every group's rate, however long the run."""
    return LambdaLR(optimizer, _one)


def _one(_: int) -> float:
    return 1.0


def _half_cosine(progress: float, final_factor: float) -> float:
    return final_factor + (1.0 - final_factor) / 2 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def _warmup_steps(warmup_epochs: float, steps_per_epoch: float, total_steps: int) -> int:
    warmup = round(warmup_epochs * steps_per_epoch)
    if warmup and warmup >= total_steps:
        raise ValueError(
            f"schedule.warmup_epochs={warmup_epochs:g} takes {warmup} steps, but the run has only {total_steps}; "
            f"use less than {total_steps / steps_per_epoch:g}"
        )
    return warmup
