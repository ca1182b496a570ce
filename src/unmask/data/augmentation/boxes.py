"""Which box of an image a crop shows, for whole batches on their device or for one image in a worker.

All is computed in float64 (float32 on Apple's GPUs, which have no other) by operations that IEEE 754 rounds alike
everywhere (products, square roots), so both ways give the same boxes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DRAWS_PER_ATTEMPT = 4

_Number = TypeVar("_Number", float, Tensor)


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
    size = (height, width)
    sides = _sides(attempts.unbind(2), size, _rounded_roots)
    fits = _is_inside(sides[0], height) & _is_inside(sides[1], width)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    columns = (*sides, attempts[..., 2], attempts[..., 3])
    box_height, box_width, top, left = (column.gather(1, first).squeeze(1) for column in columns)
    return _whole_boxes((top, left), (box_height, box_width), size), fits.any(dim=1)


def first_fitting_of_one(attempts: Sequence[Sequence[float]], height: int, width: int) -> Box | None:
    """Does the same for one image; None where no attempt fits."""
    for attempt in attempts:
        sides = _sides(attempt, (height, width), _rounded_root)
        if _is_inside(sides[0], height) & _is_inside(sides[1], width):
            return _whole_box(attempt[2:], sides, (height, width))
    return None


def first_cut(attempts: Attempts, height: int, width: int) -> Boxes:
    """Takes the first attempt, cut to images of one size."""
    attempt = attempts[:, 0].unbind(1)
    heights, widths = _sides(attempt, (height, width), _rounded_roots)
    return _whole_boxes(attempt[2:], (heights.clamp(1, height), widths.clamp(1, width)), (height, width))


def first_cut_of_one(attempts: Sequence[Sequence[float]], height: int, width: int) -> Box:
    """Does the same for one image."""
    box_height, box_width = _sides(attempts[0], (height, width), _rounded_root)
    cut = min(max(box_height, 1), height), min(max(box_width, 1), width)
    return _whole_box(attempts[0][2:], cut, (height, width))


def centered(height: int, width: int, ratio: Sequence[float]) -> Box:
    """The largest centered box whose width / height lies within `ratio`."""
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def _sides(
    attempt: Sequence[_Number], size: tuple[int, int], rounded_root: Callable[[_Number], _Number]
) -> tuple[_Number, _Number]:
    """Height and width of the box; this and what follows serves one image's numbers and a batch's alike."""
    area = size[0] * size[1]
    return rounded_root(attempt[0] * area), rounded_root(attempt[1] * area)


def _is_inside(side: _Number, limit: int) -> Any:
    return (side > 0) & (side <= limit)


def _corner(place: Sequence[_Number], sides: tuple[_Number, _Number], size: tuple[int, int]) -> tuple[_Number, _Number]:
    """Top and left, not yet whole, of a box that lies `place` down and right in the room it leaves."""
    return place[0] * (size[0] + 1 - sides[0]), place[1] * (size[1] + 1 - sides[1])


def _rounded_roots(areas: Tensor) -> Tensor:
    return areas.sqrt().round()


def _rounded_root(area: float) -> float:
    return round(math.sqrt(area))


def _whole_boxes(place: Sequence[Tensor], sides: tuple[Tensor, Tensor], size: tuple[int, int]) -> Boxes:
    top, left = _corner(place, sides, size)
    return Boxes(top.long(), left.long(), sides[0].long(), sides[1].long())


def _whole_box(place: Sequence[float], sides: tuple[float, float], size: tuple[int, int]) -> Box:
    top, left = _corner(place, sides, size)
    return Box(int(top), int(left), int(sides[0]), int(sides[1]))
