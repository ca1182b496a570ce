"""How long the rest of a run takes."""

from time import perf_counter

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0  # seconds


class TimeLeft:
    """Extrapolates the pace of the steps made since the first one of this process, validation included.

    The first step itself does not count: it may compile kernels or start workers.
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def restart(self) -> None:
        """Forgets the pace of an earlier run."""
        self._first = None

    def observe(self, step: int) -> None:
        """Is told of every step as it ends; the first one starts the clock."""
        if self._first is None:
            self._first = step, perf_counter()

    def describe(self, step: int, total: int | None) -> str | None:
        """Says "5 min" of the steps from `step` to `total`; None where there is no pace or no end yet."""
        if self._first is None or total is None or step <= self._first[0]:
            return None
        first_step, first_time = self._first
        return describe_duration((perf_counter() - first_time) / (step - first_step) * max(0, total - step))


def describe_duration(seconds: float) -> str:
    """Rounds to the unit a reader plans with."""
    if seconds < 1.5 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 1.5 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.1f} h"
    return f"{seconds / _DAY:.1f} days"
