"""A run that starts from weights of this program or another."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import SwinConfig, SwinForMaskedImageModeling

import unmask
from unmask.runtime.config import compose_config
from unmask.runtime.evaluate import evaluate
from unmask.runtime.pretrain import pretrain

VIT = ["model=vit_mini", "model.embed_dim=24", "model.depth=2", "model.num_heads=3"]
MAE = ["method=mae", *VIT, "method.decoder.embed_dim=24", "method.decoder.depth=1", "method.decoder.num_heads=3"]
SWIN = ["model=swin_mini", "model.embed_dim=24", "model.depths=[2,1]", "model.num_heads=[2,3]"]
DDMIM = ["method=ddmim", *SWIN, "method.mask_generator.ratios=[0.5,0.5]", "method.features.weights=[1,1]"]
DDMIM += ["method.contrast.projector.hidden_features=16", "method.contrast.projector.out_features=8"]
DATA = ["data.num_train=8", "data.num_val=4", "data.num_test=4", "global_batch_size=4"]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32)


@pytest.fixture
def official_mae(randomize: Callable[[nn.Module], nn.Module], tmp_path: Path) -> tuple[Any, Path]:
    """A method of ours and the same weights under the names of facebookresearch/mae."""
    method = randomize(unmask.build_method(MAE))
    names = {"embed": "decoder_embed", "blocks": "decoder_blocks", "norm": "decoder_norm", "predict": "decoder_pred"}
    names |= {"mask_token": "mask_token", "pos_embed": "decoder_pos_embed"}
    weights = {}
    for name, weight in method.state_dict().items():
        owner, _, inner = name.removeprefix("backbone.vit.").partition(".")
        part, dot, rest = inner.partition(".")
        weights[f"{names[part]}{dot}{rest}" if owner == "decoder" else f"{owner}.{inner}".rstrip(".")] = weight
    torch.save({"model": weights}, tmp_path / "mae.pth")
    return method, tmp_path / "mae.pth"


def test_a_full_mae_brings_its_decoder(official_mae: tuple[Any, Path], images: Tensor) -> None:
    theirs, path = official_mae
    ours = unmask.build_method([*MAE, f"method.init_from={path}"])
    mask = theirs.mask_generator(images)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images, mask).loss, theirs(images, mask).loss)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("method.decoder.depth=2", "the configured head has more (decoder.blocks.1.norm1.weight)"),
        ("method.decoder.embed_dim=12", "the configured head has other sizes (decoder.mask_token: 1x1x24 in the file"),
        ("method=simmim", "the configured method has no such head (decoder.mask_token)"),
    ],
)
def test_a_head_that_does_not_fit_is_left_out_whole(
    official_mae: tuple[Any, Path], change: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, path = official_mae
    overrides = ["method=simmim", *VIT] if change == "method=simmim" else [*MAE, change]
    with caplog.at_level(logging.INFO, logger="unmask"):
        ours = unmask.build_method([*overrides, f"method.init_from={path}"])
    assert reason in caplog.text
    assert torch.equal(ours.backbone.vit.norm.weight, theirs.backbone.vit.norm.weight)
    if change.startswith("method.decoder"):
        assert (ours.decoder.norm.weight == 1).all()


def test_a_decoder_keeps_the_positions_of_its_own_grid(official_mae: tuple[Any, Path]) -> None:
    theirs, path = official_mae
    ours = unmask.build_method([*MAE, f"method.init_from={path}", "image_size=64", "model.patch_size=4"])
    assert ours.decoder.pos_embed.shape[1] == 16 * 16 + 1
    assert torch.equal(ours.decoder.predict.weight, theirs.decoder.predict.weight)


def test_simmim_of_transformers_goes_on_with_its_head(
    randomize: Callable[[nn.Module], nn.Module], images: Tensor, tmp_path: Path
) -> None:
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 24, "depths": [2, 1], "num_heads": [2, 3]}
    theirs = randomize(SwinForMaskedImageModeling(SwinConfig(**sizes, window_size=4, encoder_stride=8)))
    theirs.save_pretrained(tmp_path / "model")
    ours = unmask.build_method(["method=simmim", *SWIN, f"method.init_from={tmp_path / 'model'}"]).eval()
    mask = ours.mask_generator(images)
    with torch.no_grad():
        expected = theirs(images, bool_masked_pos=mask.at_stride(4).flatten(1)).loss
        torch.testing.assert_close(ours(images, mask).loss, expected, rtol=1e-5, atol=0)


def test_a_teacher_begins_as_the_student_that_was_loaded(
    randomize: Callable[[nn.Module], nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 1), "num_heads": (2, 3)}
    theirs = randomize(timm.create_model("swin_tiny_patch4_window7_224", **sizes))
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    with caplog.at_level(logging.INFO, logger="unmask"):
        method = unmask.build_method([*DDMIM, f"method.init_from={tmp_path / 'swin.pth'}"])
    assert "teacher: a copy of the student as loaded" in caplog.text
    student = method.backbone.state_dict()
    assert torch.equal(student["swin.norm.weight"], theirs.norm.weight)
    assert all(torch.equal(w, student[name]) for name, w in method.teacher["backbone"].state_dict().items())


def test_a_teacher_of_a_file_is_not_overwritten(tmp_path: Path) -> None:
    theirs = unmask.build_method(DDMIM)
    nn.init.ones_(theirs.teacher["backbone"].swin.norm.bias)
    weights = {"unmask": {"format": 1, "backbone": dict(theirs.backbone.settings)}, "state_dict": theirs.state_dict()}
    torch.save(weights, tmp_path / "last.ckpt")
    ours = unmask.build_method([*DDMIM, f"method.init_from={tmp_path / 'last.ckpt'}"])
    assert (ours.teacher["backbone"].swin.norm.bias == 1).all()
    assert all(torch.equal(weight, ours.state_dict()[name]) for name, weight in theirs.state_dict().items())
    assert (unmask.load_backbone(tmp_path / "last.ckpt", use_ema_weights=True).swin.norm.bias == 1).all()
    assert (unmask.load_backbone(tmp_path / "last.ckpt").swin.norm.bias == 0).all()


def test_a_classifier_of_other_classes_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = unmask.build_method(["method=supervised", *VIT])
    weights = dict(theirs.state_dict())
    weights["head.linear.weight"], weights["head.linear.bias"] = torch.zeros(3, 24), torch.zeros(3)
    run = {"num_classes": 3, "class_names": ["ant", "bee", "cow"]}
    record = {"format": 1, "backbone": dict(theirs.backbone.settings), "record": run}
    torch.save({"unmask": record, "state_dict": weights}, tmp_path / "last.ckpt")
    with caplog.at_level(logging.INFO, logger="unmask"):
        ours = unmask.build_method(["method=supervised", *VIT, f"method.init_from={tmp_path / 'last.ckpt'}"])
    assert "a classifier of other classes than the data's (the classifier names its 3 classes 'ant'" in caplog.text
    assert torch.equal(ours.backbone.vit.cls_token, theirs.backbone.vit.cls_token)
    assert not (ours.head.linear.weight == 0).any()


def test_another_architecture_is_refused(official_mae: tuple[Any, Path]) -> None:
    _, path = official_mae
    with pytest.raises(ValueError, match=r"mae\.pth holds MAE.*, but the configured model is of the family 'swin'"):
        unmask.build_method(["method=simmim", *SWIN, f"method.init_from={path}"])


def configuration(name: str, folder: Path, *overrides: str) -> Any:
    quiet = ["logger=none", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    return compose_config(name, [*overrides, *quiet, "name=x", f"paths.run_dir={folder}"])


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_run_starts_from_the_file(official_mae: tuple[Any, Path], tmp_path: Path) -> None:
    theirs, path = official_mae
    still = ["optimizer.lr=0", "trainer.max_epochs=1", "callbacks=none", "trainer.enable_checkpointing=false"]
    started = configuration("run", tmp_path, *MAE, *DATA, *still, f"method.init_from={path}")
    pretrain(started)
    exported = load_file(tmp_path / "backbone.safetensors")
    assert all(torch.equal(weight, exported[name]) for name, weight in theirs.backbone.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_resumed_run_does_not_read_the_file_again(tmp_path: Path) -> None:
    still = ["optimizer.lr=0", "callbacks=none", "trainer.enable_checkpointing=true"]
    first = configuration("run", tmp_path, *MAE, *DATA, *still, "trainer.max_epochs=1")
    first.trainer.default_root_dir = str(tmp_path)
    pretrain(first)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    resumed = configuration("run", tmp_path, *MAE, *DATA, *still, "trainer.max_epochs=2")
    resumed.ckpt_path, resumed.method.init_from = str(checkpoint), "gone.pth"
    pretrain(resumed)


def test_an_evaluation_takes_any_file_with_its_data_named(
    randomize: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1}
    theirs = randomize(timm.create_model("vit_tiny_patch16_224", **sizes))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    named = [f"ckpt_path={tmp_path / 'vit.pth'}", "eval=knn", "callbacks=none"]
    with pytest.raises(ValueError, match=r"vit\.pth does not record the data it was trained on; add data=NAME"):
        evaluate(configuration("eval", tmp_path, *named))
    data = ["data=synthetic", "data.num_train=40", "data.num_val=4", "data.num_test=4"]
    for changes, size in (
        (["image_size=16"], "32x32"),
        (["backbone.image_size=16"], "16x16"),
    ):  # the first is the data's
        evaluate(configuration("eval", tmp_path, *named, *data, *changes))
        report = json.loads((tmp_path / "report.json").read_text())["reports"]["checkpoint"]
        assert f"{size} px" in report["protocol"]
    with pytest.raises(ValueError, match=r"has 1000 outputs and the data have 10 classes, .* \(the file does not name"):
        evaluate(configuration("eval", tmp_path, *named, "eval=test", "data=synthetic"))
