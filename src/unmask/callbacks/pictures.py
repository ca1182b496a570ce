"""Pictures as files and arrays."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unmask.atomic_write import atomic_write


def figure_pixels(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a figure at its own resolution; no display is needed."""
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib leaves its backends untyped
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG at the figure's own resolution, the whole file or nothing; makes the folder."""
    png = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(png)
    with atomic_write(path) as partial:
        partial.write_bytes(png.getvalue())
