"""Rows of images with a line below each."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from unmask.callbacks.panel import enlarged_bytes

_CELL = 128  # pixels a cell has at least
_DPI = 100
_MARGIN, _GAP, _HEADER, _CAPTION = 20, 8, 56, 18  # pixels
_TITLE, _TEXT = 13.0, 8.0  # points
_INK, _FAINT = "#1a1a1a", "#6b6b6b"
_MIN_WIDTH = 480  # pixels, for the title
_CHARACTER = 6.2  # pixels, about, of a caption


class Cell(NamedTuple):
    """One image of a sheet."""

    image: Float[Tensor, "3 height width"]  # RGB in 0..1
    caption: str


def contact_sheet(
    rows: Sequence[Sequence[Cell]], *, title: str, subtitle: str = "", is_first_apart: bool = False
) -> Figure:
    """Draws rows of images of one size.

    Pixels are enlarged by a whole factor and never interpolated. Captions too long for their cell lose their beginning,
    since paths differ at the end.

    Args:
        rows: Of images, which may differ in length.
        title, subtitle: Above all.
        is_first_apart: The first column stands apart, as what the others of its row belong to.
    """
    height, width = rows[0][0].image.shape[1:]
    scale = max(1, math.ceil(_CELL / max(height, width)))
    cell_height, cell_width = height * scale, width * scale
    num_columns = max(map(len, rows))
    needed = 2 * _MARGIN + num_columns * (cell_width + _GAP)
    total_width = max(needed, _MIN_WIDTH)
    total_height = _HEADER + len(rows) * (cell_height + _CAPTION + _GAP) + _MARGIN
    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI)
    figure.set_facecolor("white")

    def write(text: str, left: float, baseline: float, **style: Any) -> None:
        figure.text(left / total_width, 1 - baseline / total_height, text, parse_math=False, **style)

    write(title, _MARGIN, 24, size=_TITLE, color=_INK, weight="bold")
    write(subtitle, _MARGIN, 42, size=_TEXT, color=_FAINT)
    for number, row in enumerate(rows):
        top = _HEADER + number * (cell_height + _CAPTION + _GAP)
        for column, cell in enumerate(row):
            left = _MARGIN + column * (cell_width + _GAP) + (_GAP if column and is_first_apart else 0)
            figure.figimage(enlarged_bytes(cell.image, scale), left, total_height - top - cell_height, origin="upper")
            write(_shortened(cell.caption, cell_width), left, top + cell_height + 12, size=_TEXT, color=_INK)
    return figure


def _shortened(caption: str, width: int) -> str:
    room = max(4, int(width / _CHARACTER))
    return caption if len(caption) <= room else "…" + caption[-(room - 1) :]
