"""What became of the jobs of a sweep: one small file a job, which the job's process and the sweep write in turn."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from unmask.atomic_write import atomic_write
from unmask.runtime.started_processes import is_first_process

OUTCOME_SWITCH = "UNMASK_SWEEP_JOB"  # tells a job's process the file to report to
FOLDER_NAME = "jobs"
_DONE = ("complete", "pruned")
_OF_CONTINUING = "resume="


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job.

    Attributes:
        number: Of the job in the sweep, from 0.
        overrides: The job's own command line.
        folder: What the job wrote.
        state: `waiting`, `running`, `complete`, `pruned`, `preempted` or `failed`.
        exit_code: Of its process; negative: the signal that killed it; None while it runs.
        value: What the job returned: the validation loss of a run, the top-1 accuracy of an evaluation.
        metrics: What the job measured last, by the names of the log.
        seconds: From its start to its end.
        sentence: Why it failed or stopped.
    """

    number: int
    overrides: list[str]
    folder: str
    state: str = "waiting"
    exit_code: int | None = None
    value: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    sentence: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether running the job again would bring nothing new."""
        return self.state in _DONE

    @property
    def has_failed(self) -> bool:
        return not self.is_done and self.state != "preempted"

    @property
    def settings(self) -> dict[str, str]:
        """The overrides by their keys."""
        pairs = (override.lstrip("+").partition("=") for override in self.overrides)
        return {key: value for key, _, value in pairs}


def typed_overrides(hydra: Any) -> list[str]:
    """A job's own overrides as Hydra writes them, not resolved: what they refer to differs by job, or is secret."""
    typed: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return [str(override) for override in typed]


def outcome_path(sweep_dir: Path, number: int) -> Path:
    """The file of a job."""
    return sweep_dir / FOLDER_NAME / f"{number:06d}.json"


def read_outcome(path: Path) -> JobOutcome:
    """Reads what is known of a job.

    Raises:
        ValueError: The file says something else.
    """
    try:
        return JobOutcome(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} describes no job of a sweep ({error}); choose another hydra.sweep.dir=DIR") from error


def read_outcomes(sweep_dir: Path) -> list[JobOutcome]:
    """Reads all jobs that a sweep has prepared so far, by their numbers."""
    return [read_outcome(path) for path in sorted((sweep_dir / FOLDER_NAME).glob("[0-9]*.json"))]


def write_outcome(path: Path, job: JobOutcome) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(asdict(job), indent=2) + "\n", encoding="utf-8")


def same_job(jobs: Iterable[JobOutcome], overrides: Sequence[str]) -> JobOutcome | None:
    """Finds the job with the same settings, whether it was to be continued or not."""
    wanted = _identity(overrides)
    return next((job for job in jobs if _identity(job.overrides) == wanted), None)


def is_job_of_sweep() -> bool:
    """Whether this process was started for a job of a sweep."""
    return OUTCOME_SWITCH in os.environ


def report_to_sweep(
    *, value: float | None = None, metrics: Mapping[str, float] | None = None, sentence: str | None = None
) -> None:
    """Tells the sweep what a job's process has found; does nothing where there is no sweep."""
    if is_job_of_sweep() and is_first_process():
        path = Path(os.environ[OUTCOME_SWITCH])
        found = {"value": value, "metrics": None if metrics is None else dict(metrics), "sentence": sentence}
        told = {name: content for name, content in found.items() if content is not None}
        try:
            write_outcome(path, replace(read_outcome(path), **told))  # type: ignore[arg-type]
        except OSError as error:  # the sweep knows the job's exit code by itself
            sys.stderr.write(f"{path} could not be written ({error.strerror or error})\n")


def _identity(overrides: Sequence[str]) -> frozenset[str]:
    return frozenset(override for override in overrides if not override.lstrip("+").startswith(_OF_CONTINUING))
