"""Crops of whole batches of small pictures, to the last bit as torch resizes one picture."""

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor

from unmask.data.augmentation.boxes import Boxes, widest_float

Interpolation = Literal["bilinear", "bicubic"]

_WEIGHT_LIMIT = 2**15  # torch keeps weights as 16-bit integers
_MOST_BITS = 22
_EXACT_SUM = 2**24  # up to here float32 holds every whole number
_AT_ONCE = 64  # images a CPU resizes at a time: 32 px of so many stay in its cache
_TABLE_LIMIT = 2**22  # weights in a table; 32 px to 32 px takes an eighth of it, for one direction


def resize_boxes(
    images: UInt8[Tensor, "b c height width"],
    boxes: Boxes,
    size: tuple[int, int],
    interpolation: Interpolation,
    flipped: Bool[Tensor, " b"],
) -> Float[Tensor, "b c new_height new_width"]:
    """Cuts one box an image, resizes it with antialiasing and mirrors it where `flipped`.

    Bit for bit torchvision's `resized_crop` of each image by itself, as whole floats in 0..255: torch resizes uint8
    with weights of 16 bits, columns first and rounding in between, and sums of whole numbers are the same in any order.
    So two matrix products serve the whole batch.
    """
    if images.device.type == "mps":  # has no float64
        on_cpu = resize_boxes(images.cpu(), Boxes(*(side.cpu() for side in boxes)), size, interpolation, flipped.cpu())
        return on_cpu.to(images.device)
    if images.is_cuda:
        return _resize(images, boxes, size, interpolation, flipped)
    parts = (part.split(_AT_ONCE) for part in (images, *boxes, flipped))
    resized = [_resize(part, Boxes(*box), size, interpolation, flip) for part, *box, flip in zip(*parts, strict=True)]
    return torch.cat(resized) if len(resized) > 1 else resized[0]


def _resize(
    images: UInt8[Tensor, "b c height width"],
    boxes: Boxes,
    size: tuple[int, int],
    interpolation: Interpolation,
    flipped: Bool[Tensor, " b"],
) -> Float[Tensor, "b c new_height new_width"]:
    count, channels, height, width = images.shape
    exact = _exact_type(max(height / size[0], width / size[1]), images.device)
    rows = _weights(boxes.top, boxes.height, (height, size[0]), interpolation, exact=exact)
    cols = _weights(boxes.left, boxes.width, (width, size[1]), interpolation, exact=exact, flipped=flipped)
    # All rows of an image, whatever their channel, have their columns resized by one product.
    lines = _round(images.to(exact).reshape(count, channels * height, width) @ cols.transpose(1, 2))
    return _round(rows[:, None] @ lines.view(count, channels, height, size[1])).float()


def resample_boxes(
    images: Float[Tensor, "b c height width"],
    boxes: Boxes,
    size: tuple[int, int],
    interpolation: Interpolation,
    flipped: Bool[Tensor, " b"],
) -> Float[Tensor, "b c new_height new_width"]:
    """Does the same to values of any range, up to float rounding; a bicubic kernel may overshoot them."""
    height, width = images.shape[2:]
    rows = _weights(boxes.top, boxes.height, (height, size[0]), interpolation)
    cols = _weights(boxes.left, boxes.width, (width, size[1]), interpolation, flipped=flipped)
    resized: Tensor = rows[:, None] @ images @ cols[:, None].transpose(2, 3)
    return resized


def _round(sums: Float[Tensor, "*n m"]) -> Float[Tensor, "*n m"]:
    return sums.add_(0.5).floor_().clamp_(0.0, 255.0)


