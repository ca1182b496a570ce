"""Sweeps: every job is a program of its own, and the end accounts for all of them."""

import atexit
import csv
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.utils import get_original_cwd
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from unmask.atomic_write import atomic_write
from unmask.callbacks.run_status import read_status, write_status
from unmask.callbacks.stopping import EXIT_AT_ONCE, EXIT_PREEMPTED, StopSignals
from unmask.runtime.run_folder import locked

EXIT_PARTLY_FAILED = 5
_EXIT_FIXABLE = 2
_REPORT_SWITCH = "UNMASK_SWEEP_JOB"  # tells a job's process the file to report to
_FOLDER_NAME = "jobs"
_POLL = 0.1  # seconds
_OF_THE_SWEEP = ("hydra.mode", "hydra.run.dir", "hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra/sweeper")


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job.

    Attributes:
        number: Of the job in the sweep, from 0.
        overrides: The job's own command line.
        folder: What the job wrote.
        state: `running`, `complete`, `preempted` or `failed`.
        exit_code: Of its process; negative: the signal that killed it; None while it runs.
        value: What the job returned: the validation loss of a run, the top-1 accuracy of an evaluation.
        sentence: Why it failed or stopped.
    """

    number: int
    overrides: list[str]
    folder: str
    state: str = "running"
    exit_code: int | None = None
    value: float | None = None
    sentence: str | None = None


class SweepSummary(Callback):
    """Keeps other sweeps out of a sweep's folder and, at its end, lists the jobs; exits with 5 if any failed."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        sweep_dir = Path(config.hydra.sweep.dir)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            _refuse("a sweep starts the processes of its jobs itself; start it by python, with trainer.devices=N")
        sweep_dir.mkdir(parents=True, exist_ok=True)
        held = ExitStack()
        try:
            held.enter_context(locked(sweep_dir, setting="hydra.sweep.dir"))
        except ValueError as error:
            _refuse(str(error))
        atexit.register(held.close)
        shutil.rmtree(sweep_dir / _FOLDER_NAME, ignore_errors=True)  # of an earlier sweep, which this one repeats

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if any(job.state != "complete" for job in summarize(Path(config.hydra.sweep.dir))):
            # Hydra turns exceptions of a callback into warnings; it does not catch this one.
            sys.exit(EXIT_PARTLY_FAILED)


def is_job_of_sweep() -> bool:
    """Whether this process was started for a job of a sweep."""
    return _REPORT_SWITCH in os.environ


def report_to_sweep(*, value: float | None = None, sentence: str | None = None) -> None:
    """Tells the sweep what a job's process has found; does nothing where there is no sweep."""
    if is_job_of_sweep() and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        path = Path(os.environ[_REPORT_SWITCH])
        _write(path, replace(_read(path), value=value, sentence=sentence))


def run_job() -> float:
    """Runs the current job of a sweep in a process of its own, which is started as the job alone would be.

    So a job that fails, is killed or leaves by `sys.exit` ends alone, and the processes of its other devices, which
    Lightning starts by the command line of the first, run this job in this folder and not the whole sweep.

    Returns:
        The job's value; NaN for one that failed or has none.

    Raises:
        SystemExit: The job was asked to stop, and with it the sweep.
    """
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    path = Path(get_original_cwd(), hydra.sweep.dir, _FOLDER_NAME, f"{hydra.job.num:06d}.json").absolute()
    _write(path, JobOutcome(hydra.job.num, list(hydra.overrides.task), str(run_dir)))
    signals = StopSignals()
    code = _wait(_command(run_dir), {**os.environ, _REPORT_SWITCH: str(path)}, signals)
    job = _outcome(_read(path), code)
    _write(path, job)
    _complete_status(run_dir, job)
    if signals.received is not None or code in (EXIT_PREEMPTED, EXIT_AT_ONCE):
        summarize(path.parents[1])
        sys.stderr.write(f"the sweep ends with job {job.number}; later jobs were not begun\n")
        sys.exit(EXIT_PREEMPTED)
    return math.nan if job.value is None else job.value


