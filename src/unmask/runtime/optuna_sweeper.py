"""`sweep=optuna`: a study of Optuna whose trials are jobs of a sweep.

Optuna chooses settings and keeps what came of them in a file, so that a study that was killed goes on by `resume=auto`.
"""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unmask.callbacks.trial_pruning import TrialPruning

STUDY_SWITCH = "UNMASK_STUDY"  # tells a trial's process where its study is kept and what it prunes by
TRIAL_SWITCH = "UNMASK_TRIAL"  # tells it which trial it is
_FILE_NAME = "study.db"
_BUSY = 60  # seconds that a process waits for another one's write
_INTERRUPTED, _FOLDER = "interrupted", "folder"  # attributes of a trial
_DIRECTIONS = ("minimize", "maximize")
_LOSS = "val/loss"  # what is wanted of runs, where nothing else is said
_VALUE = "value"  # and of evaluations: their top-1
_INSTALL = "pip install 'unmask[sweep]'"


def run_study(
    arguments: Sequence[str],
    *,
    n_trials: int,
    n_jobs: int,
    objectives: Mapping[str, str] | None,
    storage: str | None,
    study_name: str,
    sampler: Mapping[str, Any] | None,
    pruner: Mapping[str, Any] | None,
    config: DictConfig,
    hydra_context: HydraContext,
    launcher: Launcher,
) -> dict[str, Any]:
    """Runs trials until the study has `n_trials`.

    A trial that fails, or whose objective is not finite, is a failed trial of the study, which goes on. One that was
    under way when the sweep was stopped or killed is marked as failed, does not count, and is the first to be tried
    again: where it had saved, it continues.

    Args:
        arguments: The command line: settings, of which intervals, ranges and choices are searched.
        n_trials, n_jobs, objectives, storage, study_name, sampler, pruner: As `OptunaSweeper` says.
        config: Of the sweep.
        hydra_context: Reads the grammar of overrides.
        launcher: Runs the jobs.

    Returns:
        The settings and values of the best trials.

    Raises:
        ValueError: Optuna is not installed, a number is not positive, nothing is searched, a direction is unknown,
            several objectives are to be pruned by, or the study exists and is not to be continued, or has other
            objectives.
    """
    optuna = _optuna()
    for name, number in (("n_trials", n_trials), ("n_jobs", n_jobs)):
        if type(number) is not int or number < 1:
            raise ValueError(f"hydra.sweeper.{name} must be a whole number from 1, got {number!r}")
    wanted = _directions(objectives, is_evaluation=OmegaConf.select(config, "hydra.job.config_name") == "eval")
    if pruner is not None and len(wanted) > 1:
        raise ValueError("Optuna prunes by one objective; give hydra.sweeper.objectives one, or leave out the pruner")
    space, fixed = search_space(OverridesParser.create(hydra_context.config_loader).parse_overrides(list(arguments)))
    sweep_dir = Path(config.hydra.sweep.dir).absolute()
    url = storage or f"sqlite:///{sweep_dir / _FILE_NAME}"
    study = _open_study(optuna, url, study_name, wanted, config)
    if sampler is not None:
        study.sampler = _sampler(_plain(sampler), num_trials=len(study.get_trials(False)))
    if pruner is not None:
        (metric,) = wanted
        described = {"storage": url, "study": study_name, "metric": metric, "pruner": _plain(pruner)}
        os.environ[STUDY_SWITCH] = json.dumps(described)
    _take_up_interrupted(optuna, study, sweep_dir)
    exhausted: list[bool] = []
    study.stop = lambda: exhausted.append(True)  # of samplers that have tried everything; Optuna's own needs its loop
    while not exhausted and (missing := n_trials - _num_counted(study)) > 0:
        trials = [study.ask(space) for _ in range(min(n_jobs, missing))]
        for trial in trials:
            trial.set_user_attr(_FOLDER, str(sweep_dir))
        jobs = [
            [
                *fixed,
                *(f"{key}={trial.params[key]}" for key in space),
                f"++hydra.job.env_set.{TRIAL_SWITCH}='{trial._trial_id}'",
            ]
            for trial in trials
        ]
        ended = launcher.launch(jobs, initial_job_idx=trials[0].number)
        for trial, job in zip(trials, ended, strict=True):
            _tell(optuna, study, trial, job.return_value, wanted)
        if any(job.return_value["state"] == "preempted" for job in ended):
            break  # the next command goes on
    return _announce_best(study, wanted)


def search_space(overrides: Iterable[Override]) -> tuple[dict[str, Any], list[str]]:
    """What a command line searches, as Optuna's distributions by key, and its other settings.

    `interval(a,b)` is continuous, `int(interval(a,b))` and `range(a,b)` whole numbers, `a,b` and `choice(a,b)` are
    choices; `tag(log,...)` searches by the logarithm.

    Raises:
        ValueError: There is nothing to search.
    """
    distributions = _optuna().distributions
    space: dict[str, Any] = {}
    fixed: list[str] = []
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
            continue
        swept: Any = override.value()
        is_log = "log" in swept.tags
        if override.is_interval_sweep():
            is_whole = isinstance(swept.start, int) and isinstance(swept.end, int)
            kind = distributions.IntDistribution if is_whole else distributions.FloatDistribution
            space[key] = kind(swept.start, swept.end, log=is_log)
        elif override.is_range_sweep() and isinstance(swept.range(), range):
            numbers = sorted(swept.range())
            space[key] = distributions.IntDistribution(numbers[0], numbers[-1], log=is_log, step=abs(int(swept.step)))
        else:
            space[key] = distributions.CategoricalDistribution(list(override.sweep_string_iterator()))
    if not space:
        raise ValueError(
            "nothing to search; write what is as an interval, a range or choices, such as "
            "'base_lr=tag(log,interval(1e-4,1e-2))' model=vit_mini,swin_mini"
        )
    return space, fixed