def _weights(
    start: Int[Tensor, " b"],
    length: Int[Tensor, " b"],
    sides: tuple[int, int],
    interpolation: Interpolation,
    *,
    exact: torch.dtype | None = None,
    flipped: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, "b target source"]:
    """Looks the weights up in a table of all boxes where that is small, else computes those of the batch.

    Args:
        start, length: Of each box, along one axis.
        sides: The image's and the result's.
        interpolation: Kernel.
        exact: Type of weights rounded as torch does for uint8; None keeps them as they are, in float32.
        flipped: Which results are mirrored; None mirrors none.
    """
    source, target = sides
    if source * (source + 1) * target * source <= _TABLE_LIMIT:
        table = _table(source, target, interpolation, exact, start.device)
        before = (length - 1) * (2 * source - length + 2) // 2  # shorter boxes
        place = before + start if flipped is None else before + start + flipped * (source * (source + 1) // 2)
        return table.index_select(0, place)
    made = _made(start, length, sides, interpolation, exact)
    return made if flipped is None else torch.where(flipped[:, None, None], made.flip(1), made)


def _made(
    start: Int[Tensor, " b"],
    length: Int[Tensor, " b"],
    sides: tuple[int, int],
    interpolation: Interpolation,
    exact: torch.dtype | None,
) -> Float[Tensor, "b target source"]:
    kernels = _kernels(start, length, sides, interpolation)
    return kernels.float() if exact is None else _in_16_bits(kernels).to(exact)


@functools.lru_cache(maxsize=8)
def _table(
    source: int, target: int, interpolation: Interpolation, exact: torch.dtype | None, device: torch.device
) -> Float[Tensor, "n target source"]:
    """The weights of every box, by length and start, and behind them those of mirrored ones."""
    length = torch.repeat_interleave(torch.arange(1, source + 1), torch.arange(source, 0, -1))
    start = torch.cat([torch.arange(source - size + 1) for size in range(1, source + 1)])
    made = _made(start, length, (source, target), interpolation, exact)
    return torch.cat([made, made.flip(1)]).to(device)


def _exact_type(shrinking: float, device: torch.device) -> torch.dtype:
    """The type in which sums of pixels times weights are exact.

    A weight is below 2**15 and shrinks as more pixels share in a target pixel, whose weights, those below zero
    included, add up to less than 1.5 times its largest of a kernel not widened: 2**14 * `shrinking`. On a GPU float32
    products may be rounded to fewer bits (TF32).
    """
    is_exact = 255 * 1.5 * _WEIGHT_LIMIT / 2 * max(1.0, 2 * shrinking) < _EXACT_SUM
    return torch.float32 if is_exact and device.type != "cuda" else torch.float64


def _kernels(
    start: Int[Tensor, " b"], length: Int[Tensor, " b"], sides: tuple[int, int], interpolation: Interpolation
) -> Float[Tensor, "b target source"]:
    """Weights of each source pixel in each target pixel along one axis; pixels outside the box weigh nothing."""
    source, target = sides
    scale = length.to(widest_float(length.device)) / target
    stretch = scale.clamp(min=1.0)  # antialiasing widens the kernel when shrinking
    centers = (torch.arange(target, device=start.device) + 0.5) * scale[:, None]  # in the box
    pixels = torch.arange(source, device=start.device) - start[:, None]
    distance = (pixels[:, None, :] - centers[:, :, None] + 0.5) * (1.0 / stretch)[:, None, None]
    weights = _cubic(distance) if interpolation == "bicubic" else F.relu(1.0 - distance.abs())
    weights = weights * ((pixels >= 0) & (pixels < length[:, None]))[:, None, :]
    return weights / weights.sum(dim=2, keepdim=True)


def _in_16_bits(weights: Float64[Tensor, "b target source"]) -> Float64[Tensor, "b target source"]:
    """Rounds weights as torch does for uint8: to as many bits behind the point as the largest leaves of 16."""
    powers = 2.0 ** torch.arange(1, _MOST_BITS + 1, dtype=torch.float64, device=weights.device)
    fitting = torch.floor(0.5 + weights.amax(dim=(1, 2))[:, None] * powers) < _WEIGHT_LIMIT
    unit = 2.0 ** -fitting.sum(dim=1).double()[:, None, None]
    scaled = weights / unit
    return torch.trunc(scaled + torch.where(scaled < 0.0, -0.5, 0.5)) * unit


def _cubic(distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Keys' cubic kernel with a = -0.5, which Pillow and torch use when antialiasing."""
    d = distance.abs()
    near = ((-0.5 + 2.0) * d - (-0.5 + 3.0)) * d * d + 1.0
    far = ((d - 5.0) * d + 8.0) * d - 4.0
    return torch.where(d < 1.0, near, torch.where(d < 2.0, -0.5 * far, torch.zeros_like(d)))
