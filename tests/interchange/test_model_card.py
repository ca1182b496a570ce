from pathlib import Path
from typing import Any

from unmask.interchange.exporters.base import Comparison, ExportSource
from unmask.interchange.model_card import model_card


def card(backbone: Any, **known: Any) -> str:
    checked = [Comparison(1.5e-7, 2.0, "logits in timm", 1e-5)]
    return model_card(ExportSource(backbone=backbone, **known), "USAGE", checked, title="mae", library="timm")


def test_the_header_is_what_the_hub_reads(make_vit, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard  # noqa: PLC0415

    (tmp_path / "README.md").write_text(card(make_vit(depth=1), tags=["mae"]))
    read = ModelCard.load(tmp_path / "README.md").data
    assert (read.library_name, read.pipeline_tag, read.tags) == ("timm", "image-feature-extraction", ["unmask", "mae"])
    assert read.license is None


def test_the_card_describes_the_network_and_the_check(make_vit) -> None:
    backbone = make_vit(depth=1, image_size=(32, 64), pixel_mean=(0.1, 0.25, 0.8))
    names = [f"class {number}" for number in range(22)]
    text = card(backbone, classifier=backbone.vit.norm, class_names=names, crop_pct=0.875)
    num_parameters = sum(parameter.numel() for parameter in backbone.parameters())
    assert f"An image classifier for 32x64 px images; the backbone has {num_parameters:,} parameters." in text
    assert "pipeline_tag: image-classification" in text
    assert "mean 0.1, 0.25, 0.8, deviation 0.229, 0.224, 0.225" in text
    assert "a centered crop of 0.875 of the tighter side" in text
    assert "| 22 classes | class 0, class 1" in text
    assert "class 19 and 2 more |" in text
    assert "logits in timm: largest absolute difference 1.5e-07 to the network exported" in text
    assert "USAGE" in text


def test_an_unknown_training_is_called_unknown(make_vit) -> None:
    assert "has no record of its training" in card(make_vit(depth=1))
    assert "no record" not in card(make_vit(depth=1), card="## Training\n\nMAE")
