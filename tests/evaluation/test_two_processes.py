"""Every protocol on two processes gives the figures of one; splits do not divide, and one is smaller than the world."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unmask.runtime.config import compose_config
from unmask.runtime.evaluate import evaluate
from unmask.runtime.pretrain import pretrain

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
QUIET = ["name=x", "trainer.accelerator=cpu", "logger=none", "trainer.precision=32-true", "global_batch_size=8"]
MODEL = ["model=vit_mini", "model.embed_dim=24", "model.depth=2", "model.num_heads=3"]
ODD = ["data=synthetic", "data.num_train=37", "data.num_val=13", "data.num_test=97"]
ONE_TEST_IMAGE = ["data=synthetic", "data.num_train=37", "data.num_val=1", "data.num_test=1"]
TRAINED = ["base_lr=0.1", "callbacks=evaluation", "mixup=0", "cutmix=0"]
RUNS = {
    "all": [
        *ODD, "eval=all", "eval.protocols.linear.epochs=2", "eval.protocols.logistic.head.max_iterations=5",
        "eval.protocols.fewshot.max_iterations=5", "eval.protocols.clustering.num_starts=2",
    ],
    "knn of one test image": [*ONE_TEST_IMAGE, "eval=knn", "eval.also_k=[]"],
    "dense": ["data=segmentation", "eval=dense", "eval.head.max_iterations=5", "eval.k=3", "data.num_workers=0"],
    "test": [*ODD, "eval=test"],
    "test of one image": [*ONE_TEST_IMAGE, "eval=test"],
    "frozen": [*ODD, *TRAINED, "eval=frozen", "eval.epochs=2"],
    "attentive": [*ODD, *TRAINED, "eval=frozen", "head=attentive", "eval.epochs=1"],
    "linear_mae": [*ODD, *TRAINED, "eval=linear_mae", "eval.epochs=2"],
    "finetune": [*ODD, *TRAINED, "eval=finetune", "eval.epochs=2", "drop_path_rate=0.5"],
    "finetune with one image to validate on": [*ONE_TEST_IMAGE, *TRAINED, "eval=finetune", "eval.epochs=1"],
    "fewshot_finetune": [
        *ODD, *TRAINED, "eval=fewshot_finetune", "eval.label_fractions=[0.5]", "eval.seeds=[0]",
        "eval.fine_tune.epochs=1",
    ],
}  # fmt: skip
TRAINING = {name for name, overrides in RUNS.items() if "callbacks=evaluation" in overrides}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, on one process and on two; each leaves its report in a folder of its own."""
    folder = tmp_path_factory.mktemp("two")
    pretrain(
        compose_config(
            "run",
            [
                "method=mae", *MODEL, *ODD, *QUIET, "callbacks=none", "+callbacks.kept.filename=last",
                "trainer.max_epochs=1",
                f"+callbacks.kept.dirpath={folder}",
                "+callbacks.kept._target_=lightning.pytorch.callbacks.ModelCheckpoint",
                "method.decoder.embed_dim=24", "method.decoder.depth=1", "method.decoder.num_heads=3",
                f"paths.run_dir={folder}",
            ],
        )
    )  # fmt: skip
    segmented(folder / "photos")
    for devices in (1, 2):
        listed = []
        for name, overrides in RUNS.items():
            place = folder / f"{name} {devices}"
            place.mkdir()
            given = ["callbacks=none", *QUIET, *overrides, f"ckpt_path={folder / 'last.ckpt'}"]
            given += [f"data.root={folder / 'photos'}"] if name == "dense" else []
            given += [f"trainer.devices={devices}", f"strategy={'auto' if devices == 1 else 'ddp'}"]
            listed.append([*given, f"paths.run_dir={str(place)!r}"])
        (folder / f"{devices}.json").write_text(json.dumps(listed))
    for overrides in json.loads((folder / "1.json").read_text()):
        evaluate(compose_config("eval", overrides))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(HERE / "two_processes.py"), str(folder / "2.json")),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    (folder / "said.txt").write_text(done.stdout + done.stderr)
    return folder


def segmented(folder: Path) -> None:
    """Photos of two halves, and masks of them."""
    for number in range(23):
        halves = torch.zeros(32, 32, dtype=torch.uint8)
        halves[:, 4 + number :] = 1
        for kind, pixels in (("images", 40 + 150 * halves + number), ("masks", halves)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(folder / kind / f"{number}.png")


def reports(folder: Path, name: str, devices: int) -> dict[str, Any]:
    path = folder / f"{name} {devices}" / "report.json"
    assert path.is_file(), (folder / "said.txt").read_text()[-3000:]
    return json.loads(path.read_text())["reports"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RUNS))
def test_two_processes_give_the_figures_of_one(folder: Path, name: str) -> None:
    one, two = (reports(folder, name, devices) for devices in (1, 2))
    assert one
    assert set(one) == set(two)
    tolerance = 1e-5 if name in TRAINING else 1e-7
    for row, report in one.items():
        assert two[row]["protocol"] == report["protocol"]
        assert two[row]["metrics"] == pytest.approx(report["metrics"], rel=tolerance)
        assert two[row]["num_test_images"] == report["num_test_images"]
