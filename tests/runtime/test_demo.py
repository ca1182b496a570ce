"""The page of a checkpoint: what its buttons compute, and (where gradio is installed) the page as it is served."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("default")  # gradio's own


@pytest.fixture
def model(tiny_overrides: Callable[[str], list[str]]) -> Any:
    from unmask.inference.photo import PhotoModel
    from unmask.runtime.api import build_method

    return PhotoModel(build_method(tiny_overrides("mae")).eval(), path="runs/a_b/checkpoints/last.ckpt")


@pytest.fixture
def drawing() -> dict[str, Any]:
    """What gradio's editor hands over: a photo with a square painted in its corner."""
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    layer = np.zeros((64, 64, 4), dtype=np.uint8)
    layer[:32, :32] = (208, 64, 128, 128)
    return {"background": photo, "layers": [layer], "composite": photo}


def test_what_is_painted_is_gray_for_the_network_and_the_rest_is_not(model: Any, drawing: dict[str, Any]) -> None:
    from unmask.runtime.demo import reconstruct_drawing

    photo, masked, prediction, composite, note = reconstruct_drawing(
        model, drawing, "painted", ratio=0.5, unit=8, seed=0
    )
    assert masked.shape == (256, 256, 3)  # of 32 px, each enlarged to 8
    photo, masked, prediction, composite = (picture[::8, ::8] for picture in (photo, masked, prediction, composite))
    assert np.array_equal(photo[16:], masked[16:])
    assert not (photo == 128).all(axis=2).any()
    assert (masked[:16, :16] == 128).all()
    assert not (masked[16:] == 128).all(axis=2).any()
    assert (prediction[16:] == 128).all()
    assert np.array_equal(composite[16:], masked[16:])
    assert note.startswith("25% masked. PSNR of masked pixels: ")


def test_the_page_names_method_backbone_and_file_as_a_user_does(model: Any) -> None:
    settings = model.backbone.settings
    assert model.title == f"MAE on {settings['name']}"
    assert model.origin.startswith("runs/a_b/checkpoints/last.ckpt, embed_dim ")
    assert f", depth {settings['depth']}, " in model.origin
    assert "Timm" not in model.title + model.origin


def test_a_drawn_mask_ignores_the_paint(model: Any, drawing: dict[str, Any]) -> None:
    from unmask.runtime.demo import reconstruct_drawing

    *_, note = reconstruct_drawing(model, drawing, "drawn", ratio=0.5, unit=8, seed=0)
    assert note.startswith("50% masked.")


@pytest.mark.parametrize(("backbone", "masks"), [("vit", ["drawn", "painted"]), ("swin", ["drawn"])])
def test_the_page_offers_only_masks_that_the_method_takes(backbone: str, masks: list[str], model: Any) -> None:
    from unmask.inference.photo import PhotoModel
    from unmask.runtime.api import build_method
    from unmask.runtime.demo import build_page

    if backbone == "swin":
        small = ["model.embed_dim=8", "model.depths=[1,1]", "image_size=32"]
        model = PhotoModel(build_method(["method=mae", "model=swin_mini", *small]).eval())
    gradio = MagicMock()
    build_page(gradio, model)
    assert gradio.Radio.call_args.args == (masks,)
    assert gradio.Slider.call_args.kwargs["interactive"] == ("painted" in masks)
    said = " ".join(str(call.args) for call in gradio.Markdown.call_args_list)
    assert ("paints what to mask" in said) == ("painted" in masks)


def test_without_a_photo_the_sentence_says_so(model: Any) -> None:
    from unmask.runtime.demo import reconstruct_drawing

    for nothing in (None, {"background": None, "layers": []}):
        with pytest.raises(ValueError, match="there is no photo yet"):
            reconstruct_drawing(model, nothing, "drawn", ratio=0.5, unit=8, seed=0)


@pytest.mark.parametrize("port", [80, 70000, "7860"])
def test_a_port_that_is_none_is_refused(port: Any) -> None:
    from unmask.runtime.demo import require_port

    with pytest.raises(ValueError, match=r"port must lie in 1024\.\.65535"):
        require_port(port)


def test_without_gradio_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from unmask.runtime.cli import demo

    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["demo", f"ckpt_path={tmp_path / 'last.ckpt'}"])
    with pytest.raises(SystemExit) as left:
        demo()
    assert left.value.code == 2
    assert "pip install 'unmask[demo]'" in capsys.readouterr().err


def test_the_page_is_served_to_this_machine_alone(model: Any, drawing: dict[str, Any], tmp_path: Path) -> None:
    gradio = pytest.importorskip("gradio")
    client = pytest.importorskip("gradio_client")
    from PIL import Image

    from unmask.runtime.demo import build_page

    photo = tmp_path / "photo.png"
    Image.fromarray(drawing["background"][..., :3]).save(photo)
    page = build_page(gradio, model)
    _, address, _ = page.launch(server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, share=False)
    try:
        assert address.startswith("http://127.0.0.1:")
        asked = client.Client(address, verbose=False)
        editor = {"background": client.handle_file(photo), "layers": [], "composite": None}
        *pictures, note = asked.predict(editor, "drawn", 0.5, 8, 0, api_name="/reconstruct")
        assert note.startswith("50% masked.")
        assert len(pictures) == 4
        with pytest.raises(Exception, match="there is no photo yet"):
            asked.predict(None, "drawn", 0.5, 8, 0, api_name="/reconstruct")
    finally:
        page.close()
