import json
from pathlib import Path

import pytest

from unmask.runtime import quickstart
from unmask.runtime.quickstart import summarize


def report(top1: float, low: float, high: float) -> dict[str, object]:
    metrics = {"top1": top1, "top1_ci95_low": low, "top1_ci95_high": high}
    return {"metrics": metrics, "num_test_images": 1000}


def test_the_summary_claims_a_gain_only_where_the_intervals_are_apart() -> None:
    trained = report(40.0, 37.0, 43.0)
    apart = summarize({"checkpoint": trained, "random": report(20.0, 17.6, 22.4)})
    assert "pre-trained  40.0 [37.0, 43.0]" in apart
    assert "untrained    20.0 [17.6, 22.4]" in apart
    assert "gains 20.0 points" in apart
    overlapping = summarize({"checkpoint": trained, "random": report(36.0, 33.0, 39.0)})
    assert "gains" not in overlapping
    assert "4.0 points is not certain" in overlapping
    worse = summarize({"checkpoint": report(10.0, 8.0, 12.0), "random": report(30.0, 27.0, 33.0)})
    assert "gains" not in worse
    assert "gained nothing here: -20.0 points" in worse


def test_the_demonstration_reads_the_report_of_its_own_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The two commands are replaced by what they leave behind: pictures of two epochs, then a report."""
    monkeypatch.chdir(tmp_path)
    typed = []

    def leave_files(script: str, command: str, overrides: list[str]) -> None:
        typed.append((script, overrides))
        out = Path(
            next(entry for entry in overrides if entry.startswith("hydra.run.dir=")).removeprefix("hydra.run.dir=")
        )
        (out / "panels").mkdir(parents=True)
        for epoch in (20, 5):
            (out / "panels" / f"epoch_{epoch:04d}.png").touch()
        reports = {"checkpoint": report(40.0, 37.0, 43.0), "random": report(20.0, 17.6, 22.4)}
        (out / "report.json").write_text(json.dumps({"reports": reports}))

    monkeypatch.setattr(quickstart, "_run", leave_files)
    with caplog.at_level("INFO", logger="unmask"):
        quickstart.main()
    (train, trained), (evaluate, evaluated) = typed
    assert (train, evaluate) == ("run.py", "eval.py")
    folder = trained[0].removeprefix("hydra.run.dir=")
    assert f"ckpt_path={folder}/checkpoints/last.ckpt" in evaluated
    assert "gains 20.0 points" in caplog.text
    assert f"reconstructions: {folder}/panels/epoch_0020.png" in caplog.text
