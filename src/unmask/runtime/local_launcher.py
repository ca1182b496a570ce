"""`hydra/launcher=local`: the jobs of a sweep on this machine, one after the other or packed on its devices."""

import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from unmask.callbacks.stopping import EXIT_AT_ONCE, EXIT_PREEMPTED, StopSignals
from unmask.runtime.job_cores import CORES_SWITCH
from unmask.runtime.job_outcome import (
    JobOutcome,
    outcome_path,
    read_outcome,
    read_outcomes,
    same_job,
    typed_overrides,
    write_outcome,
)
from unmask.runtime.job_process import JobProcess, returned
from unmask.runtime.sweep import stop_sweep

_POLL = 0.1  # seconds
_GPU = ("gpu", "cuda", "auto")


@dataclass(frozen=True)
class Share:
    """The part of a machine that one of several jobs computes on."""

    gpus: tuple[str, ...]
    cores: tuple[int, ...]

    def environment(self) -> dict[str, str]:
        own = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}
        return own | ({CORES_SWITCH: ",".join(map(str, self.cores))} if self.cores else {})


class Machine:
    """Hands out shares of a machine.

    Args:
        gpus: As CUDA_VISIBLE_DEVICES names them; none for jobs that compute on the CPU.
        cores: Of the processor.
        gpus_per_job: Each job gets as many, the least used first.
        jobs_per_gpu: Most jobs that share a GPU.
        n_jobs: Most jobs at once; None: as many as the GPUs take, or one without any.
    """

    def __init__(
        self, *, gpus: Sequence[str], cores: Sequence[int], gpus_per_job: int, jobs_per_gpu: int, n_jobs: int | None
    ) -> None:
        self._gpus = list(gpus)
        self._gpus_per_job = min(gpus_per_job, len(gpus))
        self._jobs_per_gpu = jobs_per_gpu
        fitting = len(gpus) * jobs_per_gpu // self._gpus_per_job if self._gpus_per_job else n_jobs or 1
        self.num_places = max(1, fitting if n_jobs is None else min(fitting, n_jobs))
        self._cores = [tuple(cores[place :: self.num_places]) or tuple(cores) for place in range(self.num_places)]
        self._taken: dict[int, Share] = {}

    def take(self) -> tuple[int, Share] | None:
        """A free place and what belongs to it; None while all are taken."""
        place = next((place for place in range(self.num_places) if place not in self._taken), None)
        if place is None:
            return None
        jobs = Counter(gpu for share in self._taken.values() for gpu in share.gpus)
        free = sorted((gpu for gpu in self._gpus if jobs[gpu] < self._jobs_per_gpu), key=lambda gpu: jobs[gpu])
        if len(free) < self._gpus_per_job:
            return None
        share = Share(tuple(free[: self._gpus_per_job]), self._cores[place])
        self._taken[place] = share
        return place, share

    def give_back(self, place: int) -> None:
        del self._taken[place]


def launch(
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
    *,
    n_jobs: int | None,
    jobs_per_device: int,
    config: DictConfig,
    hydra_context: HydraContext,
) -> list[JobReturn]:
    """Freezes all jobs and then runs them, each in a process of its own.

    A job that has ended well in this folder, with the same settings, is not run again.

    Args:
        job_overrides: Of each job.
        initial_job_idx: The number of the first, unless it is one that the folder holds already.
        n_jobs: Most jobs at once; null: as many as the GPUs take.
        jobs_per_device: Most jobs that share a GPU.
        config: Of the sweep.
        hydra_context: Which composes the jobs' configurations.

    Returns:
        Of each job, in order, what `job_process.returned` says.

    Raises:
        ValueError: A number is not positive, or the devices of a job cannot be counted.
    """
    for name, number in (("n_jobs", n_jobs), ("jobs_per_device", jobs_per_device)):
        if number is not None and number < 1:
            raise ValueError(f"hydra.launcher.{name} must be at least 1, got {number}")
    setup_globals()
    sweep_dir = Path(config.hydra.sweep.dir).absolute()
    numbers = [
        _freeze(list(overrides), initial_job_idx + position, sweep_dir, config, hydra_context)
        for position, overrides in enumerate(job_overrides)
    ]
    paths = [outcome_path(sweep_dir, number) for number, _ in numbers]
    environments = {path: environment for path, (_, environment) in zip(paths, numbers, strict=True)}
    waiting = [path for path in dict.fromkeys(paths) if not read_outcome(path).is_done]
    kept = len(set(paths)) - len(waiting)
    if kept:
        sys.stdout.write(f"{kept} job(s) ended well in {sweep_dir} and are not run again\n")
    _run_all(waiting, environments, _machine(config, n_jobs, jobs_per_device), config, sweep_dir)
    return [_as_return(read_outcome(path)) for path in paths]


