"""Masking each patch with a probability."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from unmask.masking.random import draw_for_patches, require_ratio
from unmask.patches import PatchMask, PatchSize, as_patch_size, patch_text
from unmask.types import Images


@dataclass(frozen=True, kw_only=True)
class BernoulliMaskGenerator:
    """Masks each patch with probability `ratio`, independently, so that the number masked varies.

    This is what dropping whole tokens with `dropout2d` does (DDMIM's original code).

    Differs: an image never loses all its patches or none; the patch of the lowest draw is always masked, that of the
    highest never. On the original's 3,136 patches neither would ever happen.

    Raises:
        ValueError: `ratio` lies outside (0, 1); the images are not at least two whole patches.
    """

    ratio: float  # chance of a patch to be masked, in (0, 1)
    patch_size: int | Sequence[int]  # of one maskable patch: a side, or (height, width), pixels

    def __post_init__(self) -> None:
        require_ratio(self.ratio, self._unit)

    @property
    def _unit(self) -> PatchSize:
        return as_patch_size(self.patch_size)

    def __call__(self, images: Images, keys: Int[Tensor, " b"] | None = None) -> PatchMask:
        grid = draw_for_patches(images, self._unit, keys)
        draws = grid.flatten(1)
        if draws.shape[1] < 2:
            _, _, height, width = images.shape
            raise ValueError(
                f"one {patch_text(self._unit)} px patch is the whole {height}x{width} px image; use smaller patches"
            )
        masked = draws < self.ratio
        masked.scatter_(1, draws.argmin(dim=1, keepdim=True), True)
        masked.scatter_(1, draws.argmax(dim=1, keepdim=True), False)
        return PatchMask(masked.view_as(grid), self._unit)
