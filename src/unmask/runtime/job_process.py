"""A job of a sweep is a program of its own, started from the configuration that Hydra has kept in the job's folder."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from unmask.callbacks.run_status import read_status, write_status
from unmask.callbacks.stopping import EXIT_PREEMPTED, EXIT_PRUNED
from unmask.runtime.job_outcome import OUTCOME_SWITCH, JobOutcome, read_outcome, write_outcome
from unmask.runtime.run_folder import LOCK_NAME

OUTPUT_NAME = "output.log"  # of a job, where several run at once
_STATES = {0: "complete", EXIT_PREEMPTED: "preempted", EXIT_PRUNED: "pruned"}
_POLL = 0.25  # seconds
_LONGEST_SAVING = 60.0  # seconds that what is left of a killed sweep's job may take to save and end
_NAME_OF_RANK = "hydra.job.name="
_CONTINUED = "resume=auto"


class JobProcess:
    """A job that runs.

    Args:
        path: The job's file in the sweep's folder; what it says is brought up to date.
        cwd: Where the sweep was started.
        environment: Added to this process's own.
        has_terminal: Whether the job writes where the sweep does; else into its folder's `output.log`.
    """

    def __init__(
        self, path: Path, *, cwd: str, environment: Mapping[str, str] | None = None, has_terminal: bool = True
    ) -> None:
        self.path = path
        job = read_outcome(path)
        self.folder = Path(job.folder)
        # Also a job that another sweep was killed over goes on; where nothing was saved, it begins.
        continued = [_CONTINUED] if (self.folder / "checkpoints").is_dir() else []
        if continued:
            _wait_for_folder(self.folder)
        self._began = time.monotonic()
        write_outcome(path, replace(job, state="running", exit_code=None, sentence=None))
        command = [sys.executable, "-m", "unmask.job", job.folder, *continued]
        added = {**(environment or {}), **own_processes(os.environ), OUTCOME_SWITCH: str(path)}
        output = None if has_terminal else (self.folder / OUTPUT_NAME).open("ab")
        try:
            self.process = subprocess.Popen(
                command, env={**os.environ, **added}, cwd=cwd, stdout=output, stderr=output and subprocess.STDOUT
            )
        finally:
            if output is not None:
                output.close()

    def ended(self) -> JobOutcome | None:
        """What became of the job; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        reported = read_outcome(self.path)
        if reported.sentence is None:  # the process that knew more may have been ended by another of its run
            reason = (read_status(self.folder) or {}).get("reason")
            reported = replace(reported, sentence=None if reason is None else str(reason))
        job = replace(_outcome(reported, code), seconds=round(time.monotonic() - self._began, 1))
        write_outcome(self.path, job)
        _complete_status(self.folder, job)
        return job


def own_processes(environment: Mapping[str, str]) -> dict[str, str]:
    """What makes Lightning start the processes of a job's devices itself where SLURM has started one for the job.

    Otherwise it would take each task of SLURM for a device of one run. The name is the one by which it is asked to.
    """
    return {"SLURM_JOB_NAME": "interactive"} if "SLURM_NTASKS" in environment else {}


def thaw(run_dir: Path, arguments: Sequence[str]) -> DictConfig:
    """Reads the configuration of a job as Hydra has kept it and sets up what Hydra would.

    Args:
        run_dir: The job's.
        arguments: `resume=auto`, and what Lightning adds for the processes of other devices.

    Raises:
        ValueError: The folder keeps no configuration.
    """
    kept = run_dir / ".hydra"
    if not all((kept / name).is_file() for name in ("config.yaml", "hydra.yaml")):
        raise ValueError(f"{kept} keeps no configuration of a job; name the folder of one, as runs/sweeps/TIME/0 is")
    setup_globals()
    own = OmegaConf.load(kept / "hydra.yaml")
    hydra = OmegaConf.structured(HydraConf)
    OmegaConf.set_struct(hydra, False)  # Hydra adds groups of its own, such as env
    config = OmegaConf.merge({"hydra": hydra}, own, OmegaConf.load(kept / "config.yaml"))
    assert isinstance(config, DictConfig)
    with read_write(config), open_dict(config):
        config.hydra.mode = RunMode.RUN
        config.hydra.runtime.output_dir = str(run_dir.absolute())
        for name in (word.removeprefix(_NAME_OF_RANK) for word in arguments if word.startswith(_NAME_OF_RANK)):
            config.hydra.job.name = name
        if _CONTINUED in arguments and "resume" in config:
            config.resume = "auto"
    OmegaConf.set_struct(config, True)
    HydraConfig.instance().set_config(config)
    os.environ.update(dict(config.hydra.job.env_set))
    configure_log(config.hydra.job_logging, config.hydra.verbose)
    settings = config.copy()
    with read_write(settings), open_dict(settings):
        del settings["hydra"]
    return settings


def stop_with_sweep() -> None:
    """Asks this process to stop, which saves, when the one that started it is gone: a killed sweep leaves no job."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL)
        os.kill(os.getpid(), signal.SIGTERM)

    if OUTCOME_SWITCH in os.environ and "LOCAL_RANK" not in os.environ:  # other devices' processes look after the first
        threading.Thread(target=watch, name="sweep-watch", daemon=True).start()


def returned(job: JobOutcome) -> dict[str, Any]:
    """What a launcher gives back of a job, in plain containers, as it may come from another process."""
    return {"number": job.number, "state": job.state, "value": job.value, "metrics": dict(job.metrics)}


def _outcome(reported: JobOutcome, code: int) -> JobOutcome:
    state = _STATES.get(code, "failed")
    sentence = reported.sentence
    if code < 0:
        name = signal.Signals(-code).name
        reason = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        sentence = f"killed by {name}{reason}"
    elif state == "complete":
        sentence = None
    elif sentence is None:
        sentence = f"ended with exit code {code}; its messages are above, or in its {OUTPUT_NAME}"
    if state == "failed" and reported.value is not None and math.isnan(reported.value):
        reported = replace(reported, value=None)
    return replace(reported, state=state, exit_code=code, sentence=sentence)


def _complete_status(run_dir: Path, job: JobOutcome) -> None:
    """Writes the `status.json` that a job could not: it was killed, or failed before its first step."""
    written = read_status(run_dir) or {}
    if written.get("state") in (None, "running"):
        step, epoch = (int(str(written.get(name, 0))) for name in ("step", "epoch"))
        write_status(run_dir, job.state, step=step, epoch=epoch, reason=job.sentence)


def _wait_for_folder(run_dir: Path) -> None:
    """Waits for what is left of a killed sweep's job, which is saving; one that lasts is for the job to refuse."""
    try:
        with FileLock(run_dir / LOCK_NAME).acquire(timeout=_LONGEST_SAVING):
            return
    except Timeout:
        return
