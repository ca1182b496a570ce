"""Pixels as the target of reconstruction."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

VARIANCE_EPSILON = 1e-6  # MAE's, added to each patch's variance


class PatchStatistics(NamedTuple):
    """Mean and deviation of each patch's numbers."""

    mean: Float[Tensor, "b n 1"]
    std: Float[Tensor, "b n 1"]


def patch_statistics(patches: Float[Tensor, "b n d"]) -> PatchStatistics:
    """Measures each patch over its d numbers with the unbiased variance, `sqrt(var + 1e-6)` (MAE sec. 4.1)."""
    return PatchStatistics(
        mean=patches.mean(dim=2, keepdim=True),
        std=(patches.var(dim=2, keepdim=True) + VARIANCE_EPSILON).sqrt(),
    )


def normalize_patches(patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Subtracts each patch's mean and divides by its deviation."""
    statistics = patch_statistics(patches)
    return (patches - statistics.mean) / statistics.std


def restore_patches(normalized: Float[Tensor, "b n d"], like: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Undoes the normalization with the statistics of the true patches `like`."""
    statistics = patch_statistics(like)
    return normalized * statistics.std + statistics.mean
