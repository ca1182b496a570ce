"""The two commands as a user types them, in processes of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
TINY = [
    "model.embed_dim=24",
    "model.depth=2",
    "method.decoder.embed_dim=24",
    "method.decoder.depth=1",
    "method.decoder.num_heads=3",
    "data.num_train=64",
    "data.num_val=20",
    "data.num_test=20",
    "global_batch_size=16",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
]


def command(script: str, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *overrides],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small run of `run.py`, which the tests read."""
    folder = tmp_path_factory.mktemp("pretrained")
    done = command("run.py", "method=mae", *TINY, "trainer.max_epochs=2", "hydra.run.dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "run" / "console.txt").write_text(done.stdout)
    return folder / "run"


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(pretrained: Path) -> None:
    console = (pretrained / "console.txt").read_text()

    assert "= base_lr 0.0113137 x 16 / 256 (linear scaling)" in console  # by the rule of small sets
    assert "16 = 16 x 1 device(s) x 1 accumulated; 4 steps an epoch, 2 epochs, 8 steps" in console
    assert "75% of an image" in console
    assert len(console.splitlines()) < 40
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "backbone.safetensors", "loss_curve.png"):
        assert (pretrained / name).stat().st_size > 0
    assert [path.name for path in (pretrained / "panels").iterdir()] == ["epoch_0002.png"]
    assert "val/loss" in (pretrained / "csv" / "metrics.csv").read_text()
    assert "val/loss" in (pretrained / "run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["checkpoints/last.ckpt", "backbone.safetensors"])
def test_knn_of_a_checkpoint_and_of_the_exported_backbone(pretrained: Path, source: str, tmp_path: Path) -> None:
    data = ["data=synthetic", *[entry for entry in TINY if entry.startswith("data.")]]
    done = command(
        "eval.py",
        "eval=knn",
        f"ckpt_path={pretrained / source}",
        "eval.also_k=[10]",
        *(data if source.endswith("safetensors") else []),
        "trainer.accelerator=cpu",
        "hydra.run.dir=eval",
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "eval" / "report.json").read_text())["reports"]
    assert set(report) == {"checkpoint", "random"}
    assert report["checkpoint"]["num_test_images"] == 20
    assert report["checkpoint"]["metrics"]["top1"] % 5 == pytest.approx(0.0)  # 20 images: steps of 5 %
    assert f"{report['random']['metrics']['top1']:.2f}" in (tmp_path / "eval" / "report.md").read_text()


@pytest.mark.slow
def test_single_settings_of_the_checkpoints_own_data_are_changed(pretrained: Path, tmp_path: Path) -> None:
    shared = ["eval.py", "eval=knn", f"ckpt_path={pretrained / 'checkpoints' / 'last.ckpt'}", "eval.also_k=[]"]
    shared += ["eval.baseline=false", "trainer.accelerator=cpu", "hydra.run.dir=eval"]
    done = command(*shared, "data.num_test=8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "eval" / "report.json").read_text())["reports"]["checkpoint"]
    assert (report["num_train_images"], report["num_test_images"]) == (64, 8)


@pytest.mark.slow
def test_a_fine_tuned_classifier_tests_as_it_was_reported(pretrained: Path, tmp_path: Path) -> None:
    tuned = command(
        "eval.py",
        "eval=finetune",
        "eval.epochs=2",
        f"ckpt_path={pretrained / 'checkpoints' / 'last.ckpt'}",
        "global_batch_size=16",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "hydra.run.dir=tuned",
        cwd=tmp_path,
    )
    assert tuned.returncode == 0, tuned.stderr
    tested = command(
        "eval.py",
        "eval=test",
        "ckpt_path=tuned/checkpoints/checkpoint/last.ckpt",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "hydra.run.dir=tested",
        cwd=tmp_path,
    )
    assert tested.returncode == 0, tested.stderr

    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("tuned", "tested")]
    top1 = [report["reports"]["checkpoint"]["metrics"]["top1"] for report in reports]
    assert top1[0] == pytest.approx(top1[1])


@pytest.mark.slow
def test_two_processes_measure_what_one_does_to_the_last_digit(pretrained: Path, tmp_path: Path) -> None:
    """64 training images in batches of 24 are three batches, so the second process runs short of one."""
    small = [f"eval.protocols.{name}" for name in ("linear.epochs=3", "logistic.head.max_iterations=5")]
    reports = {}
    for devices in (1, 2):
        done = command(
            "eval.py",
            "eval=all",
            f"ckpt_path={pretrained / 'checkpoints' / 'last.ckpt'}",
            *small,
            "global_batch_size=24",
            "trainer.accelerator=cpu",
            f"trainer.devices={devices}",
            f"hydra.run.dir=on_{devices}",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        written = (tmp_path / f"on_{devices}" / "report.json").read_text()
        reports[devices] = json.loads(written.replace(f"on_{devices}/lists", "lists"))  # where few labels were drawn
        assert done.stdout.count("report written to") == 1  # only the first process speaks
    assert len(reports[1]["reports"]) == 12  # six protocols, of the checkpoint and of a random backbone
    assert reports[2] == reports[1]


@pytest.mark.slow
def test_two_processes_train_as_one(pretrained: Path, tmp_path: Path) -> None:
    done = command(
        "run.py", "method=mae", *TINY, "trainer.max_epochs=2", "trainer.devices=2", "hydra.run.dir=run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr

    def validation_losses(run: Path) -> list[float]:
        return [float(loss) for loss in re.findall(r"\d  val/loss (\d+\.\d+)", (run / "run.log").read_text())]

    assert validation_losses(tmp_path / "run") == pytest.approx(validation_losses(pretrained), abs=2e-3)
    assert len(validation_losses(pretrained)) == 2
    assert done.stdout.count("linear scaling") == 1  # only the first process speaks
    assert "sync_dist" not in done.stderr


@pytest.mark.slow
@pytest.mark.nightly  # tests/runtime/test_wandb.py reads such a run back by default
def test_weights_and_biases_offline_holds_losses_panels_and_configuration(tmp_path: Path) -> None:
    done = command(
        "run.py", "method=mae", *TINY, "trainer.max_epochs=1", "trainer.log_every_n_steps=1", "logger=wandb",
        "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    (run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    record = next(run.glob("*.wandb")).read_bytes()
    for key in (
        b"train/loss",
        b"val/loss",
        b"train/lr",
        b"train/gradient_norm",
        b"global_batch_size",
        b"panels/reconstruction",
        b"trainable_parameters",
        b"mae_vit_mini_synthetic, seed 0",
    ):
        assert key in record, key
    assert list((run / "files" / "media").rglob("*.png"))
    assert (tmp_path / "run" / "csv" / "metrics.csv").is_file()  # it is one more logger, not another one
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_a_flat_folder_of_photos_needs_no_labels(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("RGB", (40 + number, 50), (20 * number, 100, 50)).save(tmp_path / f"photo {number}.png")
    small = ["model.embed_dim=24", "model.depths=[1,1]", "model.num_heads=[1,2]", "data.num_workers=1"]
    done = command(
        "run.py", "method=simmim", "model=swin_mini", *small, "data=folder", f"data.root={tmp_path}", "image_size=32",
        "global_batch_size=4", "trainer.max_epochs=1", "trainer.accelerator=cpu", "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "backbone.safetensors").is_file()

    refused = command(
        "eval.py", "eval=knn", "ckpt_path=run/checkpoints/last.ckpt", "trainer.accelerator=cpu", "hydra.run.dir=eval",
        cwd=tmp_path,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "needs labels" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "eval").exists()
