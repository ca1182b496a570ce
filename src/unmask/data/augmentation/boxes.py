"""Which box of an image a crop shows, for whole batches on their device or for one image in a worker.

All is computed in float64 (float32 on Apple's GPUs, which have no other) by operations that IEEE 754 rounds alike
everywhere (products, square roots), so both ways give the same boxes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DRAWS_PER_ATTEMPT = 4


class Boxes(NamedTuple):
    """One box an image, in whole pixels."""

    top: Int[Tensor, " b"]
    left: Int[Tensor, " b"]
    height: Int[Tensor, " b"]
    width: Int[Tensor, " b"]


class Box(NamedTuple):
    """The box of one image, in pixels."""

    top: int
    left: int
    height: int
    width: int


Attempts = Float[Tensor, "b n 4"]
"""Attempts at a box, whatever the image's size: its height and its width, squared and as fractions of the image's area,
then how far down and how far right it lies in the room it leaves, in [0, 1)."""


class ImageDraws(NamedTuple):
    """`CropDraws` of one image."""

    flip: float
    attempts: Sequence[Sequence[float]]


class CropDraws(NamedTuple):
    """All that crops and flips of a batch depend on beside the images' sizes."""

    flip: Float[Tensor, " b"]  # in [0, 1)
    attempts: Attempts

    def each(self) -> list[ImageDraws]:
        return [ImageDraws(*draws) for draws in zip(self.flip.tolist(), self.attempts.tolist(), strict=True)]


def widest_float(device: torch.device) -> torch.dtype:
    """The finest floating-point type of a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def shape_attempts(draws: Float[Tensor, "b m"], scale: Sequence[float], ratio: Sequence[float]) -> Attempts:
    """Turns four uniform draws an attempt into a fraction of the area and a log-uniform aspect ratio, top and left."""
    area, aspect, top, left = draws.to(widest_float(draws.device)).view(len(draws), -1, DRAWS_PER_ATTEMPT).unbind(2)
    area = scale[0] + (scale[1] - scale[0]) * area
    aspect = (math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * aspect).exp()
    return torch.stack([area / aspect, area * aspect, top, left], dim=2)


def first_fitting(attempts: Attempts, height: int, width: int) -> tuple[Boxes, Bool[Tensor, " b"]]:
    """Takes the first attempt that fits into images of one size; the second result tells where one did."""
    heights, widths = _sides(attempts, height, width)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    columns = (heights, widths, attempts[..., 2], attempts[..., 3])
    heights, widths, top, left = (column.gather(1, first).squeeze(1) for column in columns)
    return _place(heights, widths, top, left, (height, width)), fits.any(dim=1)


def first_fitting_of_one(attempts: Sequence[Sequence[float]], height: int, width: int) -> Box | None:
    """Does the same for one image; None where no attempt fits."""
    for attempt in attempts:
        box_height, box_width = _sides_of_one(attempt, height, width)
        if 0 < box_height <= height and 0 < box_width <= width:
            return _place_one(box_height, box_width, attempt, (height, width))
    return None


def first_cut(attempts: Attempts, height: int, width: int) -> Boxes:
    """Takes the first attempt, cut to images of one size."""
    heights, widths = _sides(attempts[:, 0], height, width)
    heights, widths = heights.clamp(1, height), widths.clamp(1, width)
    return _place(heights, widths, attempts[:, 0, 2], attempts[:, 0, 3], (height, width))


def first_cut_of_one(attempts: Sequence[Sequence[float]], height: int, width: int) -> Box:
    """Does the same for one image."""
    box_height, box_width = _sides_of_one(attempts[0], height, width)
    box_height, box_width = min(max(box_height, 1), height), min(max(box_width, 1), width)
    return _place_one(box_height, box_width, attempts[0], (height, width))


def centred(height: int, width: int, ratio: Sequence[float]) -> Box:
    """The largest centred box whose width / height lies within `ratio`."""
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def _sides(attempts: Float[Tensor, "*n 4"], height: int, width: int) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    area = height * width
    return (attempts[..., 0] * area).sqrt().round(), (attempts[..., 1] * area).sqrt().round()


def _sides_of_one(attempt: Sequence[float], height: int, width: int) -> tuple[int, int]:
    area = height * width
    return round(math.sqrt(attempt[0] * area)), round(math.sqrt(attempt[1] * area))


def _place(
    heights: Float[Tensor, " b"],
    widths: Float[Tensor, " b"],
    top: Float[Tensor, " b"],
    left: Float[Tensor, " b"],
    size: tuple[int, int],
) -> Boxes:
    tops, lefts = top * (size[0] + 1 - heights), left * (size[1] + 1 - widths)
    return Boxes(tops.long(), lefts.long(), heights.long(), widths.long())


def _place_one(height: int, width: int, attempt: Sequence[float], size: tuple[int, int]) -> Box:
    top, left = int(attempt[2] * (size[0] + 1 - height)), int(attempt[3] * (size[1] + 1 - width))
    return Box(top, left, height, width)
