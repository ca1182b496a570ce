"""What the jobs of a sweep say together."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unmask.runtime.job_outcome import JobOutcome

SEED = "seed"
_OF_CONTINUING = "resume"


@dataclass(frozen=True)
class Spread:
    """A mean over seeds; the deviation, of a sample (n - 1), is None for one value."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class SeedAverage:
    """Jobs that differ in their seed alone.

    Attributes:
        name: The settings in which they differ from other jobs, as typed.
        value: Of what the jobs returned; None where none returned anything.
        metrics: By the names of the log.
    """

    name: str
    value: Spread | None
    metrics: dict[str, Spread]


def differing_settings(jobs: Sequence[JobOutcome]) -> list[str]:
    """The keys whose values are not the same in all jobs, in the order they were typed."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings)
    return [key for key in keys if key != _OF_CONTINUING and len({job.settings.get(key) for job in jobs}) > 1]


def metrics_of(jobs: Iterable[JobOutcome]) -> list[str]:
    """The names of everything any job measured."""
    return sorted({name for job in jobs for name in job.metrics})


def average_over_seeds(jobs: Sequence[JobOutcome]) -> list[SeedAverage]:
    """Averages jobs that differ in their seed alone; nothing where no two do."""
    settings = [key for key in differing_settings(jobs) if key != SEED]
    groups: dict[str, list[JobOutcome]] = {}
    for job in jobs:
        name = " ".join(f"{key}={job.settings[key]}" for key in settings if key in job.settings)
        groups.setdefault(name, []).append(job)
    if all(len(group) < 2 for group in groups.values()):
        return []
    return [
        SeedAverage(
            name=name or "all",
            value=_spread(job.value for job in group),
            metrics={
                key: found
                for key in metrics_of(group)
                if (found := _spread(job.metrics.get(key) for job in group)) is not None
            },
        )
        for name, group in groups.items()
    ]


def _spread(values: Iterable[float | None]) -> Spread | None:
    found = [value for value in values if value is not None and math.isfinite(value)]
    if not found:
        return None
    return Spread(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))
