"""Exports of checkpoints: what the card states, what is refused, what is left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import unmask
from unmask.data.sources.synthetic import CLASS_NAMES
from unmask.runtime.builders import build, build_module, resolve_config
from unmask.runtime.config import compose_config
from unmask.runtime.export import checkpoint_source, export
from unmask.runtime.run_record import describe_run, remember_places

MAE = ["method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=1", "method.decoder.embed_dim=24"]
MAE += ["method.decoder.depth=1", "method.decoder.num_heads=3"]
SUPERVISED = ["method=supervised", *MAE[1:4]]
DATA = [
    "data.num_train=10",
    "data.crop_pct=0.8",
    "data.interpolation=bilinear",
    "paths.run_dir=/home/ada/runs/1",
    "name=x",
]


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_checkpoint(path: Path, overrides: list[str], **config: Any) -> tuple[Any, Path]:
    """A method with random weights, and a checkpoint as a run of that configuration would leave it."""
    composed = compose_config("run", [*overrides, *DATA])
    data = build(composed.data)
    method = build_module(composed.method, data).eval()
    plain = resolve_config(composed) | config
    record = describe_run(plain, num_classes=data.num_classes, class_names=data.class_names)
    remember_places(record, plain)
    entry = {
        "format": 1,
        "record": record,
        "backbone": dict(method.backbone.settings),
        "versions": {"unmask": "0.1.0"},
        "git": {"commit": "abc123", "is_dirty": False},
        "images_seen": 4321,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": method.state_dict(), "global_step": 17, "unmask": entry}, path)
    return method, path


def write_report(path: Path, ckpt_path: str, **top1: float) -> Path:
    """A report as eval.py writes it; "random" is the untrained network beside."""
    reports = {
        name: {
            "backbone": name,
            "ckpt_path": None if name == "random" else ckpt_path,
            "seed": 0,
            "data": {"test": "d1"},
            "git": {"commit": "def456"},
            "protocol": "knn: k 20",
            "metrics": {"top1": value},
            "num_test_images": 50,
        }
        for name, value in top1.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"reports": reports, "summary": []}))
    return path


def exported(*overrides: str) -> Path:
    export(compose_config("export", ["directory=out", *overrides]))
    return Path("out")


def test_a_card_states_what_the_checkpoint_records() -> None:
    write_checkpoint(Path("run/checkpoints/last.ckpt"), MAE)
    card = (exported("ckpt_path=run/checkpoints/last.ckpt", "format=timm") / "README.md").read_text()
    for fact in ("MAE(norm_pix_loss=True)", "ratio=0.75", "4,321 images seen", "17 steps done", "commit abc123"):
        assert fact in card
    assert "a centered crop of 0.8 of the tighter side, resized bilinear" in card
    assert "No report of this checkpoint was given or found" in card
    assert "ada" not in card


def test_a_classifier_keeps_its_names_and_can_be_left_out() -> None:
    method, _ = write_checkpoint(Path("last.ckpt"), SUPERVISED)
    folder = exported("ckpt_path=last.ckpt")
    opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert opened.pretrained_cfg["label_names"] == list(CLASS_NAMES)
    assert (opened.pretrained_cfg["crop_pct"], opened.pretrained_cfg["interpolation"]) == (0.8, "bilinear")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(opened(images), method(images), rtol=0, atol=1e-5)
    export(compose_config("export", ["ckpt_path=last.ckpt", "classifier=false"]))  # beside the checkpoint
    alone = timm.create_model("local-dir:last_huggingface", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(alone(images), method.backbone.forward_pooled(images), rtol=0, atol=1e-5)


def test_reports_under_the_root_that_measured_the_checkpoint_are_quoted() -> None:
    _, path = write_checkpoint(Path("runs/mae/1/checkpoints/last.ckpt"), MAE)
    write_report(Path("runs/knn/1/report.json"), str(path), checkpoint=46.6, random=29.8)
    write_report(Path("runs/knn/2/report.json"), "runs/other/checkpoints/last.ckpt", checkpoint=99.9)
    Path("runs/knn/report.json").write_text("no report of ours")
    accuracy = checkpoint_source(path).card.split("## Accuracy")[1]
    assert "| knn: k 20, seed 0 | 46.60 |  | 29.80 | 50 |" in accuracy
    assert "`knn/1/report.json` of `1/checkpoints/last.ckpt`, measured at commit def456" in accuracy
    assert "99.9" not in accuracy


def test_what_fine_tuning_kept_is_measured_by_the_report_of_its_own_run() -> None:
    write_report(Path("runs/finetune/1/report.json"), "gone.ckpt", checkpoint=60.9, random=52.0)
    fine_tuning = {"eval": {"epochs": 3}, "ckpt_path": None}
    for name, top1 in (("checkpoint", "60.90"), ("random", "52.00")):
        _, path = write_checkpoint(Path(f"runs/finetune/1/checkpoints/{name}/last.ckpt"), SUPERVISED, **fine_tuning)
        accuracy = checkpoint_source(path).card.split("## Accuracy")[1]
        assert f"| {top1} |" in accuracy
    assert "60.90" not in accuracy


def test_a_report_that_is_given_must_be_of_this_checkpoint() -> None:
    _, path = write_checkpoint(Path("a/last.ckpt"), MAE)
    write_checkpoint(Path("b/last.ckpt"), MAE)
    of_another = write_report(Path("1/report.json"), "b/last.ckpt", checkpoint=50.0)
    with pytest.raises(ValueError, match=r"1/report.json measured b/last.ckpt, not a/last.ckpt; leave it out"):
        checkpoint_source(path, reports=[str(of_another)])
    moved_since = write_report(Path("2/report.json"), "old/place/last.ckpt", checkpoint=50.0)
    assert "`2/report.json` of `old/place/last.ckpt`" in checkpoint_source(path, reports=[str(moved_since)]).card
    with pytest.raises(ValueError, match=r"reports=missing.json is no report.json"):
        checkpoint_source(path, reports=["missing.json"])


def test_a_fine_tuned_classifier_tells_of_both_runs() -> None:
    write_checkpoint(Path("first.ckpt"), MAE)
    for start, said in (
        ("first.ckpt", "## Pre-training"),
        ("/home/ada/x/y/gone.ckpt", "started from `x/y/gone.ckpt`, which was not found"),
        (None, "weights fine-tuning started from were random"),
    ):
        _, path = write_checkpoint(Path("tuned.ckpt"), SUPERVISED, eval={"epochs": 3}, ckpt_path=start)
        card = checkpoint_source(path).card
        assert said in card
        assert ("MAE(" in card) == (start == "first.ckpt")
        assert card.index("## Fine-tuning") < card.index("3 epochs planned")


def test_an_export_says_what_it_did(caplog: pytest.LogCaptureFixture) -> None:
    write_checkpoint(Path("last.ckpt"), MAE)
    with caplog.at_level("INFO", logger="unmask"):
        exported("ckpt_path=last.ckpt", "format=vitmae")
    assert "checked: losses in transformers differ by" in caplog.text
    assert "exported to out: README.md, config.json, model.safetensors, preprocessor_config.json" in caplog.text
    assert 'ViTMAEForPreTraining.from_pretrained("out")' in caplog.text


def test_nothing_is_read_where_the_folder_is_taken_or_nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalTokenNotFoundError  # noqa: PLC0415

    class Stranger:
        def whoami(self) -> None:
            raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr("unmask.interchange.hub.HfApi", Stranger)
    with pytest.raises(ValueError, match="hf auth login"):
        exported("ckpt_path=not_read.ckpt", "push_to=ada/mae")
    assert not list(Path().iterdir())
    Path("out").mkdir()
    Path("out/mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="out holds files already"):
        exported("ckpt_path=not_read.ckpt")


@pytest.mark.parametrize("training", [True, False])
def test_a_backbone_is_exported_from_python_and_left_as_it_is(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], nn.Module], training: bool
) -> None:
    backbone = randomize(make_vit(depth=1, pixel_mean=(0.1, 0.2, 0.3))).train(training)
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    assert unmask.export_backbone(backbone, "a/b") == [
        Path("a/b/README.md"),
        Path("a/b/config.json"),
        Path("a/b/model.safetensors"),
    ]
    images: Tensor = torch.rand(2, 3, 32, 32)
    opened = timm.create_model("local-dir:a/b", pretrained=True).eval()
    mean, std = (torch.tensor(opened.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    assert backbone.training is training
    with torch.no_grad():
        computed = opened((images - mean) / std)
    torch.testing.assert_close(computed, unmask.extract_features(backbone, images), rtol=0, atol=1e-5)
    assert all(torch.equal(weight, before[name]) for name, weight in backbone.state_dict().items())
    assert "has no record of its training" in Path("a/b/README.md").read_text()


def test_an_unknown_format_is_answered_with_the_known_ones(make_vit: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="one of huggingface, timm, torch_export, onnx, got 'tensorflow'"):
        unmask.export_backbone(make_vit(depth=1), "out", format="tensorflow")
