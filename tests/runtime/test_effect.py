"""A setting of the command line that changes nothing is refused, through the command line; one that does is not."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

SMALL = ["image_size=32", "global_batch_size=4", "model=vit_mini", "trainer.accelerator=cpu", "logger=none"]
PICTURES = ["data.num_train=20", "data.num_val=10", "data.num_test=10"]
MAE = ["method=mae", "method.decoder={embed_dim: 8, depth: 1, num_heads: 2}"]


class PassedCheckError(Exception):
    """The command went past the check."""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def outcome(
    script: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> str | None:
    """Runs a command as far as its trainer; returns the refusal, or None if there was none."""
    from unmask.runtime import cli, evaluate, pretrain

    def stop(*_: Any, **__: Any) -> None:
        raise PassedCheckError

    monkeypatch.setattr(pretrain, "build_trainer", stop)
    monkeypatch.setattr(evaluate, "_open_backbones", stop)
    monkeypatch.setattr(evaluate, "run_inference", stop)
    monkeypatch.setattr(evaluate, "load_module", stop)
    monkeypatch.setattr("sys.argv", [f"{script}.py", *overrides, "hydra.run.dir=out"])
    GlobalHydra.instance().clear()
    with pytest.raises((PassedCheckError, SystemExit)) as stopped:
        {"run": cli.run, "eval": cli.evaluate}[script]()
    if stopped.type is PassedCheckError:
        return None
    assert stopped.value.code == 2
    return str(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("script", "overrides", "sentence"),
    [
        ("run", [*MAE, "mixup=0.5"], "mixup=0.5 has no effect: nothing that method=mae uses takes it; leave it out"),
        ("run", [*MAE, "optimizer=sgd", "betas=[0.8,0.9]"], "betas=[0.8,0.9] has no effect: nothing that method=mae"),
        ("run", [*MAE, "optimizer.lr=0.1", "base_lr=0.2"], "base_lr=0.2 has no effect"),
        ("run", [*MAE, "callbacks=none", "checkpoint_every_n_epochs=3"], "checkpoint_every_n_epochs=3 has no effect"),
        ("run", [*MAE, "head=mlp"], "head"),  # a group of eval.py
        ("run", [*MAE, "allow_partial=true"], "allow_partial=true has no effect"),
        (
            "run",
            [*MAE, "trainer.accumulate_grad_batches=2", "images_per_device=2"],
            "images_per_device=2 has no effect: trainer.accumulate_grad_batches=2 says in how many parts",
        ),
        ("run", [*MAE, "data.exif=false"], "data.exif=false has no effect: Synthetic decodes no image files"),
        (
            "run",
            [*MAE, "data=folder", "data.root=photos", "data.val_fraction=0.5"],
            "data.val_fraction=0.5 has no effect: the val split is read from photos/val",
        ),
        (
            "run",
            [*MAE, "data=folder", "data.root=photos", "data.max_bad_fraction=0.5"],
            "data.max_bad_fraction=0.5 has no effect: data.on_bad_image=raise stops at the first bad image",
        ),
        ("run", [*MAE, "data.global_batch_size=32"], "data.global_batch_size=32 contradicts global_batch_size=4"),
        (
            "eval",
            ["eval=frozen", "head=logistic_regression", "eval.epochs=77"],
            "eval.epochs=77 has no effect: LogisticRegression is fitted at once",
        ),
        ("eval", ["eval=frozen", "head=logistic_regression", "optimizer.weight_decay=0.2"], "LogisticRegression is"),
        ("eval", ["eval=frozen", "head=logistic_regression", "base_lr=0.2"], "base_lr=0.2 has no effect"),
        ("eval", ["eval=knn", "head=mlp"], "head=mlp has no effect: nothing that eval=knn uses takes it"),
        ("eval", ["eval=knn", "augmentation.hflip_prob=0"], "augmentation.hflip_prob=0 has no effect"),
        ("eval", ["eval=knn", "data=synthetic", "augmentation.hflip_prob=0"], "trains on no augmented images"),
        ("eval", ["eval=knn", "images_per_device=2"], "images_per_device=2 has no effect"),
        ("eval", ["eval=finetune", "schedule=constant"], "schedule=constant has no effect"),
        ("eval", ["eval=finetune", "trainer.max_epochs=3"], "eval.epochs says how long is trained"),
        ("eval", ["eval=finetune", "eval.label_seed=3"], "eval.label_fraction=1 uses all training images"),
        ("eval", ["eval=test", "allow_partial=true"], "allow_partial=true has no effect"),
    ],
)
def test_a_setting_without_effect_is_refused(
    script: str, overrides: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for split in ("train", "val"):
        Path("photos", split).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (40, 40)).save(f"photos/{split}/{number}.png")
    command = [*SMALL, *overrides] if script == "run" else ["ckpt_path=x", *overrides]
    if script == "run" and "data=folder" not in overrides:
        command += PICTURES

    said = outcome(script, command, monkeypatch, capsys)

    assert said is not None
    assert sentence in said
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("script", "overrides"),
    [
        ("run", [*MAE, "base_lr=0.2", "betas=[0.8,0.9]", "seed=3", "drop_path_rate=0.1", "schedule=constant"]),
        ("run", [*MAE, "images_per_device=2", "augmentation.hflip_prob=0", "recipe=supervised", "strategy=ddp"]),
        ("run", [*MAE, "checkpoint_every_n_epochs=3", "callbacks.throughput=null", "trainer.max_epochs=3"]),
        ("run", [*MAE, "method.decoder.depth=2", "method.mask_generator.ratio=0.5", "model.norm_eps=1e-5"]),
        ("run", [*MAE, "base_lr=1e30"]),
        ("run", [*MAE, "+note.seed=1", "seed=${note.seed}", "name=mine", "~callbacks.loss_curve", "resume=auto"]),
        ("run", ["method=supervised", "mixup=0.5", "method.label_smoothing=0.2", "method.layer_decay=0.5"]),
        ("run", ["experiment=quickstart", "trainer.max_epochs=1", "on_nonfinite=skip"]),
        ("eval", ["eval=frozen", "eval.epochs=77", "base_lr=0.2", "optimizer.weight_decay=0.2", "head=linear"]),
        ("eval", ["eval=frozen", "head=logistic_regression", "head.max_iterations=5", "eval.baseline=true"]),
        ("eval", ["eval=finetune", "mixup=0", "head.weight_std=0.1", "images_per_device=2", "drop_path_rate=0.3"]),
        ("eval", ["eval=finetune", "eval.label_fraction=0.5", "eval.label_seed=3", "augmentation.hflip_prob=0"]),
        (
            "eval",
            [
                "eval=knn",
                "eval.k=3",
                "seeds=[1,2]",
                "backbone.image_size=64",
                "data.root=x",
                "crop_pct=0.9",
                "interpolation=bilinear",
            ],
        ),
        ("eval", ["eval=all", "eval.protocols.linear.epochs=3", "eval.protocols.anomaly=null", "trainer.devices=2"]),
        ("eval", ["eval=test", "data=synthetic", "data.num_test=3", "global_batch_size=8"]),
        ("eval", ["eval=reconstruct", "image=x.png", "eval.num_images=3", "seed=2"]),
    ],
)
def test_a_setting_with_an_effect_is_taken(
    script: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = [*SMALL, *PICTURES, *overrides] if script == "run" else ["ckpt_path=x", *overrides]
    if "experiment=quickstart" in overrides:
        command = overrides
    with torch.device("cpu"):
        assert outcome(script, command, monkeypatch, capsys) is None
