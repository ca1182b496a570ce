"""`benchmarks/compare.py`, with stand-ins for the two scripts where only its own work is in question."""

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as Python does for a script

import compare as tool  # noqa: E402
import comparison_report as report  # noqa: E402

from unmask.runtime.builders import build  # noqa: E402
from unmask.runtime.config import compose_config  # noqa: E402

# The stand-ins note each call; a training costs nothing and has 4 steps of 16 images an epoch.
RUN = """
import pathlib, shutil, sys
settings = dict(argument.lstrip("+").partition("=")[::2] for argument in sys.argv[1:])
here = pathlib.Path(__file__).parent
with (here / "calls.txt").open("a") as calls:
    calls.write("run " + " ".join(sys.argv[1:]) + "\\n")
folder = pathlib.Path(settings["hydra.run.dir"])
(folder / "checkpoints").mkdir(parents=True)
print("        batch  16 = 16 x 1 device(s) x 1 accumulated; 4 steps an epoch, 2 epochs")
if settings["method"] == (here / "broken.txt").read_text():
    print("error: method=b is no method\\n(the traceback is elsewhere)")
    sys.exit(2)
shutil.copy(here / "last.ckpt", folder / "checkpoints" / "last.ckpt")
(folder / "backbone.safetensors").touch()
"""
# Top-1 is 10 times the seed, 3 more for method=b, and 1 for random weights.
EVAL = """
import json, pathlib, sys
settings = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
here = pathlib.Path(__file__).parent
with (here / "calls.txt").open("a") as calls:
    calls.write("eval " + " ".join(sys.argv[1:]) + "\\n")
def report(path, top1):
    return {"ckpt_path": path, "protocol": "knn: k=20", "metrics": {"top1": top1, "top1_ci95_low": 0.0},
            "settings": {"selected": "rate 1", "selected_on": "val (5)"}, "headline": ["top1"], "data": {"test": "f00"}}
path, seed = settings["ckpt_path"], int(settings["seed"])
reports = {"checkpoint": report(path, 10.0 * seed + (3.0 if "/b/" in path else 0.0))}
if settings.get("eval.baseline", "true") == "true":
    reports["random"] = report(None, 1.0)
folder = pathlib.Path(settings["hydra.run.dir"])
folder.mkdir(parents=True)
(folder / "report.json").write_text(json.dumps({"reports": reports}))
"""


