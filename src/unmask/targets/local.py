"""Pixels normalized by what surrounds them."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unmask.targets.pixels import VARIANCE_EPSILON
from unmask.types import Images, PixelStatistics


class PixelTarget:
    """The pixels of an image as a target, normalized locally or left as they are; in float32 in either case.

    Args:
        window: Side, pixels, of the window around a pixel whose mean and deviation normalize it; None leaves the pixels
            as they are.

    Raises:
        ValueError: The window has no center, or is a single pixel.
    """

    def __init__(self, window: int | None) -> None:
        if window is not None:
            _require_center(window)
        self.window = window

    def __call__(self, images: Images) -> Images:
        """The target to predict of these images."""
        return images.float() if self.window is None else normalize_locally(images.float(), self.window)

    def restore(self, prediction: Images, *, like: Images) -> Images:
        """Turns a prediction of the target into pixels, by the local statistics of the true images `like`."""
        return prediction if self.window is None else restore_locally(prediction, self.window, like=like.float())

    def borrowed_statistics(self, images: Images) -> PixelStatistics | None:
        """What `restore` takes from the true images; None where it takes nothing."""
        return None if self.window is None else local_statistics(images.float(), self.window)


def local_statistics(images: Images, window: int) -> PixelStatistics:
    """Measures each pixel's surroundings: a square of `window` pixels about it, cut off at the border.

    Each channel is measured by itself. The variance is unbiased and gets 1e-6 added (targets of Swin V2's SimMIM,
    github.com/microsoft/Swin-Transformer).

    Raises:
        ValueError: The window has no center, or is a single pixel.
    """
    _require_center(window)
    count = _box_count(images.shape[2], window, images)[:, None] * _box_count(images.shape[3], window, images)
    mean, square = (_box_sum(_box_sum(values, window, 3), window, 2) / count for values in (images, images.square()))
    variance = ((square - mean.square()) * count / (count - 1)).clamp(min=0.0)
    return PixelStatistics(mean, (variance + VARIANCE_EPSILON).sqrt())


def normalize_locally(images: Images, window: int) -> Images:
    """Subtracts the local mean and divides by the local deviation."""
    statistics = local_statistics(images, window)
    return (images - statistics.mean) / statistics.std


def restore_locally(normalized: Images, window: int, *, like: Images) -> Images:
    """Undoes the normalization with the statistics of the true images `like`."""
    statistics = local_statistics(like, window)
    return normalized * statistics.std + statistics.mean


def _require_center(window: int) -> None:
    if window < 3 or window % 2 == 0:
        raise ValueError(f"a window around a pixel has an odd side of at least 3 px, got {window}")


def _box_sum(images: Images, window: int, axis: int) -> Images:
    """Adds up what lies within half a window of each pixel along one axis.

    Sums of 2, 4, 8, ... neighbors are made of those of half as many, and the window of these: a few additions of
    whole tensors, where pooling reads every pixel of every window.
    """
    side, half = images.shape[axis], window // 2
    partial = F.pad(images, (half, half) if axis == 3 else (0, 0, half, half))  # sums of `width` pixels from each on
    total, offset = partial.narrow(axis, 0, side), 1  # a window has an odd side
    for width in (2**power for power in range(1, window.bit_length())):
        num_sums = partial.shape[axis] - width // 2
        partial = partial.narrow(axis, 0, num_sums) + partial.narrow(axis, width // 2, num_sums)
        if width & window:
            total = total + partial.narrow(axis, offset, side)
            offset += width
    return total


def _box_count(side: int, window: int, like: Tensor) -> Float[Tensor, " {side}"]:
    """How many pixels of the image a box covers along one axis."""
    position = torch.arange(side, device=like.device, dtype=like.dtype)
    reach = window // 2
    return (position + reach).clamp(max=side - 1) - (position - reach).clamp(min=0) + 1
