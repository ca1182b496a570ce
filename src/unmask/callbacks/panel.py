"""Reconstructions as pictures."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from unmask.patches import PatchMask, patch_sides
from unmask.types import Images, PixelStatistics

MASKED_GRAY = 0.5  # of white
_DEVIATIONS_SHOWN = 5.0  # from black to white, where channels are not RGB
_CELL = 128  # pixels a cell has at least
_DPI = 100  # of a panel with the smallest cells; text grows with larger ones
_TITLE, _COLUMN, _TEXT = 13.0, 9.5, 8.5  # points
_INK, _FAINT = "#1a1a1a", "#6b6b6b"
_MARGIN, _GAP = 20, 6  # pixels at that resolution
_HEADER, _NAME_LINE, _FOOTER_LINE = 62, 16, 16
_NOTE_CHARACTERS = 76  # a line of the note, over four of the smallest cells


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Images as a network saw and completed them; as shown, RGB in 0..1, in float32 on the CPU."""

    image: Images
    masked: Images  # masked pixels gray
    prediction: Images  # of all pixels, with the true statistics where the target was normalized
    composite: Images  # visible pixels of the image, masked ones of the prediction
    mask: PatchMask
    psnr: dict[
        str, float
    ]  # decibels over the masked pixels of all images: of the prediction and of what it is up against
    estimated_prediction: Images | None = (
        None  # with statistics estimated from visible patches; None: none were borrowed
    )
    estimated_composite: Images | None = None
    masked_by_stage: dict[str, Images] = field(default_factory=dict)  # where a stage masks another part than `masked`


def reconstruction_pixels(
    images: Images,
    mask: PatchMask,
    prediction: Images,
    *,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    borrowed: PixelStatistics | None = None,
) -> Reconstruction:
    """Turns normalized images and predictions into what can be shown, and measures the predictions.

    A target that was normalized patch by patch leaves the network nothing to say about a patch's mean and deviation.
    Its prediction is shown twice: with the true ones, and with ones estimated from visible patches. The estimate of a
    masked patch is the mean over the visible ones, weighted by the fourth power of the inverse distance; where the
    statistics are those of a window around each pixel, windows at the rim of a visible patch reach into masked ones.

    Args:
        images: As the network took them; see `as_shown`.
        mask: Under which it did.
        prediction: Of all pixels, in the space of `images`.
        pixel_mean: Mean of each channel, in 0..1, the images were normalized with.
        pixel_std: Deviation likewise.
        borrowed: The statistics of the true images that are in `prediction`, if there are any.
    """

    def shown(pixels: Images) -> Images:
        return as_shown(pixels, pixel_mean=pixel_mean, pixel_std=pixel_std)

    stages = mask.by_stage
    mask, images, prediction = _on_cpu(mask), images.detach().float().cpu(), prediction.detach().float().cpu()
    is_masked = mask.at_pixels()
    image, predicted = shown(images), shown(prediction)
    if borrowed is None:
        estimated = None
        compared = {"prediction": predicted, "mean of visible neighbors": shown(estimate_masked(images, mask))}
    else:
        mean, std = (statistic.detach().float().cpu() for statistic in borrowed)
        estimated_mean = estimate_masked(mean, mask)
        estimated = shown((prediction - mean) / std * estimate_masked(std, mask) + estimated_mean)
        compared = {
            "prediction with true statistics": predicted,
            "true means alone": shown(mean),
            "prediction with estimated statistics": estimated,
            "estimated means alone": shown(estimated_mean),
        }
    return Reconstruction(
        image=image,
        masked=image.masked_fill(is_masked, MASKED_GRAY),
        prediction=predicted,
        composite=torch.where(is_masked, predicted, image),
        mask=mask,
        psnr={name: masked_psnr(pixels, image, mask) for name, pixels in compared.items()},
        estimated_prediction=estimated,
        estimated_composite=None if estimated is None else torch.where(is_masked, estimated, image),
        masked_by_stage={
            f"masked in stage {number}": image.masked_fill(pixels, MASKED_GRAY)
            for number, stage in enumerate(stages)
            if stage is not None and not torch.equal(pixels := _on_cpu(stage).at_pixels(), is_masked)
        },
    )