def _freeze(
    overrides: list[str], number: int, sweep_dir: Path, config: DictConfig, hydra_context: HydraContext
) -> tuple[int, dict[str, str]]:
    """Composes a job and lets Hydra keep its configuration in its folder; returns its number and its environment."""
    composed = hydra_context.config_loader.load_sweep_config(config, overrides)
    task = typed_overrides(composed.hydra)
    known = read_outcomes(sweep_dir)
    same = same_job(known, task)
    if same is not None:
        number = same.number
        if same.is_done:
            return number, {}
    elif any(job.number == number for job in known):
        number = 1 + max(job.number for job in known)
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    environment: dict[str, str] = {}

    def note(_: DictConfig) -> None:
        hydra = HydraConfig.get()
        environment.update({str(name): str(value) for name, value in hydra.job.env_set.items()})
        path = outcome_path(sweep_dir, number)
        folder = hydra.runtime.output_dir
        begun = JobOutcome(number, task, folder) if same is None else same
        # A folder that the file names is not taken: what lies in it is run as code.
        write_outcome(path, replace(begun, folder=folder, state="waiting", sentence=None))

    frozen = run_job(
        hydra_context=hydra_context,
        task_function=note,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        configure_logging=False,
    )
    _ = frozen.return_value  # raises what went wrong
    return number, environment


def _run_all(
    waiting: list[Path],
    environments: dict[Path, dict[str, str]],
    machine: Machine,
    config: DictConfig,
    sweep_dir: Path,
) -> None:
    is_alone = machine.num_places == 1
    everyone = [set(job.overrides) for job in read_outcomes(sweep_dir)]
    shared = set.intersection(*everyone) if len(everyone) > 1 else set()
    running: dict[int, JobProcess] = {}
    signals, is_asked, is_over = StopSignals(), False, False
    signals.install(lambda: [job.process.pid for job in running.values()])
    try:
        while running or (waiting and not is_over):
            is_over = is_over or signals.received is not None
            while waiting and not is_over and (taken := machine.take()) is not None:
                place, share = taken
                path = waiting.pop(0)
                environment = environments[path] | ({} if is_alone else share.environment())
                _announce(read_outcome(path), shared, share, is_alone=is_alone)
                running[place] = JobProcess(
                    path, cwd=config.hydra.runtime.cwd, environment=environment, has_terminal=is_alone
                )
            if signals.received is not None and not is_asked:
                is_asked = True
                for job in running.values():
                    job.process.send_signal(signals.received)
            for place, job in list(running.items()):
                outcome = job.ended()
                if outcome is not None:
                    del running[place]
                    machine.give_back(place)
                    is_over = is_over or outcome.exit_code in (EXIT_PREEMPTED, EXIT_AT_ONCE)
                    if not is_alone:
                        sys.stdout.write(f"job {outcome.number} {outcome.state}\n")
                        sys.stdout.flush()
            time.sleep(_POLL)
    finally:
        signals.restore()
    if is_over:
        stop_sweep(sweep_dir)


def _announce(job: JobOutcome, shared: Collection[str], share: Share, *, is_alone: bool) -> None:
    own = shlex.join(word for word in job.overrides if word not in shared and not word.startswith("resume="))
    place = "" if is_alone else f"  [{_described(share)}; {job.folder}]"
    sys.stdout.write(f"\njob {job.number}: {own}{place}\n")
    sys.stdout.flush()


def _described(share: Share) -> str:
    gpus = [f"GPU {','.join(share.gpus)}"] if share.gpus else []
    return ", ".join([*gpus, f"{len(share.cores)} core(s)"])


def _machine(config: DictConfig, n_jobs: int | None, jobs_per_device: int) -> Machine:
    """What jobs are packed on; a single job at a time has all of it, and is given no share."""
    if n_jobs == 1:
        return Machine(gpus=(), cores=(), gpus_per_job=0, jobs_per_gpu=1, n_jobs=1)
    gpus = visible_gpus(os.environ) if config.trainer.accelerator in _GPU else []
    devices = config.trainer.devices
    if gpus and not isinstance(devices, int):
        raise ValueError(
            f"trainer.devices={devices} does not say how many GPUs a job takes, which jobs that share a machine need; "
            "write trainer.devices=1"
        )
    return Machine(
        gpus=gpus,
        cores=sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (),
        gpus_per_job=int(devices) if gpus else 0,
        jobs_per_gpu=jobs_per_device,
        n_jobs=n_jobs,
    )


def visible_gpus(environment: Any, count: Callable[[], int] | None = None) -> list[str]:
    """Names the GPUs that jobs may use: those of CUDA_VISIBLE_DEVICES, else all."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu and gpu != "-1"]
    import torch  # noqa: PLC0415  (one job at a time never asks)

    return [str(number) for number in range((count or torch.cuda.device_count)())]


def _as_return(job: JobOutcome) -> JobReturn:
    return JobReturn(
        overrides=job.overrides, working_dir=job.folder, status=JobStatus.COMPLETED, _return_value=returned(job)
    )
