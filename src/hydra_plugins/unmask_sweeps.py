"""Hydra looks for its plugins in this namespace alone, at every start; what they do stands in `unmask.runtime`."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """`hydra/launcher=local`, see `unmask.runtime.local_launcher`.

    Args:
        n_jobs: Most jobs at once; null: as many as the GPUs take.
        jobs_per_device: Most jobs that share a GPU.
    """

    def __init__(self, *, n_jobs: int | None = 1, jobs_per_device: int = 1) -> None:
        self.settings: dict[str, Any] = {"n_jobs": n_jobs, "jobs_per_device": jobs_per_device}
        self.context: dict[str, Any] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = {"hydra_context": hydra_context, "config": config}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from unmask.runtime.local_launcher import launch

        return launch(job_overrides, initial_job_idx, **self.settings, **self.context)


class OptunaSweeper(Sweeper):
    """`sweep=optuna`, see `unmask.runtime.optuna_sweeper`.

    Args:
        n_trials: Of the study, those of earlier commands included.
        n_jobs: Trials that are begun together.
        objectives: Names of the log and what is wanted of each, minimize or maximize; null: of runs a small val/loss,
            of evaluations a large top-1 (`value`).
        storage: As Optuna takes it; null: a SQLite file in the sweep's folder.
        study_name: Within the storage.
        sampler, pruner: Nodes with a `_target_`; null: Optuna's own sampler, and no pruning.
    """

    def __init__(
        self,
        *,
        n_trials: int = 20,
        n_jobs: int = 1,
        objectives: Mapping[str, str] | None = None,
        storage: str | None = None,
        study_name: str = "sweep",
        sampler: Mapping[str, Any] | None = None,
        pruner: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings: dict[str, Any] = {
            "n_trials": n_trials,
            "n_jobs": n_jobs,
            "objectives": objectives,
            "storage": storage,
            "study_name": study_name,
            "sampler": sampler,
            "pruner": pruner,
        }
        self.context: dict[str, Any] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)
        self.context = {"hydra_context": hydra_context, "config": config, "launcher": launcher}

    def sweep(self, arguments: list[str]) -> Any:
        from unmask.runtime.optuna_sweeper import run_study

        return run_study(arguments, **self.settings, **self.context)
