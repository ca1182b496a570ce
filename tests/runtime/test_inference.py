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

TRAINED = Path(__file__).parents[1] / "format_1" / "last.ckpt"
CHOICES = ["predict", "embed", "neighbors", "reconstruct"]


@pytest.fixture
def served(make_vit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Says what images a command takes: those at a path, and those of its data."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 50)).save(photo)
    own_statistics = {"pixel_mean": (0.1, 0.2, 0.3), "pixel_std": (0.4, 0.5, 0.6)}
    path = export_weights(make_vit(depth=1, **own_statistics), tmp_path / "backbone.safetensors")

    def of_command(choice: str, *overrides: str, split: str = "test", data: str | None = "synthetic") -> list[Any]:
        given = [f"eval={choice}", f"ckpt_path={path}", f"paths.run_dir={tmp_path}", "name=x"]
        given += [] if data is None else [f"data={data}"]
        given += ["eval.out=features"] if choice == "embed" else []
        given += ["trainer.accelerator=cpu", "logger=none", "callbacks=none", *overrides]
        config = compose_config("eval", given)
        inference, found = build(config.eval), []

        def look(model: Any, find: Any, **_: Any) -> None:
            found.extend(find(place, split) for place in (str(photo), *([] if data is None else [None])))

        def load(checkpoint: Any) -> tuple[Any, Any]:
            backbone = checkpoint.load_backbone()
            return backbone, backbone

        monkeypatch.setattr(inference, "run", look)
        monkeypatch.setattr(inference, "load", load)
        monkeypatch.setattr(inference, "reads_classifier", False)  # the file holds a backbone alone
        run_inference(config, inference, lambda config, backbone: build(config.data))
        return found

    return of_command


@pytest.fixture
def crops_of(served: Callable[..., Any]) -> Callable[..., Any]:
    """Says what centred crop a command takes of images at a path and of images of its data."""

    def crops(choice: str, *overrides: str, of: str = "crop_pct") -> tuple[Any, Any]:
        at_path, of_data = served(choice, "data.crop_pct=0.6", *overrides)
        return getattr(at_path.data, of), getattr(of_data.data, of)

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


def test_images_of_the_data_are_of_the_split_asked_for(served: Callable[..., Any]) -> None:
    _, of_data = served("embed", "data.num_val=3", split="val")
    assert (of_data.split, len(of_data)) == ("val", 3)


def test_images_at_a_path_are_decoded_as_the_data_and_normalised_for_the_backbone(served: Callable[..., Any]) -> None:
    at_path, _ = served("embed", "data.background=black", "data.pixel_scale=100", "data.exif=false")
    decoder = at_path.data.decoder
    assert (decoder.background, decoder.pixel_scale, decoder.exif) == ("black", 100, False)
    assert at_path.data.image_size == (32, 32)
    assert tuple(at_path.data.pixel_mean) == (0.1, 0.2, 0.3)
    assert tuple(at_path.data.pixel_std) == (0.4, 0.5, 0.6)


def test_images_at_a_path_are_cropped_as_those_the_checkpoint_was_trained_on(served: Callable[..., Any]) -> None:
    (at_path,) = served("embed", f"ckpt_path={TRAINED}", data=None)
    assert at_path.data.crop_pct == 1.0


def test_several_devices_are_refused(served: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"x computes on one device, and trainer\.devices gives 2"):
        served("embed", "trainer.devices=2")
