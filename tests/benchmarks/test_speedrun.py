"""`benchmarks/speedrun.py`: its rules, and that a record says what was run. Nothing is trained here."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import speedrun as tool  # noqa: E402

ENTRIES = sorted((BENCHMARKS / "speedrun").glob("*.yaml"))


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("method.init_from=weights.ckpt", "random weights"),
        ("ckpt_path=x.ckpt", "random weights"),
        ("method=supervised", "without labels"),
        ("+probes.mine.data=cifar10", "reads labels"),
        ("data=imagenet", "CIFAR-10"),
        ("data.num_val=0", "CIFAR-10"),
        ("seed=7", "gives the seeds"),
    ],
)
def test_what_breaks_the_rules_is_refused(override: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tool.check_override(override)


@pytest.mark.parametrize("override", ["data.root=DIR", "method=mae", "datamodule=x", "seeds=1", "optimizer=muon"])
def test_what_the_rules_do_not_name_is_allowed(override: str) -> None:
    tool.check_override(override)


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.stem)
def test_entries_compose(path: Path) -> None:
    from unmask.runtime.config import compose_config  # noqa: PLC0415

    compose_config("run", [*tool.read_entry(path)["run"], *tool.DATA, "data.root=DIR"])


def _write_report(folder: Path, linear: float) -> None:
    metrics = {"top1": linear, "top1_ci95_low": linear - 1, "top1_ci95_high": linear + 1, "val_top1": linear + 2}
    folder.mkdir(parents=True)
    reports = {"checkpoint/knn": {"metrics": metrics | {"top1": 40.0}}, "checkpoint/linear": {"metrics": metrics}}
    (folder / "report.json").write_text(json.dumps({"reports": reports}))


class FakeCommands:
    """Writes what the two scripts would have."""

    def __init__(self, **settings: Any) -> None:
        assert settings == {"one_core": False}

    def finish(self, folder: Path, script: Path, overrides: Any, product: str) -> dict[str, Any]:
        import torch  # noqa: PLC0415

        seed = int(next(given for given in overrides if given.startswith("seed=")).removeprefix("seed="))
        if product == tool.CHECKPOINT:
            (folder / "checkpoints").mkdir(parents=True)
            torch.save({"global_step": 60}, folder / product)
            (folder / "csv").mkdir()
            (folder / "csv" / "metrics.csv").write_text("step,train/loss\n9,2.0\n,\n59,1.0\n")
        else:
            assert any(given == f"ckpt_path={folder.parent / 'pretraining' / tool.CHECKPOINT}" for given in overrides)
            _write_report(folder, 50.0 + seed)
        command = [script.name, *overrides]
        return {"command": command, "cpu_seconds": 240.0, "wall_seconds": 118.0 + seed, "git": None}


def test_a_record_holds_every_seed_and_its_table_says_whether_the_bar_was_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "Commands", FakeCommands)
    entry = tmp_path / "mine.yaml"
    entry.write_text('title: mine\nminutes: 2\nbar: 51\nrun: ["method=mae"]\n')
    record = tool.race(entry, tmp_path / "out", ["data.root=DIR"], (0, 1, 2))
    assert [(run["seed"], run["linear"], run["knn"], run["val_linear"]) for run in record["runs"]] == [
        (seed, 50.0 + seed, 40.0, 52.0 + seed) for seed in (0, 1, 2)
    ]
    assert record["runs"][0]["command"] == ["run.py", "method=mae", *tool.DATA, "seed=0"]
    assert record["runs"][0]["curve"] == [(18.0, 2.0), (118.0, 1.0)]  # seconds: 9 and 59 of 59 steps
    assert record["runs"][0]["steps"] == 60
    row = tool.table_of({"mine": record}).splitlines()[-1]
    assert "51.0 [50.0, 52.0]" in row
    assert "51 in 2 min: reached" in row
    record["runs"][2]["wall_seconds"] = 121.0  # one seed over the time is one too many
    assert "51 in 2 min: missed" in tool.table_of({"mine": record})


def test_the_page_keeps_all_but_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "Commands", FakeCommands)
    entry = tmp_path / "mine.yaml"
    entry.write_text('title: mine\nminutes: 2\nbar: 53\nrun: ["method=mae", "augmentation.scale=[0.5,1]"]\n')
    record = tool.race(entry, tmp_path / "out", [], (0,))
    monkeypatch.setattr(tool, "RECORDS", tmp_path / "records")
    tool.RECORDS.mkdir()
    (tool.RECORDS / "mine.json").write_text(json.dumps(record))
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n{tool._MARKS[0]}\nold\n{tool._MARKS[1]}\nafter\n")
    tool.write_page(page)
    tool.write_page(page)  # a second time changes nothing
    text = page.read_text()
    assert re.match(r"# Before\n", text)
    assert text.endswith(f"{tool._MARKS[1]}\nafter\n")
    assert "old" not in text
    assert "53 in 2 min: missed" in text
    assert "python run.py method=mae 'augmentation.scale=[0.5,1]' data=cifar10" in text
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="needs the two lines"):
        tool.write_page(page)
