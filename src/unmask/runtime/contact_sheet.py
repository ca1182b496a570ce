"""Augmented samples as the model will see them, on one page."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

_CELL = 160  # px a picture is enlarged or reduced to
_COLUMNS = 6
_GAP, _MARGIN, _HEADER, _CAPTION = 8, 20, 56, 18
_DPI = 100
_INK, _FAINT = "#1a1a1a", "#6b6b6b"


def contact_sheet(
    images: Float[Tensor, "n 3 height width"], captions: Sequence[str], *, title: str, subtitle: str
) -> Figure:
    """Draws pictures in rows of six, each above its caption.

    Args:
        images: RGB in 0..1.
        captions: One a picture, such as the class; cut to what fits.
        title: In bold, above all.
        subtitle: Below it.
    """
    height, width = images.shape[2:]
    cell_height = max(1, round(_CELL * height / max(height, width)))
    cell_width = max(1, round(_CELL * width / max(height, width)))
    columns = min(_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    total_width = max(2 * _MARGIN + columns * cell_width + (columns - 1) * _GAP, 480)
    total_height = _HEADER + rows * (cell_height + _CAPTION + _GAP) + _MARGIN
    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI, facecolor="white")
    figure.text(_MARGIN / total_width, 1 - 26 / total_height, title, size=13, weight="bold", color=_INK)
    figure.text(_MARGIN / total_width, 1 - 44 / total_height, subtitle, size=8.5, color=_FAINT)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = _MARGIN + number % columns * (cell_width + _GAP)
        top = _HEADER + number // columns * (cell_height + _CAPTION + _GAP)
        place = (left, total_height - top - cell_height, cell_width, cell_height)
        axes = figure.add_axes(
            (place[0] / total_width, place[1] / total_height, cell_width / total_width, cell_height / total_height)
        )
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        figure.text(
            left / total_width,
            (place[1] - 12) / total_height,
            _shortened(caption, cell_width // 6),
            size=8,
            color=_INK,
        )
    return figure


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
