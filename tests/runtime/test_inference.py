"""How the use commands serve images to a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from unmask.evaluation.base import Outputs
from unmask.methods.backbone_module import BackboneModule
from unmask.runtime.builders import build
from unmask.runtime.checkpoint import LoadedModule, export_weights
from unmask.runtime.config import compose_config
from unmask.runtime.inference import CheckpointFile, run_inference

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
        given += ["trainer.accelerator=cpu", "logger=csv", "callbacks=none", *overrides]
        config = compose_config("eval", given)
        inference, found = build(config.eval), []

        def look(model: Any, find: Any, **_: Any) -> None:
            assert torch.initial_seed() == config.seed
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
    """Says what centered crop a command takes of images at a path and of images of its data."""

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


def test_images_at_a_path_are_decoded_as_the_data_and_normalized_for_the_backbone(served: Callable[..., Any]) -> None:
    at_path, _ = served("embed", "data.background=black", "data.pixel_scale=100", "data.exif=false")
    decoder = at_path.data.decoder
    assert (decoder.background, decoder.pixel_scale, decoder.exif) == ("black", 100, False)
    assert at_path.data.image_size == (32, 32)
    assert tuple(at_path.data.pixel_mean) == (0.1, 0.2, 0.3)
    assert tuple(at_path.data.pixel_std) == (0.4, 0.5, 0.6)


def test_images_at_a_path_have_the_backbones_channels_and_the_machines_workers(
    served: Callable[..., Any], make_vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gray = export_weights(
        make_vit(depth=1, in_channels=1, pixel_mean=(0.5,), pixel_std=(0.5,)), tmp_path / "gray.safetensors"
    )
    monkeypatch.setattr("unmask.runtime.inference.auto_workers", lambda: 3)
    (at_path,) = served("embed", f"ckpt_path={gray}", "seed=4", data=None)
    assert at_path.data.num_workers == 3
    assert at_path.data.decoder.channels == 1


def test_nothing_is_logged_of_an_inference(
    served: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    served("embed")
    assert not (tmp_path / "csv").exists()
    assert "Seed set to" not in caplog.text


def test_images_at_a_path_are_cropped_as_those_the_checkpoint_was_trained_on(served: Callable[..., Any]) -> None:
    (at_path,) = served("embed", f"ckpt_path={TRAINED}", data=None)
    assert at_path.data.crop_pct == 1.0


def test_several_devices_are_refused(served: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"x computes on one device, and trainer\.devices gives 2"):
        served("embed", "trainer.devices=2")


class Asked(Exception):  # noqa: N818  (no mistake)
    """Ends a command at its file."""


def test_a_classifier_is_read_with_the_settings_and_the_crop_the_user_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def load(path: str, **changes: Any) -> LoadedModule:
        asked.append(changes)
        return LoadedModule(Mock(spec=BackboneModule, backbone=None), Outputs())

    def prepare(config: Any, loaded: Any, path: str, **given: Any) -> Any:
        asked.append(given)
        raise Asked

    monkeypatch.setattr("unmask.runtime.inference.load_module", load)
    monkeypatch.setattr("unmask.runtime.inference.prepare_as_named", prepare)
    given = ["eval=predict", "ckpt_path=a.pth", "backbone.image_size=48", "eval.crop_pct=0.35", "name=x"]
    config = compose_config("eval", [*given, f"paths.run_dir={tmp_path}", "trainer.accelerator=cpu"])
    inference = build(config.eval)
    monkeypatch.setattr(inference, "load", lambda checkpoint: (checkpoint.load_module(), None))
    with pytest.raises(Asked):
        run_inference(config, inference, Mock())
    assert asked == [{"image_size": 48}, {"eval_crop_pct": 0.35}]


@pytest.mark.parametrize("of_data", [None, (), ("cat", "dog")])
def test_classes_are_named_by_the_data_only_where_data_are_named(
    of_data: tuple[str, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = LoadedModule(Mock(spec=BackboneModule, backbone=None), Outputs(num=2))
    monkeypatch.setattr("unmask.runtime.inference.load_module", lambda path: loaded)
    named: list[tuple[str, ...]] = []

    def look(checkpoint: CheckpointFile) -> None:
        named.append(checkpoint.class_names())
        raise Asked

    data = [] if of_data is None else ["data=synthetic"]
    given = ["eval=predict", "ckpt_path=a.pth", "name=x", f"paths.run_dir={tmp_path}", "trainer.accelerator=cpu"]
    config = compose_config("eval", [*given, *data])
    inference = build(config.eval)
    monkeypatch.setattr(inference, "load", look)

    def build_data(asked_config: Any, backbone: Any) -> Any:
        assert (asked_config, backbone) == (config, loaded.module.backbone)
        return Mock(class_names=of_data)

    with pytest.raises(Asked):
        run_inference(config, inference, build_data)
    assert named == [of_data or ("class 0", "class 1")]


@pytest.mark.parametrize(
    ("outputs", "of_data", "expected"),
    [
        (Outputs(num=2, class_names=["owl", "fox"]), ["cat", "dog"], ("owl", "fox")),
        (Outputs(num=3), ["a", "b", "c"], ("a", "b", "c")),
        (Outputs(num=5, num_unused=2), ["a", "b", "c"], ("a", "b", "c", "output 3", "output 4")),
        (Outputs(num=2), None, ("class 0", "class 1")),
    ],
)
def test_outputs_are_named_by_the_file_else_by_the_data_else_by_number(
    outputs: Outputs, of_data: list[str] | None, expected: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    names_of_data = None if of_data is None else lambda backbone: of_data
    file = CheckpointFile("a.pth", names_of_data=names_of_data)
    file.loaded = LoadedModule(Mock(spec=BackboneModule, backbone=None), outputs)  # type: ignore[misc]  # read already
    assert file.class_names() == expected
    are_taken = of_data is not None and not outputs.class_names
    assert ("a.pth does not name its classes; they have the names of the data's" in caplog.text) == are_taken


def test_names_of_another_number_of_classes_are_refused() -> None:
    file = CheckpointFile("a.pth", names_of_data=lambda backbone: ["a", "b"])
    file.loaded = LoadedModule(Mock(spec=BackboneModule, backbone=None), Outputs(num=5, num_unused=1))  # type: ignore[misc]
    with pytest.raises(ValueError, match="has 5 outputs and does not name them, and the data have 2 classes"):
        file.class_names()