class Bench:
    """A folder with the stand-ins and a plan of two variants and two seeds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        for name, text in {"run.py": RUN, "eval.py": EVAL, "broken.txt": "none", "calls.txt": ""}.items():
            (folder / name).write_text(text)
        self.end_at(8)

    def end_at(self, step: int) -> None:
        torch.save({"global_step": step}, self.folder / "last.ckpt")

    def break_method(self, name: str) -> None:
        (self.folder / "broken.txt").write_text(name)

    def plan(self, **changes: Any) -> Any:
        content = {
            "variants": {"a": ["method=a"], "b": ["method=b"]},
            "evaluations": {"knn": ["eval=knn"]},
            "budget": {"epochs": 2},
            "seeds": [0, 1],
        }
        (self.folder / "plan.yaml").write_text(yaml.safe_dump(content | changes))
        return tool.read_plan(self.folder / "plan.yaml", ["data.root=D"])

    def compare(self, plan: Any, *, jobs: int = 2) -> list[str]:
        commands = tool.Commands(run=self.folder / "run.py", evaluate=self.folder / "eval.py")
        return [failure.text for failure in tool.Comparison(plan, self.out, commands).run(jobs=jobs)]

    def calls(self) -> list[str]:
        """What was called since this was asked last."""
        text = (self.folder / "calls.txt").read_text()
        (self.folder / "calls.txt").write_text("")
        return sorted(text.splitlines())

    def figures(self) -> dict[tuple[str, int], float]:
        with (self.out / "table.csv").open() as file:
            return {(row["pretraining"], int(row["seed"])): float(row["value"]) for row in csv.DictReader(file)}

    def differences(self) -> list[dict[str, str]]:
        with (self.out / "differences.csv").open() as file:
            return list(csv.DictReader(file))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_interval_of_a_paired_difference_is_students() -> None:
    found = report.paired_difference([1.0, 2.0, 3.0])

    half = 4.302653 / 3**0.5  # the 97.5 % point with 2 degrees of freedom; the sample deviation is 1
    assert (found.mean, found.num_pairs) == (2.0, 3)
    assert found.low == pytest.approx(2.0 - half, abs=1e-5)
    assert found.high == pytest.approx(2.0 + half, abs=1e-5)
    assert found.is_open
    assert not report.paired_difference([2.9, 3.0, 3.1]).is_open
    assert not report.paired_difference([-2.9, -3.0, -3.1]).is_open


def test_one_pair_has_no_interval_and_concludes_nothing() -> None:
    found = report.paired_difference([5.0])

    assert (found.mean, found.low, found.high) == (5.0, None, None)
    assert found.is_open


def test_each_variant_is_trained_once_a_seed_and_measured_once_an_evaluation(bench: Bench) -> None:
    assert bench.compare(bench.plan()) == []

    assert bench.calls() == sorted(
        f"{call} hydra.run.dir={bench.out / name / f'seed_{seed}' / place}"
        for name in "ab"
        for seed in (0, 1)
        for call, place in (
            (f"run method={name} data.root=D trainer.max_epochs=2 seed={seed}", "pretraining"),
            (
                f"eval eval=knn seed={seed} ckpt_path={bench.out}/{name}/seed_{seed}/pretraining/checkpoints/last.ckpt",
                "knn",
            ),
        )
    )
    assert bench.figures() == {("a", 0): 0.0, ("a", 1): 10.0, ("b", 0): 3.0, ("b", 1): 13.0}
    (difference,) = bench.differences()
    assert (difference["first"], difference["second"]) == ("b", "a")
    # Unpaired, seeds that lie 10 apart would leave the difference open.
    assert [float(difference[key]) for key in ("mean", "ci95_low", "ci95_high")] == pytest.approx([3.0, 3.0, 3.0])
    text = (bench.out / "table.md").read_text()
    assert "| b | 0, 1 | 2.0 ± 0.0 | " in text
    assert "| b − a | 2 | +3.0 [+3.0, +3.0] |" in text
    assert "knn, a, seed 0: selected rate 1 on val (5)" in text
    assert "python run.py method=b data.root=D trainer.max_epochs=2 seed=1" in text
    assert (bench.out / "plot.png").stat().st_size > 0


def test_only_seeds_that_both_have_are_paired(bench: Bench) -> None:
    def measured(row: str, seed: int, top1: float) -> Any:
        entry = {"protocol": "knn: k", "metrics": {"top1": top1}, "headline": ["top1"], "settings": {}, "data": {}}
        cell = report.Cell(command=("eval.py",), cpu_seconds=1.0, commit="c")
        return report.Measured(row, seed, "knn", entry, None, cell)

    entries = [measured("a", 0, 50.0), measured("a", 1, 20.0), measured("b", 1, 21.0), measured("b", 2, 90.0)]
    table = report.Table(entries, rows=["a", "b"], pairs=[("b", "a")])

    assert table.difference(("b", "a"), "knn top1") == report.Difference(1.0, None, None, 1)


def test_what_is_finished_is_not_run_again(bench: Bench) -> None:
    plan = bench.plan()
    bench.compare(plan)
    before = (bench.out / "table.md").read_text()
    bench.calls()

    assert bench.compare(plan) == []
    assert bench.calls() == []
    assert (bench.out / "table.md").read_text() == before

    (bench.out / "b" / "seed_1" / "knn" / "report.json").unlink()
    bench.compare(plan)
    assert [call.split()[0] for call in bench.calls()] == ["eval"]

    bench.compare(bench.plan(seeds=[0, 1, 2]))
    assert len(bench.calls()) == 4
    assert ("b", 2) in bench.figures()


def test_another_command_does_not_pass_for_the_finished_one(bench: Bench) -> None:
    bench.compare(bench.plan())

    with pytest.raises(ValueError, match=r"was made by .*max_epochs=2.*now asked for is .*max_epochs=3"):
        bench.compare(bench.plan(budget={"epochs": 3}))


def test_a_command_that_fails_is_reported_and_stops_nothing_else(bench: Bench) -> None:
    bench.break_method("b")

    failures = bench.compare(bench.plan())

    assert len(failures) == 2
    assert failures[0].startswith("b, seed ")
    assert "exit code 2: error: method=b is no method (all of it: " in failures[0]
    assert bench.figures() == {("a", 0): 0.0, ("a", 1): 10.0}
    assert "failed: b, seed 0, pretraining" in (bench.out / "table.md").read_text()
    bench.calls()

    bench.break_method("none")
    assert bench.compare(bench.plan()) == []
    assert len(bench.calls()) == 4  # b alone
    assert (bench.out / "b" / "seed_0" / "pretraining_unfinished_1").is_dir()


def test_nothing_is_begun_after_a_stop(bench: Bench) -> None:
    commands = tool.Commands(run=bench.folder / "run.py", evaluate=bench.folder / "eval.py")
    commands.stop()

    with pytest.raises(tool.CommandError, match="the comparison was stopped"):
        commands.finish(bench.out / "a", commands.run, ["method=a"], "backbone.safetensors")
    assert bench.calls() == []


def test_a_checkpoint_that_is_not_of_the_last_step_is_not_measured(bench: Bench) -> None:
    bench.end_at(4)

    failures = bench.compare(bench.plan(seeds=[0]))

    assert [failure.rpartition("last.ckpt ")[2] for failure in failures] == [
        "is of step 4, but the run was to end at 8"
    ] * 2


def test_random_weights_are_measured_once_a_seed(bench: Bench) -> None:
    bench.compare(bench.plan(untrained="b"))

    assert sum("eval.baseline=true" in call for call in bench.calls()) == 2
    figures = bench.figures()
    assert figures["untrained", 0] == figures["untrained", 1] == 1.0
    assert [(d["first"], d["second"]) for d in bench.differences()] == [("b", "a"), ("untrained", "a")]


def test_random_weights_of_several_backbones_have_rows_of_their_own(bench: Bench) -> None:
    bench.compare(bench.plan(untrained=["b", "a"], differences=[["a", "untrained a"]]))

    assert sum("eval.baseline=true" in call for call in bench.calls()) == 4
    assert bench.figures()["untrained a", 0] == bench.figures()["untrained b", 1] == 1.0
    assert [(d["first"], d["second"]) for d in bench.differences()] == [("a", "untrained a")]


@pytest.mark.parametrize(
    ("budget", "overrides"),
    [
        ({"steps": 6}, "trainer.max_epochs=2 trainer.max_steps=6"),
        ({"steps": 8}, "trainer.max_epochs=2"),
        ({"images": 81}, "trainer.max_epochs=2 trainer.max_steps=6"),  # 16 a step
    ],
)
def test_steps_and_images_end_the_schedule_with_the_run(bench: Bench, budget: dict[str, int], overrides: str) -> None:
    bench.end_at(budget.get("steps", 6))

    assert bench.compare(bench.plan(variants={"b": ["method=b"]}, seeds=[0], budgets={"b": budget})) == []

    trained = [call for call in bench.calls() if call.startswith("run method=b") and "rehearsal" not in call]
    assert [call.split(" data.root=D ")[1].split(" seed=")[0] for call in trained] == [overrides]
    compose_config("run", overrides.split())  # they are keys


def test_cpu_minutes_become_steps_by_what_two_short_runs_took() -> None:
    # 8 s to start and 0.3 s a step
    assert tool.affordable_steps(68.2, (10, 60), (11.0, 26.0)) == 200
    with pytest.raises(tool.CommandError, match="allows no step"):
        tool.affordable_steps(8.2, (10, 60), (11.0, 26.0))


def test_cpu_seconds_are_of_all_processes_and_not_of_waiting(tmp_path: Path) -> None:
    busy = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    code = f"import subprocess, sys, time; time.sleep(0.7); subprocess.run([sys.executable, '-c', {busy!r}])"

    cpu, wall = tool.Commands()._call([sys.executable, "-c", code], tmp_path / "log")

    assert 0.3 <= cpu < wall - 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": {}}, "has \\['variant'\\]; a plan has the keys"),
        ({"variants": {"a": "method=a"}}, "variants must be"),
        ({"variants": {"untrained": ["method=a"]}}, "not untrained or pretraining"),
        ({"variants": {"a b": ["method=a"], "a-b": ["method=b"]}}, "differ in spaces alone"),
        ({"budget": {"hours": 3}}, "a budget must be one of"),
        ({"budget": {"epochs": 2, "steps": 3}}, "a budget must be one of"),
        ({"budget": {"epochs": 1.5}}, "epochs must be a whole number"),
        ({"budgets": {"c": {"epochs": 1}}}, "name \\['c'\\]; choose from \\['a', 'b'\\]"),
        ({"differences": [["a", "untrained"]]}, "name \\['untrained'\\]"),
        ({"seeds": [0, 0]}, "seeds must be different"),
    ],
)
def test_mistakes_in_a_plan_are_told(bench: Bench, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench.plan(**changes)


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_plans_name_keys_that_exist(path: Path) -> None:
    plan = tool.read_plan(path, ["data.root=DIR"])

    for overrides in plan.variants.values():
        build(compose_config("run", [*overrides, *plan.run]).method)
    for overrides in plan.evaluations.values():
        build(compose_config("eval", [*overrides, "ckpt_path=FILE"]).eval)


TINY = [
    "data=synthetic",
    "model.embed_dim=24",
    "model.depth=2",
    "data.num_train=64",
    "data.num_val=20",
    "data.num_test=20",
    "global_batch_size=4",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "callbacks.reconstruction=null",
    "callbacks.loss_curve=null",
    "logger=csv",
]


@pytest.mark.nightly  # a minute; what its parts write is held above
@pytest.mark.slow
def test_a_table_of_two_variants_by_the_real_commands(tmp_path: Path) -> None:
    plan = {
        "variants": {
            "SimMIM": ["method=simmim"],
            "supervised, all labels": ["method=supervised", "recipe=supervised_small"],
        },
        "untrained": "SimMIM",
        "evaluations": {"knn": ["eval=knn", "eval.also_k=[10]"]},
        "budget": {"epochs": 2},
        "budgets": {"supervised, all labels": {"steps": 24}},  # of 16 an epoch
        "seeds": [1],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    command = [str(BENCHMARKS / "compare.py"), "plan.yaml", "--out", "out", "--jobs", "2", *TINY]

    done = _python(command, tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "knn top1"]
    assert [(row["pretraining"], row["seed"], row["epochs"]) for row in rows] == [
        ("SimMIM", "1", "2.0"),
        ("supervised, all labels", "1", "1.5"),
        ("untrained", "1", ""),
    ]
    for row in rows:
        folder = row["pretraining"].replace("untrained", "SimMIM").replace(", ", "-").replace(" ", "-")
        path = tmp_path / "out" / folder / f"seed_{row['seed']}" / "knn" / "report.json"
        reports = json.loads(path.read_text())["reports"]
        label = "random" if row["pretraining"] == "untrained" else "checkpoint"
        assert float(row["value"]) == reports[label]["metrics"]["top1"]
    assert all(float(row["cpu_minutes"]) > 0.01 for row in rows if row["pretraining"] != "untrained")


def _python(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=540, check=False
    )
