"""An evaluation at another image size or window than the backbone was trained at."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

DATA = ["data=synthetic", "data.num_train=12", "data.num_val=4", "data.num_test=8"]
QUIET = ["trainer.accelerator=cpu", "logger=none", "callbacks=none", "name=x"]


@pytest.fixture
def evaluate_at(tmp_path: Path) -> Callable[..., dict]:
    def run(backbone: nn.Module, *overrides: str) -> dict:
        from unmask.runtime.checkpoint import export_weights
        from unmask.runtime.config import compose_config
        from unmask.runtime.evaluate import evaluate

        path = export_weights(backbone, tmp_path / "backbone.safetensors")
        given = ["eval=finetune", "eval.epochs=1", "global_batch_size=4", "recipe=supervised_small", *DATA, *QUIET]
        evaluate(compose_config("eval", [*given, f"ckpt_path={path}", f"paths.run_dir={tmp_path}", *overrides]))
        return json.loads((tmp_path / "report.json").read_text())["reports"]["checkpoint"]

    return run


def test_a_vit_is_fine_tuned_at_twice_the_size_with_its_positions_resized(
    make_vit: Callable[..., nn.Module], randomise: Callable[[nn.Module], nn.Module], evaluate_at, tmp_path: Path
) -> None:
    from unmask.runtime.checkpoint import load_backbone

    backbone = randomise(make_vit())  # of 32 px
    # A rate of next to nothing shows what the run started from.
    report = evaluate_at(backbone, "backbone.image_size=64", "base_lr=1e-30", "eval_crop_share=0.5")
    assert "64x64 px" in report["protocol"]
    tuned = load_backbone(tmp_path / "checkpoints" / "checkpoint" / "last.ckpt")
    assert tuned.image_size == (64, 64)
    table = backbone.vit.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(table, size=(8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(tuned.vit.pos_embed[:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2), expected)
    assert torch.equal(tuned.vit.blocks[3].mlp.fc1.weight, backbone.vit.blocks[3].mlp.fc1.weight)
    saved = torch.load(tmp_path / "checkpoints" / "checkpoint" / "last.ckpt", weights_only=True)
    assert saved["unmask"]["record"]["config"]["data"]["eval_crop_share"] == 0.5


def test_a_swin_is_fine_tuned_with_larger_windows(
    make_swin: Callable[..., nn.Module], randomise: Callable[[nn.Module], nn.Module], evaluate_at, tmp_path: Path
) -> None:
    from unmask.runtime.checkpoint import load_backbone

    backbone = randomise(make_swin(image_size=32, patch_size=2))  # windows of 4: 16, 8 and 4 tokens
    evaluate_at(backbone, "backbone.image_size=48", "backbone.window_size=6", "base_lr=1e-30")
    tuned = load_backbone(tmp_path / "checkpoints" / "checkpoint" / "last.ckpt")
    table = tuned.swin.layers[0].blocks[0].attn.relative_position_bias_table
    before = backbone.swin.layers[0].blocks[0].attn.relative_position_bias_table
    assert (before.shape[0], table.shape[0]) == (7**2, 11**2)
    torch.testing.assert_close(table[60], before[24])  # no offset at all is the centre of both
    corners, corners_before = table[[0, 10, 110, 120]], before[[0, 6, 42, 48]]
    torch.testing.assert_close(corners, corners_before, rtol=1e-3, atol=1e-4)


def test_a_window_for_a_backbone_without_windows_is_refused(make_vit: Callable[..., nn.Module], evaluate_at) -> None:
    with pytest.raises(ValueError, match="no setting 'window_size'"):
        evaluate_at(make_vit(), "backbone.window_size=6")
