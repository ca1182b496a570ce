"""A page, served by this machine, on which a checkpoint is tried on photos."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from numpy import ndarray
from omegaconf import DictConfig

from unmask.callbacks.panel import Reconstruction
from unmask.inference.photo import PhotoModel, as_picture, open_for_photos
from unmask.runtime.inference import CheckpointFile

_FIRST_PORT, _LAST_PORT = 1024, 65535
_HEIGHT = 420  # pixels of the photo on the page
_NUM_CLASSES = 5
_DRAWN, _PAINTED = "drawn", "painted"
_BRUSH = "#d0408080"
_CAPTIONS = ("Photo, resized", "Visible patches", "Prediction", "Composite")
_PICTURE_WIDTH = 150  # pixels, at least: two fit beside each other on a phone
_Shown = TypeVar("_Shown")
_log = logging.getLogger("unmask")


def demo(config: DictConfig) -> None:
    """Serves the page until it is interrupted.

    Raises:
        ValueError: gradio is missing, the port is none or taken, or the checkpoint is not one that photos can be tried
            on.
    """
    gradio = _require_gradio()
    require_port(config.port)
    model = open_for_photos(CheckpointFile(str(config.ckpt_path)))
    page = build_page(gradio, model)
    try:
        _, address, _ = page.launch(
            server_name=str(config.host), server_port=config.port, share=False, quiet=True, prevent_thread_lock=True
        )
    except OSError as error:
        raise ValueError(f"the page cannot be served: {error}; choose another host= or port=") from error
    _log.info(f"{model.title} ({model.origin}): open {address}; Ctrl+C ends it")
    page.block_thread()


def require_port(port: Any) -> None:
    """Refuses what is no port that a user may serve."""
    if port is not None and not (isinstance(port, int) and _FIRST_PORT <= port <= _LAST_PORT):
        raise ValueError(f"port must lie in {_FIRST_PORT}..{_LAST_PORT}, or be null for a free one, got {port!r}")


def build_page(gradio: Any, model: PhotoModel) -> Any:
    """Lays the page out; what it shows is computed by `PhotoModel`."""
    with gradio.Blocks(title="Unmask", analytics_enabled=False) as page:
        height, width = model.backbone.image_size
        gradio.Markdown(
            f"# {model.title}\n`{model.origin}`\n\n"
            f"Photos are resized, and cropped in the middle, to {height} x {width} px."
        )
        if model.is_classifier:
            _lay_out_classes(gradio, model)
        else:
            _lay_out_reconstruction(gradio, model)
    return page


def _lay_out_classes(gradio: Any, model: PhotoModel) -> None:
    def classify(photo: ndarray | None) -> dict[str, float]:
        return _as_sentence(gradio, lambda: model.classify(require_photo(photo)))

    with gradio.Row():
        photo = gradio.Image(type="numpy", image_mode="RGB", label="Photo", height=_HEIGHT)
        classes = gradio.Label(label="Classes", num_top_classes=_NUM_CLASSES)
    gradio.Button("Classify", variant="primary").click(classify, photo, classes, api_name="classify")


def _lay_out_reconstruction(gradio: Any, model: PhotoModel) -> None:
    ratio, unit = model.own_masking()

    def reconstruct(drawing: Any, masking: str, ratio: float, unit: int, seed: int) -> tuple[Any, ...]:
        return _as_sentence(
            gradio, lambda: reconstruct_drawing(model, drawing, masking, ratio=ratio, unit=unit, seed=seed)
        )

    with gradio.Row():
        with gradio.Column():
            brush = "; the brush paints what to mask" if model.takes_any_mask else ""
            gradio.Markdown(f"**Photo**: drop one here{brush}")
            drawing = gradio.ImageEditor(
                type="numpy",
                image_mode="RGBA",
                label="Photo",
                show_label=False,  # it would lie over the tools
                brush=gradio.Brush(default_size=24, colors=[_BRUSH], default_color=_BRUSH),
                layers=False,
                transforms=(),
                height=_HEIGHT,
            )
            button = gradio.Button("Reconstruct", variant="primary")
            masks = [_DRAWN, _PAINTED] if model.takes_any_mask else [_DRAWN]
            masking = gradio.Radio(masks, value=_DRAWN, label="Mask")
            ratio = gradio.Slider(
                0.05,
                0.95,
                value=round(ratio, 2),
                step=0.01,
                label="Fraction masked, of a drawn mask",
                interactive=model.takes_any_mask,
            )
            unit = gradio.Dropdown(model.mask_units(), value=unit, label="Side of what is masked at a time, px")
            seed = gradio.Number(0, precision=0, minimum=0, label="Seed of the drawn mask")
        with gradio.Column():
            pictures = [*_picture_row(gradio, _CAPTIONS[:2]), *_picture_row(gradio, _CAPTIONS[2:])]
            note = gradio.Markdown()
    outputs = [*pictures, note]
    button.click(reconstruct, [drawing, masking, ratio, unit, seed], outputs, api_name="reconstruct")


def _picture_row(gradio: Any, captions: Sequence[str]) -> list[Any]:
    """Pictures beside each other with captions above them: gradio's own labels lie over the pictures."""
    pictures = []
    with gradio.Row():
        for caption in captions:
            with gradio.Column(min_width=_PICTURE_WIDTH):
                gradio.Markdown(f"**{caption}**")
                pictures.append(gradio.Image(label=caption, show_label=False, format="png", buttons=["download"]))
    return pictures


