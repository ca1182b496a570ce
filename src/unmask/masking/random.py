"""Uniform random masking."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.patches import (
    PatchMask,
    PatchSize,
    as_patch_size,
    patch_grid,
    patch_sides,
    patch_text,
    require_whole_patches,
)
from unmask.randomness import keyed_uniform
from unmask.types import Images


@dataclass(frozen=True, kw_only=True)
class RandomMaskGenerator:
    """Masks a fixed number of patches of each image, drawn uniformly without replacement.

    Of n patches `ceil(ratio * n)` are masked (SimMIM sec. 3.2: 22 of 36 and 30 of 49 at ratio 0.6). MAE (sec. 3)
    keeps `int(n * (1 - ratio))`, which is the same number for every grid and ratio its authors published.

    With `cell`, one patch is left visible in each square of so many a side (uniform sampling of UM-MAE,
    arXiv:2205.10063, sec. 3.1): the visible patches, moved together, are a smaller image, which a backbone that attends
    in windows needs to leave the masked ones out.

    Differs: UM-MAE's secondary masking, mask tokens in the place of some of the visible patches, is left out.

    Raises:
        ValueError: `ratio` lies outside (0, 1) or is not the one of `cell`; the images are not whole patches or
            squares; all patches would be masked.
    """

    ratio: float  # fraction of patches masked, in (0, 1); with `cell` it can only be 1 - 1 / cell^2
    patch_size: int | Sequence[int]  # of one maskable patch: a side, or (height, width), pixels
    cell: int | None = None  # patches along a side of the squares, at least 2; None: no squares

    def __post_init__(self) -> None:
        require_ratio(self.ratio, self._unit)
        if self.cell is None:
            return
        if self.cell < 2:
            raise ValueError(f"mask cell must be at least 2 patches a side, or null for none, got {self.cell}")
        ratio = 1 - 1 / self.cell**2
        if not math.isclose(self.ratio, ratio, abs_tol=1e-4):
            raise ValueError(
                f"one visible patch of each {self.cell}x{self.cell} is a mask ratio of {ratio:g}, not {self.ratio:g}; "
                f"set method.mask_generator.ratio={ratio:g}"
            )

    @property
    def _unit(self) -> PatchSize:
        return as_patch_size(self.patch_size)

    def __call__(self, images: Images, keys: Int[Tensor, " b"] | None = None) -> PatchMask:
        draws = draw_for_patches(images, self._unit, keys)
        _, rows, cols = draws.shape
        if self.cell is not None:
            return self._mask_by_cell(draws, self.cell)
        num_masked = math.ceil(self.ratio * rows * cols)
        if num_masked == rows * cols:
            largest = math.floor(1e4 * (1 - 1 / num_masked)) / 1e4
            smaller_ratio = f"a ratio of at most {largest:g}, or " if num_masked > 1 else ""
            raise ValueError(
                f"mask ratio {self.ratio} of {num_masked} patches would mask them all; "
                f"use {smaller_ratio}patches smaller than {patch_text(self._unit)} px"
            )
        chosen = draws.flatten(1).argsort(dim=1)[:, :num_masked]
        masked = torch.zeros(len(draws), rows * cols, dtype=torch.bool, device=images.device).scatter_(1, chosen, True)
        return PatchMask(masked.view_as(draws), self._unit, num_masked)

    def _mask_by_cell(self, draws: Float[Tensor, "b rows cols"], cell: int) -> PatchMask:
        """Leaves the patch of the lowest draw in each square visible."""
        _, rows, cols = draws.shape
        if rows % cell or cols % cell:
            raise ValueError(self._misfit(rows, cols, cell))
        cells = draws.unflatten(2, (-1, cell)).unflatten(1, (-1, cell)).transpose(2, 3)  # b rows cols cell cell
        chosen = cells.flatten(3).argmin(dim=3, keepdim=True)
        masked = torch.ones_like(cells, dtype=torch.bool).flatten(3).scatter_(3, chosen, False).view(cells.shape)
        masked = masked.transpose(2, 3).flatten(3).flatten(1, 2)
        return PatchMask(masked, self._unit, rows * cols - rows * cols // cell**2, visible_cell=cell)

    def _misfit(self, rows: int, cols: int, cell: int) -> str:
        """Says which images would be whole squares."""
        height, width = patch_sides(self._unit)
        fitting = [max(1, round(count / cell)) * cell * side for count, side in ((rows, height), (cols, width))]
        return (
            f"{rows * height}x{cols * width} px images are not whole squares of {cell}x{cell} patches of "
            f"{patch_text(self._unit)} px; use {fitting[0]}x{fitting[1]} px images"
        )


def require_ratio(ratio: float, patch_size: PatchSize) -> None:
    """Raises a ValueError unless the fraction and the size of the patches make sense."""
    if not 0.0 < ratio < 1.0:
        raise ValueError(f"mask ratio must lie between 0 and 1, both excluded, got {ratio}")
    if min(patch_sides(patch_size)) < 1:
        raise ValueError(f"mask patch_size must be at least 1 pixel, got {patch_text(patch_size)}")


def draw_for_patches(
    images: Images, patch_size: PatchSize, keys: Int[Tensor, " b"] | None
) -> Float[Tensor, "b rows cols"]:
    """Draws one number in [0, 1) for each patch, by key or, without keys, from torch's generator.

    Raises:
        ValueError: The images are not whole patches.
    """
    batch, _, height, width = images.shape
    require_whole_patches(height, width, patch_size)
    rows, cols = patch_grid((height, width), patch_size)
    if keys is None:
        return torch.rand(batch, rows, cols, device=images.device)
    return keyed_uniform(keys, rows * cols).view(batch, rows, cols)
