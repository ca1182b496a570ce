"""Pictures as files and arrays."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unmask.atomic_write import atomic_write
from unmask.callbacks.optional_file import write_optional


def figure_pixels(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a figure at its own resolution; no display is needed."""
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib leaves its backends untyped
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG at the figure's own resolution, the whole file or nothing; makes the folder."""
    png = _as_png(figure)
    with atomic_write(path) as partial:
        partial.write_bytes(png)


def keep_figure(figure: Figure, path: Path) -> None:
    """`save_figure` for a picture that a run goes on without."""
    png = _as_png(figure)
    write_optional(path, lambda partial: partial.write_bytes(png))


def _as_png(figure: Figure) -> bytes:
    png = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(png)
    return png.getvalue()
