"""A method of one's own: three new files, no other edit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

METHOD = '''
"""Predicts the mean of an image from its visible pixels."""

from unmask.methods.base import Method
from unmask.types import MethodOutput


class Toy(Method):
    def __init__(self, *, head, **shared):
        super().__init__(**shared)
        last = self.backbone.stages[-1]
        self.head = head(in_channels=last.channels, stride=last.stride)

    def forward(self, images, mask=None):
        mask = self.mask_generator(images) if mask is None else mask
        features = self.backbone.forward_features(images * ~mask.at_pixels())[-1]
        prediction = self.head(features).float()
        error = (prediction - images).square().mean()
        return MethodOutput(loss=error, terms={"error": error}, mask=mask, prediction=prediction)
'''
CONFIG = """
_target_: toy_method.Toy
backbone: ${model}
mask_generator:
  _target_: unmask.masking.random.RandomMaskGenerator
  ratio: 0.5
  patch_size: ${model.patch_size}
head:
  _target_: unmask.heads.pixel_shuffle.PixelShuffleHead
  _partial_: true
optimizer: ${optimizer}
schedule: ${schedule}
seed: ${seed}
"""
RECIPE = """
# @package _global_
base_lr: 1.0e-3
base_batch_size: 256
betas: [0.9, 0.95]
augmentation:
  _target_: unmask.data.augmentation.transforms.Augmentation
"""


@pytest.mark.slow
def test_a_method_outside_the_package_trains_and_is_evaluated(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    for folder, content in (("method", CONFIG), ("recipe", RECIPE)):
        (conf / folder).mkdir(parents=True)
        (conf / folder / "toy.yaml").write_text(content.lstrip())
    (tmp_path / "toy_method.py").write_text(METHOD)
    tiny = [
        "model.embed_dim=24",
        "model.depth=2",
        "model.num_heads=3",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
    ]
    data = ["data.num_train=32", "data.num_val=8", "data.num_test=8", "global_batch_size=8"]
    _command("run.py", "--config-dir", str(conf), "method=toy", *tiny, *data, "hydra.run.dir=run", cwd=tmp_path)
    assert "val/error" in (tmp_path / "run" / "csv" / "metrics.csv").read_text()
    assert list((tmp_path / "run" / "panels").iterdir())

    checkpoint = "ckpt_path=run/checkpoints/last.ckpt"
    _command("eval.py", "--config-dir", str(conf), "eval=test", checkpoint, "hydra.run.dir=test", cwd=tmp_path)
    report = json.loads((tmp_path / "test" / "report.json").read_text())
    assert "Toy" in json.dumps(report)


def _command(script: str, *arguments: str, cwd: Path) -> None:
    path = os.pathsep.join([str(cwd), str(ROOT / "src")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
