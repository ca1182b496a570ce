"""How the use commands serve images to a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unmask.runtime.builders import build
from unmask.runtime.checkpoint import export_weights
from unmask.runtime.config import compose_config
from unmask.runtime.inference import run_inference

CHOICES = ["predict", "embed", "neighbors", "reconstruct"]


@pytest.fixture
def crops_of(make_vit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Says what centred crop a command takes of images at a path and of images of its data."""
    path = export_weights(make_vit(), tmp_path / "backbone.safetensors")
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 50)).save(photo)

    def crops(choice: str, *overrides: str, of: str = "crop_pct") -> tuple[Any, Any]:
        given = [f"eval={choice}", f"ckpt_path={path}", "data=synthetic", f"paths.run_dir={tmp_path}", "name=x"]
        given += ["eval.out=features"] if choice == "embed" else []
        given += ["data.crop_pct=0.6", "trainer.accelerator=cpu", "logger=none", "callbacks=none", *overrides]
        config = compose_config("eval", given)
        inference, found = build(config.eval), []

        def look(model: Any, find: Any, **_: Any) -> None:
            found.extend(getattr(find(place, "test").data, of) for place in (str(photo), None))

        def load(checkpoint: Any) -> tuple[Any, Any]:
            backbone = checkpoint.load_backbone()
            return backbone, backbone

        monkeypatch.setattr(inference, "run", look)
        monkeypatch.setattr(inference, "load", load)
        monkeypatch.setattr(inference, "reads_classifier", False)  # the file holds a backbone alone
        run_inference(config, inference, lambda config, backbone: build(config.data))
        return found[0], found[1]

    return crops


@pytest.mark.parametrize("choice", CHOICES)
def test_the_crop_is_the_commands_own_or_that_of_the_data(choice: str, crops_of: Callable[..., Any]) -> None:
    assert crops_of(choice) == (0.6, 0.6)
    assert crops_of(choice, "eval.crop_pct=0.35") == (0.35, 0.35)
    assert (
        crops_of(choice, "crop_pct=0.4")[0] == 0.4
    )  # images at a path, and of data once they are built for a backbone
    assert crops_of(choice, "crop_pct=0.4", "eval.crop_pct=0.35") == (0.35, 0.35)


@pytest.mark.parametrize("choice", CHOICES)
def test_images_at_a_path_are_resized_as_the_data_or_as_asked(choice: str, crops_of: Callable[..., Any]) -> None:
    assert crops_of(choice, of="interpolation") == ("bicubic", "bicubic")
    assert crops_of(choice, "data.interpolation=bilinear", of="interpolation") == ("bilinear", "bilinear")
    assert crops_of(choice, "interpolation=bilinear", of="interpolation")[0] == "bilinear"
