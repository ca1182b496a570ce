"""Whether a run goes as it should, from what it has shown so far and from what good runs of its recipe showed."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from unmask.callbacks.reference import (
    CHANGE,
    EFFECTIVE_RANK,
    GRADIENT_NORM,
    PROBE,
    STD,
    TRAIN_LOSS,
    VAL_LOSS,
    Band,
    Reference,
)

# All of these are ours; no healthy run that was tried (of every method, most of them short) is called otherwise.
_RISE_OF_FALL, _RISE_OF_BEST = 0.5, 0.1  # of the loss, both: of what it had fallen; of its least value
_EXPLODED = 10.0  # times its first value, of a loss that follows a moving target
_GRADIENT_FACTOR, _FEWEST_EPOCHS = 10.0, 3  # times the median of the epochs before, of at least so many
_OUT_OF_BAND = 3.0  # times the upper edge, of the gradient's norm
_LOST_RANK, _LOST_STD = 0.1, 0.02  # of their first values
_LEAST_CHANGE = 1e-3  # of the features since the first step
_EARLY_STEPS, _EARLY_FRACTION = 20, 0.1  # of steps; of the run: before both nothing is called slow
_LEAST_FALL, _PLATEAU_EPOCHS = 0.005, 8  # of the whole fall, in the later half of at least so many epochs
_LEARNED = 0.1  # of the first loss: below it there is little left to learn

_SHOWN = {
    TRAIN_LOSS: ("loss", "{:.4g}"),
    VAL_LOSS: ("val/loss", "{:.4g}"),
    GRADIENT_NORM: ("gradient norm", "{:.3g}"),
    EFFECTIVE_RANK: ("effective rank", "{:.1f}"),
}


class Verdict(IntEnum):
    """How a run goes; the numbers are what loggers get."""

    NORMAL = 0
    SLOW = 1
    COLLAPSING = 2
    DIVERGING = 3


class EpochReadings(NamedTuple):
    """What was read at the end of an epoch."""

    step: int  # optimizer steps done
    values: Mapping[str, float]


class Judgment(NamedTuple):
    """A verdict and why, without the word itself."""

    verdict: Verdict
    reason: str


def judge(
    history: Sequence[EpochReadings],
    *,
    num_steps: int | None,
    reference: Reference | None = None,
    compares_losses: bool = True,
    needs_rank: bool = True,
) -> Judgment:
    """Judges the last of the epochs; what is worse is said first.

    Args:
        history: Of all epochs done, at least one.
        num_steps: Optimizer steps of the whole run; None where it has no end.
        reference: Of the same recipe; None: the run's own history alone tells.
        compares_losses: Whether losses of different epochs measure the same thing; they do not where a teacher that
            is trained along gives the targets.
        needs_rank: Whether features must spread over many directions; those of a classifier need as many as classes.
    """
    now = history[-1]
    is_early = now.step < max(_EARLY_STEPS, _EARLY_FRACTION * (num_steps or 0))
    found: list[Judgment] = [
        *(Judgment(Verdict.DIVERGING, why) for why in _divergence(history, compares_losses=compares_losses)),
        *(Judgment(Verdict.COLLAPSING, why) for why in _collapse(history, needs_rank=needs_rank)),
    ]
    if reference is not None:
        found += _against(now, reference, needs_rank=needs_rank, is_early=is_early)
    if not is_early:
        may_ask_losses = compares_losses and reference is None  # good runs may stand still likewise
        found += [Judgment(Verdict.SLOW, why) for why in _standstill(history, compares_losses=may_ask_losses)]
    if not found:
        return Judgment(Verdict.NORMAL, describe_readings(now, reference))
    worst = max(judgment.verdict for judgment in found)
    reasons = [judgment.reason for judgment in found if judgment.verdict is worst]
    return Judgment(worst, "; ".join(dict.fromkeys(reasons)))


def describe_readings(now: EpochReadings, reference: Reference | None) -> str:
    """Says the readings of an epoch, each with the range of the reference where it has one."""
    parts = [
        f"{name} {form.format(now.values[key])}{_range(_band(reference, key, now.step), form)}"
        for key, (name, form) in _SHOWN.items()
        if key in now.values
    ]
    parts += [
        f"{key.removeprefix(PROBE)} {value:.1f}{_range(band, '{:.1f}')}"
        for key, value in now.values.items()
        if key.startswith(PROBE) and (band := _band(reference, key, now.step)) is not None
    ]
    return ", ".join(parts)


def _divergence(history: Sequence[EpochReadings], *, compares_losses: bool) -> Iterator[str]:
    losses, now = _finite(history, TRAIN_LOSS), history[-1].values.get(TRAIN_LOSS)
    is_rising = False
    if now is not None and not math.isfinite(now):
        yield f"the loss is {now}"
    elif now is not None and compares_losses:
        best = min(losses)
        fall = losses[0] - best
        is_rising = now > best + _RISE_OF_BEST * abs(best)
        if is_rising and now > best + _RISE_OF_FALL * fall:
            yield f"the loss, {now:.4g}, has risen above its least, {best:.4g}; lower the learning rate"
    elif now is not None and now > _EXPLODED * abs(losses[0]):
        yield f"the loss, {now:.4g}, is {now / losses[0]:.0f} times its first; lower the learning rate"
    before, norm = _finite(history[:-1], GRADIENT_NORM), history[-1].values.get(GRADIENT_NORM)
    if norm is not None and len(before) >= _FEWEST_EPOCHS and (is_rising or not compares_losses):
        usual = statistics.median(before)
        if norm > _GRADIENT_FACTOR * usual:
            yield f"the gradient's norm, {norm:.3g}, is {norm / usual:.0f} times what it was"


def _collapse(history: Sequence[EpochReadings], *, needs_rank: bool) -> Iterator[str]:
    ranks, stds = _series(history, EFFECTIVE_RANK), _series(history, STD)
    if ranks and needs_rank and not ranks[-1] - 1.0 >= _LOST_RANK * (ranks[0] - 1.0):  # NaN is none
        yield (
            f"the features of held-out images spread over {ranks[-1]:.1f} directions, at first over {ranks[0]:.1f}; "
            "lower the learning rate"
        )
    if stds and not stds[-1] >= _LOST_STD * stds[0]:
        yield f"the features of held-out images differ by {stds[-1] / stds[0]:.1%} of what they did at first"


def _against(now: EpochReadings, reference: Reference, *, needs_rank: bool, is_early: bool) -> Iterator[Judgment]:
    norm, norms = now.values.get(GRADIENT_NORM), reference.band(GRADIENT_NORM, now.step)
    if norm is not None and norms is not None and norm > _OUT_OF_BAND * norms.high:
        yield Judgment(Verdict.DIVERGING, f"gradient norm {norm:.3g}{_range(norms, '{:.3g}')}")
    rank, ranks = now.values.get(EFFECTIVE_RANK), reference.band(EFFECTIVE_RANK, now.step)
    if needs_rank and rank is not None and ranks is not None and rank < 1.0 + (ranks.low - 1.0) / 2:
        yield Judgment(Verdict.COLLAPSING, f"effective rank {rank:.1f}{_range(ranks, '{:.1f}')}")
    if is_early:
        return
    for key in (TRAIN_LOSS, VAL_LOSS):
        loss, band = now.values.get(key), reference.band(key, now.step)
        if loss is not None and band is not None and loss > band.high:
            yield Judgment(Verdict.SLOW, f"{_SHOWN[key][0]} {loss:.4g}{_range(band, '{:.4g}')}")
    for key, value in now.values.items():
        band = reference.band(key, now.step) if key.startswith(PROBE) else None
        if band is not None and value < band.low:
            yield Judgment(Verdict.SLOW, f"{key.removeprefix(PROBE)} {value:.1f}{_range(band, '{:.1f}')}")


def _standstill(history: Sequence[EpochReadings], *, compares_losses: bool) -> Iterator[str]:
    change = history[-1].values.get(CHANGE)
    if change is not None and change < _LEAST_CHANGE:
        yield (
            f"the encoder does not learn: after {history[-1].step:,} steps the features of held-out images differ by "
            f"{change:.2%} from those of the first step"
        )
    losses = _finite(history, TRAIN_LOSS)
    if not compares_losses or len(losses) < _PLATEAU_EPOCHS or min(losses) < _LEARNED * losses[0]:
        return
    half = len(losses) // 2
    before, after = min(losses[:half]), min(losses[half:])
    fall = losses[0] - before
    if before - after <= _LEAST_FALL * fall:
        yield f"the loss, {losses[-1]:.4g}, has not fallen for {len(losses) - half} epochs"


def _series(history: Sequence[EpochReadings], key: str) -> list[float]:
    return [reading.values[key] for reading in history if key in reading.values]


def _finite(history: Sequence[EpochReadings], key: str) -> list[float]:
    """The readings that others can be compared with; a step that is left out for its numbers leaves an epoch none."""
    return [value for value in _series(history, key) if math.isfinite(value)]


def _band(reference: Reference | None, key: str, step: int) -> Band | None:
    return None if reference is None else reference.band(key, step)


def _range(band: Band | None, form: str) -> str:
    if band is None:
        return ""
    low, high = form.format(max(0.0, band.low)), form.format(band.high)
    return f" (reference {low} to {high})"