def reconstruct_drawing(
    model: PhotoModel, drawing: Mapping[str, Any] | None, masking: str, *, ratio: float, unit: int, seed: int
) -> tuple[ndarray, ndarray, ndarray, ndarray, str]:
    """Computes the pictures of one photo, in the order of their captions, and the note.

    Args:
        model: Of a method.
        drawing: What gradio's editor holds: the photo (`background`) and what was painted over it (`layers`), as RGBA.
        masking: "drawn" by ratio and unit, or "painted".
        ratio, unit, seed: See `PhotoModel.draw`.

    Raises:
        ValueError: There is no photo, or the mask does not fit.
    """
    photo = require_photo(None if drawing is None else drawing["background"])
    assert drawing is not None
    if masking == _PAINTED:
        mask = model.mask_painted(_opacity(drawing["layers"], photo.shape[:2]), unit=int(unit))
    else:
        mask = model.draw(ratio=ratio, unit=int(unit), seed=int(seed))
    shown = model.reconstruct(photo, mask)
    return (*_pictures(shown), describe(shown))


def describe(shown: Reconstruction) -> str:
    """What is to be known of the pictures."""
    masked = float(shown.mask.masked.float().mean())
    measured = ", ".join(f"{name} {value:.1f} dB" for name, value in shown.psnr.items())
    note = f"{masked:.0%} masked. PSNR of masked pixels: {measured} (more is better)."
    if shown.estimated_prediction is None:
        return note
    return (
        f"{note} The network predicts normalized patches; the composite has means and deviations estimated from "
        "visible patches, the prediction those of the photo."
    )


def require_photo(photo: ndarray | None) -> ndarray:
    """The photo, unless there is none."""
    if photo is None:
        raise ValueError("there is no photo yet; drop one")
    return photo


def _pictures(shown: Reconstruction) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    composite = shown.composite if shown.estimated_composite is None else shown.estimated_composite
    gray = shown.prediction.masked_fill(~shown.mask.at_pixels(), 0.5)
    return as_picture(shown.image), as_picture(shown.masked), as_picture(gray), as_picture(composite)


def _opacity(layers: list[ndarray], size: tuple[int, ...]) -> ndarray:
    """How much of each pixel is painted over, in 0..1."""
    opacity = np.zeros(size, dtype=np.float32)
    for layer in layers:
        opacity = np.maximum(opacity, (layer[..., 3] > 0).astype(np.float32))
    return opacity


def _as_sentence(gradio: Any, compute: Callable[[], _Shown]) -> _Shown:
    """Lets a user's mistake appear on the page as its sentence."""
    try:
        return compute()
    except ValueError as error:
        raise gradio.Error(str(error), duration=None) from error


def _require_gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it would tell its makers of every start
    try:
        return import_module("gradio")
    except ImportError as error:
        raise ValueError("the page is made by gradio, which is missing; pip install 'unmask[demo]'") from error
