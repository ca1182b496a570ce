"""Sweeps: every job is a program of its own, and the end accounts for all of them."""

import atexit
import csv
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.utils import get_original_cwd
from omegaconf import DictConfig

from unmask.atomic_write import atomic_write
from unmask.callbacks.stopping import EXIT_AT_ONCE, EXIT_PREEMPTED, StopSignals
from unmask.runtime.job_outcome import (
    FOLDER_NAME,
    JobOutcome,
    outcome_path,
    read_outcome,
    read_outcomes,
    same_job,
    typed_overrides,
    write_outcome,
)
from unmask.runtime.job_process import JobProcess, returned
from unmask.runtime.own_commands import interpreter
from unmask.runtime.run_folder import locked
from unmask.runtime.sweep_page import PAGE_NAME, write_sweep_page
from unmask.runtime.sweep_table import average_over_seeds, differing_settings, metrics_of
from unmask.runtime.typed import typed

EXIT_PARTLY_FAILED = 5
_EXIT_FIXABLE = 2
_POLL = 0.1  # seconds
_REPLACED = ("resume=", "hydra.sweep.dir=")


class _Sweeping:
    """Whether this process is the one that sweeps; a launcher may run jobs in others, which must come back to it."""

    is_here = False


class SweepSummary(Callback):
    """Keeps other sweeps out of a sweep's folder and, at its end, lists the jobs; exits with 5 if any failed."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        sweep_dir = Path(config.hydra.sweep.dir)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            refuse("a sweep starts the processes of its jobs itself; start it by python, with trainer.devices=N")
        sweep_dir.mkdir(parents=True, exist_ok=True)
        held = ExitStack()
        try:
            held.enter_context(locked(sweep_dir, setting="hydra.sweep.dir"))
        except ValueError as error:
            refuse(str(error))
        atexit.register(held.close)
        _Sweeping.is_here = True
        if not _may_continue(config, sweep_dir):
            shutil.rmtree(sweep_dir / FOLDER_NAME, ignore_errors=True)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        jobs = summarize(Path(config.hydra.sweep.dir))
        # Hydra turns exceptions of a callback into warnings; it does not catch these.
        if any(job.state == "preempted" for job in jobs):
            sys.exit(EXIT_PREEMPTED)
        if any(job.has_failed for job in jobs):
            sys.exit(EXIT_PARTLY_FAILED)


def _may_continue(config: DictConfig, sweep_dir: Path) -> bool:
    """Whether what the folder holds of an earlier sweep counts; refuses a sweep that would write over it."""
    if config.resume in ("auto", "must"):
        return True
    if config.resume != "never":
        refuse(f"resume must be auto, never or must, got {config.resume!r}")
    if read_outcomes(sweep_dir):
        refuse(
            f"{sweep_dir} holds an earlier sweep; continue it by resume=auto, or choose another folder by "
            "hydra.sweep.dir=DIR"
        )
    return False


def run_job() -> dict[str, Any]:
    """Runs the current job of a sweep for a launcher that is not ours (basic, joblib, submitit).

    So a job that fails, is killed or leaves by `sys.exit` ends alone, and the processes of its other devices, which
    Lightning starts by the command line of the first, run this job in this folder and not the whole sweep.

    Returns:
        What became of it, as `job_process.returned`.

    Raises:
        SystemExit: The job was asked to stop, and with it the sweep, whose process this is.
    """
    hydra = HydraConfig.get()
    sweep_dir = Path(get_original_cwd(), hydra.sweep.dir).absolute()
    path = outcome_path(sweep_dir, hydra.job.num)
    overrides = typed_overrides(hydra)
    if path.exists():  # of a sweep that is continued
        known = read_outcome(path)
        if same_job([known], overrides) is None:
            refuse(
                f"job {known.number} of {sweep_dir} had other settings ({shlex.join(known.overrides)}); continue a "
                "sweep by the same settings, or choose another folder by hydra.sweep.dir=DIR"
            )
        if known.is_done:
            return returned(known)
    write_outcome(path, JobOutcome(hydra.job.num, overrides, hydra.runtime.output_dir))
    signals = StopSignals()
    job = _wait(JobProcess(path, cwd=get_original_cwd()), signals)
    is_stopped = signals.received is not None or job.exit_code in (EXIT_PREEMPTED, EXIT_AT_ONCE)
    if is_stopped and _Sweeping.is_here:
        stop_sweep(sweep_dir)
    if signals.received is not None and "SUBMITIT_EXECUTOR" in os.environ:
        os.kill(os.getpid(), signals.received)  # the job has saved: submitit, which had the signal before, requeues it
    return returned(job)


def stop_sweep(sweep_dir: Path) -> None:
    """Ends a sweep whose job was asked to stop, with what is there so far and how to go on."""
    jobs = summarize(sweep_dir)
    begun = [job.number for job in jobs if job.state != "waiting"]
    later = "; later jobs were not begun" if len(begun) < len(jobs) else ""
    sys.stderr.write(f"the sweep ends with job {max(begun, default=0)}{later}\n")
    sys.stderr.write(f"go on with:\n  {_command_to_go_on(sweep_dir)}\n")
    sys.exit(EXIT_PREEMPTED)


def summarize(sweep_dir: Path) -> list[JobOutcome]:
    """Prints the jobs of a sweep as a table and writes `sweep.csv` and `sweep.html`."""
    jobs = read_outcomes(sweep_dir)
    write_table(sweep_dir / "sweep.csv", jobs)
    write_sweep_page(sweep_dir / PAGE_NAME, jobs)
    sys.stdout.flush()
    num_complete = sum(job.state == "complete" for job in jobs)
    sys.stdout.write(f"\n{num_complete} of {len(jobs)} jobs complete; {sweep_dir / 'sweep.csv'} and {PAGE_NAME}\n")
    sys.stdout.writelines(f"{line}\n" for line in _lines(jobs))
    sys.stdout.flush()
    return jobs


def write_table(path: Path, jobs: Sequence[JobOutcome]) -> None:
    """Writes a row for every job: its state, the settings in which jobs differ, and what it measured."""
    settings, metrics = differing_settings(jobs), metrics_of(jobs)
    names = ["number", "state", "exit_code", *settings, "value", *metrics, "seconds", "folder", "sentence", "overrides"]
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(names)
        for job in jobs:
            told = [job.settings.get(name, "") for name in settings] + [job.value]
            told += [job.metrics.get(name) for name in metrics]
            row = [job.number, job.state, job.exit_code, *told, job.seconds, job.folder, job.sentence]
            table.writerow([*row, shlex.join(job.overrides)])


def _lines(jobs: Sequence[JobOutcome]) -> list[str]:
    """One line a job, with the settings in which jobs differ; the sentence of a failed one below it."""
    settings = differing_settings(jobs) if len(jobs) > 1 else list(jobs[0].settings) if jobs else []
    lines = []
    for job in jobs:
        own = shlex.join(f"{key}={job.settings[key]}" for key in settings if key in job.settings)
        value = "-" if job.value is None else f"{job.value:.6g}"
        lines.append(f"  {job.number:>3}  {job.state:<9}  {value:>10}  {own}")
        if job.sentence is not None:
            lines.append(f"       {job.sentence}")
    averages = [row for row in average_over_seeds(jobs) if row.value is not None]
    if averages:
        lines.append("over seeds, mean and standard deviation:")
    for row in averages:
        assert row.value is not None
        deviation = "" if row.value.deviation is None else f" +- {row.value.deviation:.2g}"
        lines.append(f"  {row.value.mean:>10.6g}{deviation:<12}  {row.value.count} seed(s)  {row.name}")
    return lines


def _command_to_go_on(sweep_dir: Path) -> str:
    program = sys.argv[0]
    start = [interpreter(), program] if program.endswith(".py") else [program]
    kept = [word for word in sys.argv[1:] if not word.startswith(_REPLACED)]
    return shlex.join([*start, *kept, typed("hydra.sweep.dir", sweep_dir), "resume=auto"])


def _wait(job: JobProcess, signals: StopSignals) -> JobOutcome:
    """Waits for the end of a job and hands on the first signal that asks for one."""
    signals.install(lambda: [job.process.pid])
    is_asked = False
    try:
        while (outcome := job.ended()) is None:
            if signals.received is not None and not is_asked:
                is_asked = True
                job.process.send_signal(signals.received)
            time.sleep(_POLL)
    finally:
        signals.restore()
    return outcome


def refuse(sentence: str) -> None:
    # Hydra turns exceptions of a callback into warnings and goes on; it does not catch this one.
    sys.stderr.write(f"error: {sentence}\n")
    sys.exit(_EXIT_FIXABLE)