def build_pruning() -> list[TrialPruning]:
    """The callback that ends this run where its trial is not worth going on with; none where nothing prunes."""
    if STUDY_SWITCH not in os.environ or TRIAL_SWITCH not in os.environ:
        return []
    told = json.loads(os.environ[STUDY_SWITCH])

    def open_trial() -> Any:
        optuna = _optuna()
        study = optuna.load_study(
            study_name=told["study"], storage=_storage(optuna, told["storage"]), pruner=instantiate(told["pruner"])
        )
        return optuna.trial.Trial(study, int(os.environ[TRIAL_SWITCH]))

    return [TrialPruning(metric=told["metric"], open_trial=open_trial)]


def _optuna() -> Any:
    try:
        return import_module("optuna")
    except ImportError:
        raise ValueError(f"sweep=optuna needs Optuna; {_INSTALL}") from None


def _storage(optuna: Any, url: str) -> Any:
    if not url.startswith("sqlite:"):
        return url
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _BUSY}})


def _directions(objectives: Mapping[str, str] | None, *, is_evaluation: bool) -> dict[str, str]:
    default = {_VALUE: "maximize"} if is_evaluation else {_LOSS: "minimize"}
    wanted = {str(name): str(way) for name, way in objectives.items()} if objectives else default
    for name, way in wanted.items():
        if way not in _DIRECTIONS:
            raise ValueError(f"hydra.sweeper.objectives.{name} must be minimize or maximize, got {way!r}")
    return wanted


def _sampler(settings: dict[str, Any], *, num_trials: int) -> Any:
    """Builds the sampler; its seed moves on with the trials there are, or a continued study would repeat itself."""
    if isinstance(settings.get("seed"), int):
        settings["seed"] += num_trials
    return instantiate(settings)


def _open_study(optuna: Any, url: str, name: str, wanted: Mapping[str, str], config: DictConfig) -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _storage(optuna, url)
    exists = name in optuna.get_all_study_names(storage)
    if exists and OmegaConf.select(config, "resume") not in ("auto", "must"):
        raise ValueError(
            f"{url} holds a study {name!r} already; continue it by resume=auto, or choose another by "
            "hydra.sweep.dir=DIR or hydra.sweeper.study_name=NAME"
        )
    study = optuna.create_study(
        study_name=name, storage=storage, directions=list(wanted.values()), load_if_exists=exists
    )
    directions = [direction.name.lower() for direction in study.directions]
    named = study.user_attrs.get("objectives", list(wanted))
    if directions != list(wanted.values()) or named != list(wanted):
        raise ValueError(
            f"the study in {url} was begun with other objectives ({', '.join(named)}: {', '.join(directions)}); "
            "continue it with those, or begin another by hydra.sweeper.study_name=NAME"
        )
    study.set_user_attr("objectives", list(wanted))
    return study


def _take_up_interrupted(optuna: Any, study: Any, sweep_dir: Path) -> None:
    """Marks this folder's trials that were under way as failed and puts them first in the queue."""
    states = optuna.trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        if trial.user_attrs.get(_FOLDER) == str(sweep_dir):
            _fail_interrupted(optuna, study, trial)


def _fail_interrupted(optuna: Any, study: Any, trial: Any) -> None:
    study._storage.set_trial_user_attr(trial._trial_id, _INTERRUPTED, True)
    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    study.enqueue_trial(trial.params)
    sys.stdout.write(f"trial {trial.number} was under way when the sweep ended; it is tried again\n")


def _num_counted(study: Any) -> int:
    return sum(trial.state.is_finished() and _INTERRUPTED not in trial.user_attrs for trial in study.get_trials(False))


def _tell(optuna: Any, study: Any, trial: Any, job: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
    """Tells the study what came of a trial."""
    states = optuna.trial.TrialState
    trial.set_user_attr("job", job["number"])
    if job["state"] == "preempted":
        _fail_interrupted(optuna, study, trial)
        return
    if job["state"] == "pruned":
        study.tell(trial, state=states.PRUNED)
        said = "pruned"
    else:
        measured = {_VALUE: job["value"], **job["metrics"]}
        values = [measured.get(name) for name in wanted]
        if job["state"] == "complete" and all(value is not None and math.isfinite(value) for value in values):
            study.tell(trial, values)
            said = ", ".join(f"{name}={value:.6g}" for name, value in zip(wanted, values, strict=True))
        else:
            study.tell(trial, state=states.FAIL)
            absent = [name for name in wanted if measured.get(name) is None]
            said = f"failed (job {job['number']} {job['state']}"
            said += (
                f"; it measured no {', '.join(absent)}, only {', '.join(job['metrics']) or 'nothing'})"
                if absent
                else ")"
            )
    sys.stdout.write(f"trial {trial.number}: {said}\n")
    sys.stdout.flush()


def _announce_best(study: Any, wanted: Mapping[str, str]) -> dict[str, Any]:
    """Prints the best trial, of several objectives those that none other beats in all, and returns them."""
    states = {state.name for state in (trial.state for trial in study.get_trials(False))}
    best = study.best_trials if "COMPLETE" in states else []
    for trial in best:
        values = ", ".join(f"{name}={value:.6g}" for name, value in zip(wanted, trial.values, strict=True))
        settings = " ".join(f"{key}={value}" for key, value in trial.params.items())
        sys.stdout.write(f"best: trial {trial.number}, {values}: {settings}\n")
    return {"best": [{"settings": dict(trial.params), "values": list(trial.values)} for trial in best]}


def _plain(node: Mapping[str, Any]) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