def summarize(sweep_dir: Path) -> list[JobOutcome]:
    """Prints the jobs of a sweep as a table and writes it as `sweep.csv`."""
    jobs = [_read(path) for path in sorted((sweep_dir / _FOLDER_NAME).glob("*.json"))]
    with atomic_write(sweep_dir / "sweep.csv") as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(JobOutcome.__dataclass_fields__))
        table.writeheader()
        table.writerows({**asdict(job), "overrides": shlex.join(job.overrides)} for job in jobs)
    sys.stdout.flush()
    num_complete = sum(job.state == "complete" for job in jobs)
    sys.stdout.write(f"\n{num_complete} of {len(jobs)} jobs complete; {sweep_dir / 'sweep.csv'}\n")
    sys.stdout.writelines(f"{line}\n" for line in _lines(jobs))
    sys.stdout.flush()
    return jobs


def _lines(jobs: Sequence[JobOutcome]) -> list[str]:
    """One line a job, with the overrides in which jobs differ; the sentence of a failed one below it."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    lines = []
    for job in jobs:
        own = shlex.join(override for override in job.overrides if override not in shared)
        value = "-" if job.value is None else f"{job.value:.6g}"
        lines.append(f"  {job.number:>3}  {job.state:<9}  {value:>10}  {own}")
        if job.sentence is not None:
            lines.append(f"       {job.sentence}")
    return lines


def _command(run_dir: Path) -> list[str]:
    import __main__  # noqa: PLC0415  (it is another module in every program)

    hydra = HydraConfig.get()
    if __main__.__spec__ is None:
        program = [sys.executable, str(Path(get_original_cwd(), sys.argv[0]))]
    else:
        program = [sys.executable, "-m", __main__.__spec__.name]
    directories = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    flags = [word for directory in directories for word in ("--config-dir", directory)]
    kept = [override for override in hydra.overrides.hydra if not override.lstrip("+~").startswith(_OF_THE_SWEEP)]
    return [*program, *flags, *hydra.overrides.task, *kept, "hydra.mode=RUN", f"hydra.run.dir={_quoted(str(run_dir))}"]


def _quoted(text: str) -> str:
    """A string as Hydra's grammar of overrides writes any."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def _wait(command: Sequence[str], environment: dict[str, str], signals: StopSignals) -> int:
    """Runs a command to its end and hands on the first signal that asks for one."""
    with subprocess.Popen(command, env=environment, cwd=get_original_cwd()) as process:
        signals.install(lambda: [process.pid])
        try:
            is_asked = False
            while process.poll() is None:
                if signals.received is not None and not is_asked:
                    is_asked = True
                    process.send_signal(signals.received)
                time.sleep(_POLL)
        finally:
            signals.restore()
    return process.returncode


def _outcome(reported: JobOutcome, code: int) -> JobOutcome:
    state = {0: "complete", EXIT_PREEMPTED: "preempted"}.get(code, "failed")
    sentence = reported.sentence
    if code < 0:
        name = signal.Signals(-code).name
        reason = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        sentence = f"killed by {name}{reason}"
    elif code != 0 and sentence is None:
        sentence = f"ended with exit code {code}; its messages are above"
    return replace(reported, state=state, exit_code=code, sentence=sentence)


def _complete_status(run_dir: Path, job: JobOutcome) -> None:
    """Writes the `status.json` that a job could not: it was killed, or failed before its first step."""
    written = read_status(run_dir) or {}
    if written.get("state") in (None, "running"):
        step, epoch = (int(str(written.get(name, 0))) for name in ("step", "epoch"))
        write_status(run_dir, job.state, step=step, epoch=epoch, reason=job.sentence)


def _read(path: Path) -> JobOutcome:
    return JobOutcome(**json.loads(path.read_text(encoding="utf-8")))


def _write(path: Path, job: JobOutcome) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(asdict(job), indent=2) + "\n", encoding="utf-8")


def _refuse(sentence: str) -> None:
    # Hydra turns exceptions of a callback into warnings and goes on; it does not catch this one.
    sys.stderr.write(f"error: {sentence}\n")
    sys.exit(_EXIT_FIXABLE)
