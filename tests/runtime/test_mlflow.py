"""What a run leaves with MLflow, read back; the extra `mlflow` must be installed."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_without_mlflow_the_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.loggers import mlflow
    from lightning_utilities.core.imports import RequirementCache

    from unmask.runtime.builders import build_loggers
    from unmask.runtime.config import compose_config

    monkeypatch.setattr(mlflow, "_MLFLOW_AVAILABLE", RequirementCache("mlflow>=99999"))
    config = compose_config(
        "run", ["logger=mlflow", "logger.csv=null", "logger.tensorboard=null", "name=x", "paths.run_dir=x"]
    )
    with pytest.raises(ValueError, match=r"pip install 'unmask\[mlflow\]'"):
        build_loggers(config)


@pytest.mark.slow
def test_a_run_is_found_in_mlflow_by_its_name(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    tiny = ["method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=1", "model.num_heads=3", "image_size=32"]
    tiny += ["method.decoder.embed_dim=24", "method.decoder.depth=1", "method.decoder.num_heads=3"]
    tiny += ["data.num_train=32", "data.num_val=8", "data.num_test=8", "global_batch_size=8", "trainer.max_epochs=1"]
    words = [sys.executable, str(ROOT / "run.py"), *tiny, "logger=mlflow", "trainer.log_every_n_steps=2"]
    done = subprocess.run(
        [*words, "trainer.accelerator=cpu", "callbacks.report=null", "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_ALLOW_FILE_STORE": "true"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (name,) = (tmp_path / "runs/mlruns").rglob("mlflow.runName")
    assert name.read_text() == "mae_vit_mini_synthetic, seed 0"
    losses = (name.parents[1] / "metrics/train/loss").read_text().splitlines()
    assert [line.split()[2] for line in losses] == ["1", "3"]
    assert (name.parent / "group").read_text() == "mae_vit_mini_synthetic"
