"""Learning-rate schedules, one value an optimizer step."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

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
    shared_start: bool = False,
    shared_floor: bool = False,
    cosine_epochs: float | None = None,
    warmup_ends_at_peak: bool = False,
) -> LambdaLR:
    """Rises linearly from `start_factor` to 1, then falls to `final_factor` along half a cosine (MAE).

    With t steps done, w of warm-up and T in all: `start + (1 - start) t / w` for t < w, then
    `final + (1 - final) / 2 * (1 + cos(pi (t - w) / (T - w)))`.

    Args:
        optimizer: Each group's rate is multiplied, so layer-wise rates keep their proportions to the end.
        total_steps: Optimizer steps of the run, over all epochs.
        steps_per_epoch: Optimizer steps an epoch.
        warmup_epochs: Length of the rise.
        start_factor, final_factor: Fractions of the peak at the first step and after the last.
        shared_start, shared_floor: Take `start_factor`, `final_factor` of the highest group's peak, for all groups
            alike; the rate of a group whose peak lies below then falls to it and rises again. Layer-wise rates share
            both in SimMIM (timm's schedulers), the floor alone in mmpretrain and neither in MAE.
        cosine_epochs: Length of the fall; null is what the warm-up leaves of the run. A longer one is cut off.
        warmup_ends_at_peak: The last step of the warm-up has the peak already (mmengine's LinearLR), not only the
            first step after it; then the rise is `start + (1 - start) t / (w - 1)`.

    Raises:
        ValueError: The warm-up is as long as the run.
    """
    warmup = _warmup_steps(warmup_epochs, steps_per_epoch, total_steps)
    rise = _rise(warmup, warmup_ends_at_peak=warmup_ends_at_peak)
    fall = total_steps - warmup if cosine_epochs is None else cosine_epochs * steps_per_epoch

    def curve(start: float, floor: float) -> Callable[[int], float]:
        return lambda step: _line(step / rise, start) if step < warmup else _half_cosine((step - warmup) / fall, floor)

    starts = _factors(optimizer, start_factor, shared=shared_start)
    floors = _factors(optimizer, final_factor, shared=shared_floor)
    return LambdaLR(optimizer, list(map(curve, starts, floors)))


def warmup_then_cosine_from_start(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: float,
    warmup_epochs: float,
    start_factor: float = 0.0,
    final_factor: float = 0.0,
    shared_start: bool = False,
    shared_floor: bool = False,
) -> LambdaLR:
    """As `warmup_cosine`, but the cosine counts from step 0, so the rate drops where warm-up ends (SimMIM).

    The official SimMIM code behaves so: with a tenth of the run as warm-up the rate falls to 0.976 of the peak.
    Arguments and errors are those of `warmup_cosine`.
    """
    warmup = _warmup_steps(warmup_epochs, steps_per_epoch, total_steps)

    def curve(start: float, floor: float) -> Callable[[int], float]:
        return lambda step: _line(step / warmup, start) if step < warmup else _half_cosine(step / total_steps, floor)

    starts = _factors(optimizer, start_factor, shared=shared_start)
    floors = _factors(optimizer, final_factor, shared=shared_floor)
    return LambdaLR(optimizer, list(map(curve, starts, floors)))


def warmup_multistep(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: float,
    warmup_epochs: float,
    milestones: Sequence[float],
    start_factor: float = 0.0,
    factor: float = 0.1,
    warmup_ends_at_peak: bool = False,
) -> LambdaLR:
    """Rises linearly from `start_factor` to 1 and is multiplied by `factor` at each milestone (SimMIM, 800 epochs).

    Args:
        optimizer, total_steps, steps_per_epoch, warmup_epochs, start_factor, warmup_ends_at_peak: As in
            `warmup_cosine`.
        milestones: Epochs done when the rate falls, rising.
        factor: What it is multiplied by.

    Raises:
        ValueError: The warm-up is as long as the run, or a milestone lies within it or behind the one after it.
    """
    warmup = _warmup_steps(warmup_epochs, steps_per_epoch, total_steps)
    if any(later <= earlier for earlier, later in pairwise([warmup_epochs, *milestones])):
        raise ValueError(
            f"schedule.milestones={list(milestones)} must rise and lie behind schedule.warmup_epochs={warmup_epochs:g}"
        )
    rise = _rise(warmup, warmup_ends_at_peak=warmup_ends_at_peak)
    falls = [round(epoch * steps_per_epoch) for epoch in milestones]

    def rate(step: int) -> float:
        if step < warmup:
            return _line(step / rise, start_factor)
        return factor ** sum(step >= fall for fall in falls)

    return LambdaLR(optimizer, rate)


def flyegle_cosine(optimizer: Optimizer, *, total_steps: int, steps_per_epoch: float, warmup_epochs: float) -> LambdaLR:
    """Rises linearly, then follows a cosine that counts from step 0 and is as long as the run less its warm-up.

    The schedule of github.com/FlyEgle/MAE-pytorch: `(t + 1) / w + 1e-6` for t < w steps, then
    `(1 + cos(pi t / (T - w))) / 2`. So the rate drops where the warm-up ends, is 0 at T - w and rises again to the
    end: to 3.0 % of the peak in 400 epochs with a warm-up of 40. Arguments and errors are those of `warmup_cosine`.

    Differs: w and T count the steps an epoch has; the original counts the smaller batch that its loader leaves out as
    well, one step in 626.
    """
    warmup = _warmup_steps(warmup_epochs, steps_per_epoch, total_steps)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup + 1e-6
        return (1.0 + math.cos(math.pi * step / (total_steps - warmup))) / 2

    return LambdaLR(optimizer, rate)


def warmup_linear(optimizer: Optimizer, *, total_steps: int, steps_per_epoch: float, warmup_epochs: float) -> LambdaLR:
    """Rises linearly from 0, then falls linearly to 0 (the default of Hugging Face's Trainer, without warm-up).

    Arguments and errors are those of `warmup_cosine`.
    """
    warmup = _warmup_steps(warmup_epochs, steps_per_epoch, total_steps)

    def rate(step: int) -> float:
        if step < warmup:
            return step / warmup
        return max(0.0, (total_steps - step) / (total_steps - warmup))

    return LambdaLR(optimizer, rate)


def warm_restarts(
    optimizer: Optimizer,
    *,
    steps_per_epoch: float,
    first_cycle_epochs: int,
    cycle_factor: int = 2,
    final_factor: float = 0.0,
    **_: float,
) -> LambdaLR:
    """Falls along half a cosine and begins anew, each cycle longer than the one before (arXiv:1608.03983).

    The rate changes once an epoch (the MAE of DDMIM's authors: 30 epochs, then 60, 120).

    Args:
        optimizer, steps_per_epoch: As in `warmup_cosine`.
        first_cycle_epochs: Length of the first cycle.
        cycle_factor: Length of a cycle over that of the one before.
        final_factor: Fraction of the peak a cycle falls to.

    Raises:
        ValueError: The first cycle has no length, or cycles would get shorter.
    """
    if first_cycle_epochs < 1 or cycle_factor < 1:
        raise ValueError(
            "schedule.first_cycle_epochs and schedule.cycle_factor must be at least 1, "
            f"got {first_cycle_epochs} and {cycle_factor}"
        )

    def rate(step: int) -> float:
        epoch, length = int(step / steps_per_epoch), first_cycle_epochs
        while epoch >= length:
            epoch, length = epoch - length, length * cycle_factor
        return _half_cosine(epoch / length, final_factor)

    return LambdaLR(optimizer, rate)


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


def _factors(optimizer: Optimizer, factor: float, *, shared: bool) -> list[float]:
    """Fractions of each group's peak: `factor`, or, if shared, what this fraction of the highest peak is of its own."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    return [factor * max(peaks) / peak if shared else factor for peak in peaks]


def _rise(warmup: int, *, warmup_ends_at_peak: bool) -> int:
    """Steps from the first rate to the peak."""
    return max(1, warmup - 1) if warmup_ends_at_peak else warmup


def _line(progress: float, start_factor: float) -> float:
    return start_factor + (1.0 - start_factor) * progress


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
