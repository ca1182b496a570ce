"""What a run and an evaluation leave with Weights & Biases, read back from the files of an offline run."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TINY = [
    *("method=mae", "model=vit_mini", "image_size=32", "model.embed_dim=24", "model.depth=2", "model.num_heads=3"),
    *("method.decoder.embed_dim=24", "method.decoder.num_heads=3", "method.decoder.depth=1"),
    *("data.num_train=64", "data.num_val=16", "data.num_test=16", "global_batch_size=16", "trainer.accelerator=cpu"),
    *("trainer.max_epochs=2", "trainer.log_every_n_steps=2", "callbacks.throughput.peak_tflops=1"),
]


def command(program: str, *overrides: str, cwd: Path) -> None:
    words = [sys.executable, str(ROOT / program), *overrides, "logger=wandb"]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_and_its_evaluation_are_one_group_with_panels_rows_artifacts_and_best_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb_records: Callable[[Path], Iterator[Any]]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    command("run.py", *TINY, "logger.wandb.log_model=true", "hydra.run.dir=run", cwd=tmp_path)
    command("eval.py", "eval=knn", "ckpt_path=run/checkpoints/last.ckpt", "hydra.run.dir=eval", cwd=tmp_path)

    def read(folder: str) -> tuple[Any, dict[str, list[Any]], list[Any]]:
        """The run, its history by key, and all records."""
        (path,) = (tmp_path / folder / "wandb").glob("offline-run-*/*.wandb")
        records = list(wandb_records(path))
        history: dict[str, list[Any]] = {}
        for record in records:
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                history.setdefault(name, []).append(json.loads(item.value_json))
        return next(record.run for record in records if record.HasField("run")), history, records

    run, history, records = read("run")
    evaluated, measured, _ = read("eval")

    assert run.run_group == evaluated.run_group == "mae_vit_mini_synthetic"
    assert run.project == evaluated.project == "unmask"
    assert (run.display_name, evaluated.display_name) == ("mae_vit_mini_synthetic, seed 0", "knn, seed 0")
    report = json.loads((tmp_path / "eval/report.json").read_text())["reports"]["checkpoint"]
    (top1,) = [
        values for name, values in measured.items() if name.startswith("eval/") and name.endswith("checkpoint/top1")
    ]
    assert top1 == [pytest.approx(report["metrics"]["top1"])]

    assert history["panels/reconstruction_rows/_type"] == ["table-file"]
    assert (history["panels/reconstruction_rows/ncols"], history["panels/reconstruction_rows/nrows"]) == ([6], [8])
    assert history["panels/reconstruction/captions"] == [["MAE, epoch 2, step 8"]]
    assert all(0 < value < 1 for value in history["system/mfu"])
    assert history["system/model_tflops"] == pytest.approx(history["system/mfu"])  # of a peak of 1
    best = {record.metric.name: record.metric.summary for record in records if record.HasField("metric")}
    assert best["val/loss"].min
    assert best["val/top1"].max
    artifacts = [record.artifact for record in records if record.HasField("artifact")]
    assert [artifact.type for artifact in artifacts if artifact.type == "model"]
