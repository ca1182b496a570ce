"""Reconstructions as pictures."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from unmask.patches import PatchMask, StageMask
from unmask.types import Images

MASKED_GREY = 0.5  # of white
_DEVIATIONS_SHOWN = 5.0  # from black to white, where channels are not RGB
_CELL = 128  # pixels a cell has at least
_DPI = 100  # of a panel with the smallest cells; text grows with larger ones
_TITLE, _COLUMN, _TEXT = 13.0, 9.5, 8.5  # points
_INK, _FAINT = "#1a1a1a", "#6b6b6b"
_MARGIN, _GAP = 20, 6  # pixels at that resolution
_HEADER, _FOOTER_LINE = 78, 16
_NOTE_CHARACTERS = 76  # a line of the note, over four of the smallest cells


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Images as a network saw and completed them; as shown, RGB in 0..1, in float32 on the CPU."""

    image: Images
    masked: Images  # masked pixels grey
    prediction: Images
    composite: Images  # visible pixels of the image, masked ones of the prediction
    mask: PatchMask
    masked_by_stage: dict[str, Images] = field(default_factory=dict)  # the image as each masked stage hides it


def reconstruction_pixels(
    images: Images, mask: PatchMask, prediction: Images, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> Reconstruction:
    """Turns normalised images and predictions into what can be shown.

    Args:
        images: As the network took them; see `as_shown`.
        mask: Under which it did.
        prediction: Of all pixels, in the space of `images`.
        pixel_mean: Mean of each channel, in 0..1, the images were normalised with.
        pixel_std: Deviation likewise.
    """
    stages = mask.by_stage if isinstance(mask, StageMask) else ()
    mask = _on_cpu(mask)
    is_masked = mask.at_pixels()
    image, predicted = (as_shown(pixels, pixel_mean=pixel_mean, pixel_std=pixel_std) for pixels in (images, prediction))
    return Reconstruction(
        image=image,
        masked=image.masked_fill(is_masked, MASKED_GREY),
        prediction=predicted,
        composite=torch.where(is_masked, predicted, image),
        mask=mask,
        masked_by_stage={
            f"stage {number} hides": image.masked_fill(_on_cpu(stage).at_pixels(), MASKED_GREY)
            for number, stage in enumerate(stages)
            if stage is not None
        },
    )


def as_shown(
    images: Images, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> Float[Tensor, "b 3 height width"]:
    """Undoes the normalisation: RGB in 0..1, in float32 on the CPU.

    Of one or two channels the first is shown grey, of more than three the first three as red, green and blue; other
    channels than RGB have no white of their own, so black to white is then five deviations about the channel's mean.
    """
    pixels = images.detach().float().cpu()
    if pixels.shape[1] == 3:
        mean, std = (torch.tensor(statistic)[:, None, None] for statistic in (pixel_mean, pixel_std))
        return (pixels * std + mean).clamp(0.0, 1.0)
    shown = pixels[:, :3] if pixels.shape[1] > 3 else pixels[:, :1].expand(-1, 3, -1, -1)
    return (shown / _DEVIATIONS_SHOWN + 0.5).clamp(0.0, 1.0)


def _on_cpu(mask: PatchMask) -> PatchMask:
    return PatchMask(mask.masked.cpu(), mask.patch_size, mask.num_masked)


def reconstruction_panel(reconstruction: Reconstruction, *, title: str, subtitle: str = "", note: str = "") -> Figure:
    """Draws one row an image: original, masked input, prediction, composite, and what each masked stage hides.

    Pixels are enlarged by a whole factor and never interpolated, so each stays the colour it has.

    Args:
        reconstruction: What to draw.
        title: In bold, above all.
        subtitle: Below it: how far training was, the fraction masked.
        note: At the foot: what a reader must know; left out if empty.
    """
    columns = {
        "original": reconstruction.image,
        "masked input": reconstruction.masked,
        "prediction": reconstruction.prediction,
        "composite": reconstruction.composite,
        **reconstruction.masked_by_stage,
    }
    num_images, _, height, width = reconstruction.image.shape
    scale = max(1, math.ceil(_CELL / max(height, width)))
    cell_height, cell_width = height * scale, width * scale
    zoom = max(1.0, cell_width / (1.5 * _CELL))
    margin, gap, header, footer_line = (round(size * zoom) for size in (_MARGIN, _GAP, _HEADER, _FOOTER_LINE))

    total_width = 2 * margin + len(columns) * cell_width + (len(columns) - 1) * gap
    note_lines = textwrap.wrap(note, int(_NOTE_CHARACTERS * (total_width / zoom) / (4 * _CELL)))
    footer = margin + (len(note_lines) * footer_line + gap if note_lines else 0)
    total_height = header + num_images * cell_height + (num_images - 1) * gap + footer
    figure = Figure(figsize=(total_width / (_DPI * zoom), total_height / (_DPI * zoom)), dpi=_DPI * zoom)
    figure.set_facecolor("white")

    def write(text: str, left: int | float, baseline: int | float, **style: Any) -> None:
        figure.text(left / total_width, 1 - baseline / total_height, text, va="baseline", **style)

    write(title, margin, 26 * zoom, size=_TITLE, weight="bold", color=_INK)
    write(subtitle, margin, 44 * zoom, size=_TEXT, color=_FAINT)
    for column, (name, shown) in enumerate(columns.items()):
        left = margin + column * (cell_width + gap)
        write(name, left + cell_width / 2, header - 7 * zoom, ha="center", size=_COLUMN, color=_INK)
        for row, cell in enumerate(shown):
            bottom = footer + (num_images - 1 - row) * (cell_height + gap)
            figure.figimage(enlarged_bytes(cell, scale), left, bottom, origin="upper")
    for line, text in enumerate(note_lines):
        baseline = total_height - footer + gap + (line + 1) * footer_line
        write(text, margin, baseline, size=_TEXT, style="italic", color=_FAINT)
    return figure


def enlarged_bytes(image: Tensor, scale: int) -> UInt8[np.ndarray, "height width 3"]:
    """Turns an image in 0..1 into bytes, each pixel a square of `scale` pixels."""
    pixels = (image * 255.0).round().to(torch.uint8).permute(1, 2, 0)
    return pixels.repeat_interleave(scale, dim=0).repeat_interleave(scale, dim=1).numpy()
