"""Pixels normalized by what surrounds them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unmask.targets.pixels import VARIANCE_EPSILON
from unmask.types import Images


class LocalStatistics(NamedTuple):
    """Mean and deviation around each pixel, of each channel by itself."""

    mean: Images
    std: Images


def local_statistics(images: Images, window: int) -> LocalStatistics:
    """Measures each pixel's surroundings: a square of `window` pixels about it, cut off at the border.

    The variance is unbiased and gets 1e-6 added (targets of Swin V2's SimMIM, github.com/microsoft/Swin-Transformer).

    Raises:
        ValueError: The window has no center, or is a single pixel.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"a window around a pixel has an odd side of at least 3 px, got {window}")
    mean, square = _box_mean(images, window), _box_mean(images.square(), window)
    count = _box_count(images.shape[2], window, images)[:, None] * _box_count(images.shape[3], window, images)
    variance = ((square - mean.square()) * count / (count - 1)).clamp(min=0.0)
    return LocalStatistics(mean, (variance + VARIANCE_EPSILON).sqrt())


def normalize_locally(images: Images, window: int) -> Images:
    """Subtracts the local mean and divides by the local deviation."""
    statistics = local_statistics(images, window)
    return (images - statistics.mean) / statistics.std


def restore_locally(normalized: Images, window: int, *, like: Images) -> Images:
    """Undoes the normalization with the statistics of the true images `like`."""
    statistics = local_statistics(like, window)
    return normalized * statistics.std + statistics.mean


def _box_mean(images: Images, window: int) -> Images:
    """Averages along the columns, then along the rows: the box is the same for all of a row's columns."""
    half = window // 2
    rows = F.avg_pool2d(images, (1, window), stride=1, padding=(0, half), count_include_pad=False)
    return F.avg_pool2d(rows, (window, 1), stride=1, padding=(half, 0), count_include_pad=False)


def _box_count(side: int, window: int, like: Tensor) -> Float[Tensor, " {side}"]:
    """How many pixels of the image a box covers along one axis."""
    position = torch.arange(side, device=like.device, dtype=like.dtype)
    reach = window // 2
    return (position + reach).clamp(max=side - 1) - (position - reach).clamp(min=0) + 1