def estimate_masked(values: Images, mask: PatchMask) -> Images:
    """Replaces what lies in masked patches by one number a patch and channel, estimated from the visible patches.

    It is the mean of the visible patches' means, weighted by the fourth power of the inverse distance, so that the
    nearest count most; 0 in an image that is masked altogether.
    """
    height, width = patch_sides(mask.patch_size)
    means = F.avg_pool2d(values, (height, width))  # b c rows cols
    rows, cols = means.shape[2:]
    centers = torch.cartesian_prod(torch.arange(rows) * float(height), torch.arange(cols) * float(width))
    squares = (centers[:, None] - centers[None, :]).square().sum(dim=2)
    weights = squares.clamp(min=1.0).pow(-2) * ~mask.masked.flatten(1)[:, None]  # b masked visible
    weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    estimated = (weights @ means.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(means)
    spread = estimated.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
    return torch.where(mask.at_pixels(), spread, values)


def masked_psnr(pixels: Images, image: Images, mask: PatchMask) -> float:
    """Peak signal-to-noise ratio over the masked pixels of all images, in decibels; white is the peak."""
    is_masked = mask.at_pixels().expand_as(image)
    error = (pixels - image)[is_masked].square().mean().item()
    return -10.0 * math.log10(error) if error > 0 else math.inf


def as_shown(
    images: Images, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> Float[Tensor, "b 3 height width"]:
    """Undoes the normalization: RGB in 0..1, in float32 on the CPU.

    Of one or two channels the first is shown gray, of more than three the first three as red, green and blue; other
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


def reconstruction_panel(reconstruction: Reconstruction, *, title: str, subtitle: str = "") -> Figure:
    """Draws one row an image, and below all how good the predictions are.

    The columns are image, masked input, prediction, composite, and what stages mask where that is another part of the
    image. The prediction shows masked patches alone, since no loss acts on the visible ones; where it was restored
    with the true mean and deviation of each patch, it stands beside one with estimated ones, and the composite is of
    the latter. Pixels are enlarged by a whole factor and never interpolated, so each stays the color it has.

    Args:
        reconstruction: What to draw.
        title: In bold, above all.
        subtitle: Below it: how far training was, the fraction masked.
    """
    columns = _columns(reconstruction)
    note = _note(reconstruction)
    num_images, _, height, width = reconstruction.image.shape
    scale = max(1, math.ceil(_CELL / max(height, width)))
    cell_height, cell_width = height * scale, width * scale
    zoom = max(1.0, cell_width / (1.5 * _CELL))
    name_lines = max(name.count("\n") + 1 for name in columns)
    sizes = (_MARGIN, _GAP, _HEADER + name_lines * _NAME_LINE, _FOOTER_LINE)
    margin, gap, header, footer_line = (round(size * zoom) for size in sizes)

    total_width = 2 * margin + len(columns) * cell_width + (len(columns) - 1) * gap
    note_lines = textwrap.wrap(note, int(_NOTE_CHARACTERS * (total_width / zoom) / (4 * _CELL)))
    footer = margin + (len(note_lines) * footer_line + gap if note_lines else 0)
    total_height = header + num_images * cell_height + (num_images - 1) * gap + footer
    figure = Figure(figsize=(total_width / (_DPI * zoom), total_height / (_DPI * zoom)), dpi=_DPI * zoom)
    figure.set_facecolor("white")

    def write(text: str, left: int | float, baseline: int | float, **style: Any) -> None:
        figure.text(
            left / total_width, 1 - baseline / total_height, text, parse_math=False, **({"va": "baseline"} | style)
        )

    write(title, margin, 26 * zoom, size=_TITLE, weight="bold", color=_INK)
    write(subtitle, margin, 44 * zoom, size=_TEXT, color=_FAINT)
    for column, (name, shown) in enumerate(columns.items()):
        left = margin + column * (cell_width + gap)
        write(name, left + cell_width / 2, header - 4 * zoom, ha="center", va="bottom", size=_COLUMN, color=_INK)
        for row, cell in enumerate(shown):
            bottom = footer + (num_images - 1 - row) * (cell_height + gap)
            figure.figimage(enlarged_bytes(cell, scale), left, bottom, origin="upper")
    for line, text in enumerate(note_lines):
        baseline = total_height - footer + gap + (line + 1) * footer_line
        write(text, margin, baseline, size=_TEXT, style="italic", color=_FAINT)
    return figure


def _columns(reconstruction: Reconstruction) -> dict[str, Images]:
    def masked_alone(pixels: Images) -> Images:
        return pixels.masked_fill(~reconstruction.mask.at_pixels(), MASKED_GRAY)

    columns = {"image": reconstruction.image, "masked": reconstruction.masked}
    if reconstruction.estimated_prediction is None or reconstruction.estimated_composite is None:
        columns |= {"prediction": masked_alone(reconstruction.prediction), "composite": reconstruction.composite}
    else:
        columns |= {
            "prediction,\ntrue mean": masked_alone(reconstruction.prediction),
            "prediction,\nestimated mean": masked_alone(reconstruction.estimated_prediction),
            "composite,\nestimated mean": reconstruction.estimated_composite,
        }
    return columns | reconstruction.masked_by_stage


def _note(reconstruction: Reconstruction) -> str:
    measured = ", ".join(f"{name} {psnr:.1f} dB" for name, psnr in reconstruction.psnr.items())
    note = f"PSNR of masked pixels: {measured}."
    if reconstruction.estimated_prediction is None:
        return note
    return (
        f"{note} The network predicts normalized patches; the mean and deviation of the true patch are borrowed, not "
        "learned, the estimated ones come from visible patches nearby."
    )


def enlarged_bytes(image: Tensor, scale: int) -> UInt8[np.ndarray, "height width 3"]:
    """Turns an image in 0..1 into bytes, each pixel a square of `scale` pixels."""
    pixels = (image * 255.0).round().to(torch.uint8).permute(1, 2, 0)
    return pixels.repeat_interleave(scale, dim=0).repeat_interleave(scale, dim=1).numpy()
