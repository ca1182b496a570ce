"""`benchmarks/gpu_check.py`: rows that fail, hang or come too late, and (slow) each part on the CPU."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as Python does for a script

import gpu_check as tool  # noqa: E402

ROW = """
import sys, time
name = sys.argv[sys.argv.index("--row") + 1]
if name == "hangs":
    print("begun", flush=True)
    time.sleep(600)
if name == "crashes":
    sys.exit("out of memory")
print('RESULT {"row": "%s", "ok": true, "images_per_s": 12.5}' % name)
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Of a run whose rows are a small script."""
    script = tmp_path / "row.py"
    script.write_text(ROW)
    monkeypatch.setattr(tool, "__file__", str(script))
    return argparse.Namespace(device="cpu", tiny=True, budget=60.0, row_limit=50.0)


def test_a_row_that_crashes_says_why_and_the_others_go_on(settings: argparse.Namespace, capsys: Any) -> None:
    crashed, done = tool.run_rows(["crashes", "works"], settings)
    assert crashed == {"row": "crashes", "ok": False, "why": "ended with exit code 1: out of memory"}
    assert done["ok"]
    assert done["images_per_s"] == 12.5
    assert "| crashes | FAILED: ended with exit code 1: out of memory |" in capsys.readouterr().out


def test_a_row_that_hangs_is_ended(settings: argparse.Namespace) -> None:
    assert tool.start_row("hangs", settings, limit=1.0)["why"] == "did not end within 1 s"


def test_rows_for_which_no_time_is_left_say_so(settings: argparse.Namespace) -> None:
    settings.budget = 0.0
    assert [row["why"] for row in tool.run_rows(["works", "more"], settings)] == ["no time was left"] * 2


def test_a_condition_that_does_not_hold_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def unmet(_: argparse.Namespace) -> dict[str, Any]:
        tool.require(False, "losses differ", {"loss_gap": 0.5})
        return {}

    monkeypatch.setattr(tool, "rows", lambda: {"one": unmet, "two": lambda _: {"x": 1 / 0}})
    tool.run_row("one", argparse.Namespace())
    tool.run_row("two", argparse.Namespace())
    found = [json.loads(line.removeprefix("RESULT ")) for line in capsys.readouterr().out.splitlines()]
    assert found == [
        {"row": "one", "ok": False, "why": "losses differ", "loss_gap": 0.5},
        {"row": "two", "ok": False, "why": "ZeroDivisionError: division by zero"},
    ]


def test_the_largest_gap_is_relative() -> None:
    assert tool.largest_gap([1.0, 0.55], [1.0, 0.5]) == pytest.approx(0.1)


def test_every_full_row_composes() -> None:
    from unmask.runtime.config import compose_config  # noqa: PLC0415

    for overrides in tool._FULL.values():
        assert compose_config("run", overrides).global_batch_size in (128, 256)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        pytest.param("options accumulate", marks=pytest.mark.nightly),
        pytest.param("train ddmim", marks=pytest.mark.nightly),
        pytest.param("scaler", marks=pytest.mark.nightly),
    ],
)
def test_rows_hold_on_the_cpu(row: str) -> None:
    words = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--device", "cpu", "--tiny", "--row", row]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=True)
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["ok"], result
