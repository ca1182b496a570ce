"""A step that was not finite is computed again from the file it left."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

TINY = ["model=vit_mini", "model.embed_dim=24", "model.depth=2", "trainer.accelerator=cpu", "logger=csv"]
TINY += ["data.num_train=16", "data.num_val=4", "data.num_test=4", "global_batch_size=8", "trainer.precision=32-true"]
TINY += ["callbacks.reconstruction=null", "callbacks.terminal_progress=null", "schedule=constant", "name=x"]
MAE = ["method=mae", "method.decoder.embed_dim=24", "method.decoder.depth=1", "method.decoder.num_heads=3"]


@pytest.mark.parametrize("method", [MAE, ["method=supervised", "model.embed_dim=24"]])
def test_an_exploded_run_is_shown_again(method: list[str], tmp_path: Path, caplog: Any) -> None:
    from unmask.callbacks.stopping import NumbersFailed
    from unmask.runtime.config import compose_config
    from unmask.runtime.pretrain import pretrain
    from unmask.runtime.replay import replay

    caplog.set_level(logging.INFO)
    config = compose_config(
        "run", [*method, *TINY, f"paths.run_dir={tmp_path}", "base_lr=1e38", "optimizer.weight_decay=0"]
    )
    with pytest.raises(NumbersFailed, match="is not finite"):
        pretrain(config)

    (box,) = (tmp_path / "nonfinite").iterdir()
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", int(box.stem.removeprefix("step_")))
    assert not (tmp_path / "backbone.safetensors").exists()
    assert replay(box) == torch.load(box, weights_only=True)["nonfinite"]["first_layer"]
    assert " here: loss " in caplog.text


@pytest.mark.slow
@pytest.mark.nightly
def test_a_step_whose_gradient_was_far_above_the_usual_is_shown_again(tmp_path: Path, caplog: Any) -> None:
    from unmask.runtime.config import compose_config
    from unmask.runtime.pretrain import pretrain
    from unmask.runtime.replay import replay

    caplog.set_level(logging.INFO)
    spikes = ["callbacks.nonfinite_guard.spike_factor=1.0001", "trainer.max_epochs=11", f"paths.run_dir={tmp_path}"]
    spikes.append("follow_data=false")  # a rate so small that gradients do not shrink
    pretrain(compose_config("run", [*MAE, *TINY, *spikes]))  # every second step is one
    box = min((tmp_path / "nonfinite").iterdir())
    kept = torch.load(box, weights_only=True)["nonfinite"]
    assert replay(box) is None
    shown = re.search(r"there (\S+), usual (\S+); here (\S+), of this batch alone", caplog.text)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(kept["gradient_norm"], rel=0.01)
    assert float(shown[3]) == pytest.approx(kept["gradient_norm"], rel=0.01)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    from unmask.runtime.replay import replay

    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "last.ckpt")
    with pytest.raises(
        ValueError, match="is not a step that a run kept; such steps are in the run's folder under nonfinite/"
    ):
        replay(tmp_path / "last.ckpt")
