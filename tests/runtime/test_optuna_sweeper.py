"""Studies: what is searched, what counts, and what is left of one that was killed."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from unmask.runtime.optuna_sweeper import run_study, search_space

SPACE = ["method=mae", "base_lr=tag(log,interval(1e-4,1e-2))"]


class Jobs(Launcher):
    """Stands for one that runs jobs: gives back what a test says of each."""

    def __init__(self, *ends: Any) -> None:
        self.ends = list(ends)
        self.jobs: list[list[str]] = []

    def setup(self, **_: Any) -> None: ...

    def launch(self, job_overrides: Sequence[list[str]], initial_job_idx: int) -> list[SimpleNamespace]:
        found = []
        for job in job_overrides:
            end = self.ends.pop(0)
            self.jobs.append(job)
            if isinstance(end, BaseException):
                raise end
            told = end if isinstance(end, dict) else {"state": "complete", "value": end, "metrics": {"val/loss": end}}
            found.append(SimpleNamespace(return_value={"number": len(self.jobs), **told}))
        return found


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}")


def search(
    folder: Path,
    launcher: Jobs,
    *,
    space: Sequence[str] = SPACE,
    resume: str = "never",
    command: str = "run",
    **settings: Any,
) -> Any:
    hydra = {"sweep": {"dir": str(folder)}, "job": {"config_name": command}}
    config: DictConfig = OmegaConf.create({"resume": resume, "hydra": hydra})
    chosen: dict[str, Any] = {
        "n_trials": 3,
        "n_jobs": 1,
        "objectives": None,
        "storage": None,
        "study_name": "sweep",
        "sampler": {"_target_": "optuna.samplers.RandomSampler", "seed": 0},
        "pruner": None,
    }
    unused: Any = None
    context = {
        "config": config,
        "hydra_context": HydraContext(config_loader=unused, callbacks=unused),
        "launcher": launcher,
    }
    return run_study(space, **{**chosen, **settings}, **context)


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in study_of(folder).get_trials()]


def rates(launcher: Jobs) -> list[str]:
    return [next(word for word in job if word.startswith("base_lr=")) for job in launcher.jobs]


def test_the_grammar_of_a_search() -> None:
    words = ["a=interval(0.1,2)", "b=tag(log,interval(1e-4,1e-2))", "c=int(interval(2,9))", "d=range(2,9,2)", "e=x,y"]
    space, fixed = search_space(OverridesParser.create().parse_overrides([*words, "+f=[1,2]", "g=choice(mae,'q r')"]))
    kinds = optuna.distributions
    assert space == {
        "a": kinds.FloatDistribution(0.1, 2.0),
        "b": kinds.FloatDistribution(1e-4, 1e-2, log=True),
        "c": kinds.IntDistribution(2, 9),
        "d": kinds.IntDistribution(2, 8, step=2),
        "e": kinds.CategoricalDistribution(["x", "y"]),
        "g": kinds.CategoricalDistribution(["mae", r"q\ r"]),
    }
    assert fixed == ["+f=[1,2]"]


def test_a_search_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to search; write"):
        search(tmp_path, Jobs(), space=["method=mae"])


def test_nan_and_crashes_are_failed_trials_and_the_study_goes_on(tmp_path: Path) -> None:
    failed = {"state": "failed", "value": None, "metrics": {}}
    launcher = Jobs(math.nan, failed, 0.5, 0.25)
    best = search(tmp_path, launcher, n_trials=4)
    assert states(tmp_path) == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert best["best"][0]["values"] == [0.25]
    assert f"base_lr={best['best'][0]['settings']['base_lr']}" == rates(launcher)[3]
    assert all(job[0] == "method=mae" for job in launcher.jobs)


@pytest.mark.parametrize(
    "end", [SystemExit(75), KeyboardInterrupt(), {"state": "preempted", "value": None, "metrics": {}}]
)
def test_a_trial_that_was_under_way_is_failed_and_tried_again_first(tmp_path: Path, end: Any) -> None:
    first = Jobs(0.5, end, 0.1)
    if isinstance(end, dict):
        search(tmp_path, first)
    else:
        with pytest.raises(type(end)):
            search(tmp_path, first)
        with pytest.raises(ValueError, match="continue it by resume=auto"):
            search(tmp_path, Jobs())
    second = Jobs(0.3, 0.2)
    search(tmp_path, second, resume="auto")
    assert states(tmp_path).count("FAIL") == 1
    assert states(tmp_path).count("COMPLETE") == 3
    assert "RUNNING" not in states(tmp_path)
    done = [*rates(first), *rates(second)]
    assert done.count(rates(first)[1]) == 2
    assert len(set(done)) == 3  # a continued study draws no earlier trial anew


def test_several_objectives_and_one_that_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def end(loss: float, knn: float | None) -> dict[str, Any]:
        probes = {} if knn is None else {"probe/own/knn_top1": knn}
        return {"state": "complete", "value": loss, "metrics": {"val/loss": loss, **probes}}

    wanted = {"val/loss": "minimize", "probe/own/knn_top1": "maximize"}
    best = search(
        tmp_path,
        Jobs(end(0.5, 50.0), end(0.4, 60.0), end(0.3, 20.0), end(0.1, None)),
        objectives=wanted,
        n_trials=4,
    )
    assert [trial["values"] for trial in best["best"]] == [[0.4, 60.0], [0.3, 20.0]]
    assert states(tmp_path)[3] == "FAIL"
    assert "it measured no probe/own/knn_top1, only val/loss" in capsys.readouterr().out
    with pytest.raises(ValueError, match="Optuna prunes by one objective"):
        search(tmp_path, Jobs(), objectives=wanted, pruner={"_target_": "optuna.pruners.MedianPruner"})
    with pytest.raises(ValueError, match="must be minimize or maximize, got 'up'"):
        search(tmp_path, Jobs(), objectives={"val/loss": "up"})
    with pytest.raises(ValueError, match="was begun with other objectives"):
        search(tmp_path, Jobs(), objectives={"val/loss": "maximize"}, resume="auto")


def test_a_pruned_trial_is_one_and_counts(tmp_path: Path) -> None:
    search(tmp_path, Jobs(0.5, {"state": "pruned", "value": None, "metrics": {}}), n_trials=2)
    assert states(tmp_path) == ["COMPLETE", "PRUNED"]
    search(tmp_path, Jobs(), n_trials=2, resume="auto")  # there is nothing left to do


def test_a_sampler_that_has_tried_everything_ends_the_study(tmp_path: Path) -> None:
    grid = {"model": ["vit_mini", "beit_mini"]}
    sampler = {"_target_": "optuna.samplers.GridSampler", "search_space": grid, "seed": 0}
    search(tmp_path, Jobs(0.5, 0.4), space=["model=vit_mini,beit_mini"], sampler=sampler, n_trials=5)
    assert states(tmp_path) == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("setting", ["n_trials", "n_jobs"])
@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_trials_that_is_none_is_refused(setting: str, number: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"hydra\.sweeper\.{setting} must be a whole number from 1, got"):
        search(tmp_path, Jobs(), **{setting: number})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "objective", "best"), [("run", "val/loss=0.2", "trial 1"), ("eval", "value=0.7", "trial 0")]
)
def test_by_default_a_run_wants_a_small_loss_and_an_evaluation_a_large_accuracy(
    command: str, objective: str, best: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(tmp_path, Jobs(0.7, 0.2), n_trials=2, command=command)
    assert f"best: {best}, {objective}: " in capsys.readouterr().out
