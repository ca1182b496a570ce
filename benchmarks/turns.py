"""Timing sides that take turns, so that whatever else the machine does falls on all of them."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

Side = TypeVar("Side")
Figure = TypeVar("Figure")


def take_turns(
    sides: Mapping[str, Side], measure: Callable[[Side], Figure], *, rounds: int, warm_up: int = 1
) -> dict[str, list[Figure]]:
    """Measures each side once a round, in reverse order every other round; the first `warm_up` rounds are left out."""
    figures: dict[str, list[Figure]] = {name: [] for name in sides}
    for turn in range(warm_up + rounds):
        for name in sides if turn % 2 else reversed(list(sides)):
            figure = measure(sides[name])
            if turn >= warm_up:
                figures[name].append(figure)
    return figures


def ratios(first: Iterable[float], second: Iterable[float]) -> list[float]:
    """First over second, round by round."""
    return [one / other for one, other in zip(first, second, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Median [least, most]."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
