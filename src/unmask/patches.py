"""Patch geometry: the only place that knows the order of patches and of the pixels inside one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PatchSize = int | tuple[int, int]
"""Side of a square patch, or height and width of a rectangular one, in pixels."""


def as_patch_size(size: int | Sequence[int]) -> PatchSize:
    """Reads a side or a (height, width) pair, which is one number where its sides are equal.

    Raises:
        ValueError: There are more or fewer numbers.
    """
    if isinstance(size, int):
        return size
    if len(size) != 2:
        raise ValueError(f"a patch has one side, or a height and a width, in pixels; got {list(size)}")
    height, width = size
    return height if height == width else (height, width)


def patch_sides(size: PatchSize) -> tuple[int, int]:
    """Height and width of a patch."""
    return (size, size) if isinstance(size, int) else size


def patch_text(size: PatchSize) -> str:
    """Writes a patch size as messages do: 16, or 16x8."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def patch_grid(image_size: Sequence[int], patch_size: PatchSize) -> tuple[int, int]:
    """Rows and columns of whole patches in an image of (height, width)."""
    height, width = (side // patch for side, patch in zip(image_size, patch_sides(patch_size), strict=True))
    return height, width


def are_whole_cells(patch_size: PatchSize, stride: PatchSize) -> bool:
    """Tells whether a patch is a whole number of cells both ways."""
    return all(side % cell == 0 for side, cell in zip(patch_sides(patch_size), patch_sides(stride), strict=True))


@dataclass(frozen=True)
class PatchMask:
    """Which patches of each image are masked, that is, not seen by the encoder.

    There is one polarity: True means masked. `visible` always names the complement.
    """

    masked: Bool[Tensor, "b rows cols"]
    patch_size: PatchSize  # of one maskable patch, pixels
    num_masked: int | None = None  # patches masked in each image where that number is fixed; spares a device sync
    by_stage: "tuple[PatchMask | None, ...]" = ()
    """What is masked as tokens enter each stage of a backbone, None where nothing is; `masked` then is their union.
    Empty in a mask that does not tell stages apart."""
    visible_cell: int | None = None
    """Side, in patches, of the squares of which each has exactly one visible patch; None where that is not known."""

    def at_stride(self, stride: PatchSize, *, coarse: Literal["all", "nearest"] = "all") -> Bool[Tensor, "b h w"]:
        """Resamples the mask to a feature map.

        Args:
            stride: Input pixels per cell of the feature map.
            coarse: What a cell larger than a patch takes: "all" masks it where every patch under it is masked,
                "nearest" copies its top-left patch.

        Raises:
            ValueError: Patches and cells do not nest.
        """
        masked = self.masked
        for axis, (side, cell) in enumerate(zip(patch_sides(self.patch_size), patch_sides(stride), strict=True), 1):
            if side % cell == 0:
                masked = masked.repeat_interleave(side // cell, dim=axis)
                continue
            patches_per_cell, rest = divmod(cell, side)
            if rest or self.masked.shape[axis] % patches_per_cell:
                _, rows, cols = self.masked.shape
                raise ValueError(
                    f"a {rows}x{cols} grid of {patch_text(self.patch_size)} px patches does not nest with cells of "
                    f"{patch_text(stride)} px"
                )
            cells = masked.unflatten(axis, (-1, patches_per_cell))
            masked = cells.select(axis + 1, 0) if coarse == "nearest" else torch.all(cells, dim=axis + 1)
        return masked

    def split(self, patch_size: PatchSize) -> "PatchMask":
        """Says of smaller patches what this mask says of its own.

        Raises:
            ValueError: A patch of this mask is not whole smaller ones.
        """
        if patch_size == self.patch_size:
            return self
        if not are_whole_cells(self.patch_size, patch_size):
            raise ValueError(
                f"patches of {patch_text(self.patch_size)} px are not a whole number of {patch_text(patch_size)} px"
            )
        factor = math.prod(patch_sides(self.patch_size)) // math.prod(patch_sides(patch_size))
        num_masked = None if self.num_masked is None else self.num_masked * factor
        return PatchMask(self.at_stride(patch_size), patch_size, num_masked)

    def at_pixels(self) -> Bool[Tensor, "b 1 height width"]:
        """Repeats the mask to every pixel, with one channel that broadcasts over colors."""
        return self.at_stride(1).unsqueeze(1)

    def visible_indices(self) -> Int[Tensor, "b k"]:
        """Lists the visible patches of each image in row-major order.

        Raises:
            ValueError: The images of the batch keep different numbers of patches.
        """
        return self._visible_and_masked_indices[0]

    def masked_indices(self) -> Int[Tensor, "b m"]:
        """Lists the masked patches of each image in row-major order.

        Raises:
            ValueError: The images of the batch keep different numbers of patches.
        """
        return self._visible_and_masked_indices[1]

    @cached_property
    def _visible_and_masked_indices(self) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b m"]]:
        masked = self.masked.flatten(1)
        num_masked = self.num_masked
        if num_masked is None:
            counts = masked.sum(dim=1)
            num_masked = int(counts.max())
            if num_masked != int(counts.min()):
                raise ValueError(
                    f"images of one batch have different numbers of masked patches ({int(counts.min())} to "
                    f"{num_masked}); visible indices need one number"
                )
        visible_first = masked.to(torch.uint8).argsort(dim=1, stable=True)
        visible, rest = visible_first.tensor_split([masked.shape[1] - num_masked], dim=1)
        return visible, rest


def patches_of_units(
    units: Int[Tensor, "b k"], *, grid: tuple[int, int], unit_size: PatchSize, patch_size: PatchSize
) -> Int[Tensor, "b n"]:
    """Lists the patches that mask units consist of: row by row within a unit, unit after unit.

    Args:
        units: Their row-major indices.
        grid: Rows and columns of patches in an image.
        unit_size: Pixels, whole patches.
        patch_size: Pixels.

    Returns:
        Row-major indices of patches in the image.
    """
    if unit_size == patch_size:
        return units
    _, cols = grid
    (unit_rows, unit_cols) = patch_grid(patch_sides(unit_size), patch_size)
    first = units // (cols // unit_cols) * unit_rows * cols + units % (cols // unit_cols) * unit_cols
    rows_within = torch.arange(unit_rows, device=units.device)[:, None] * cols
    within = (rows_within + torch.arange(unit_cols, device=units.device)).flatten()
    return (first[:, :, None] + within).flatten(1)


def take_tokens(tokens: Float[Tensor, "b n d"], indices: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """Takes the tokens, or patches, of each image that are at these indices, in their order."""
    num_images, num_tokens, _ = tokens.shape
    first = torch.arange(num_images, device=indices.device)[:, None] * num_tokens
    rows = tokens.flatten(0, 1).index_select(0, (first + indices).flatten())  # faster backward than gather
    taken: Tensor = rows.unflatten(0, indices.shape)
    return taken


def patchify(images: Float[Tensor, "b c height width"], patch_size: PatchSize) -> Float[Tensor, "b n d"]:
    """Cuts images into row-major patch vectors with the channel running fastest (MAE's layout).

    Entry `(row * patch_width + col) * c + channel` of a vector is pixel (row, col) of its patch.

    Raises:
        ValueError: The image is not a whole number of patches.
    """
    _, _, height, width = images.shape
    require_whole_patches(height, width, patch_size)
    patch_height, patch_width = patch_sides(patch_size)
    tiles = images.unflatten(3, (-1, patch_width)).unflatten(2, (-1, patch_height))  # b c rows p cols p
    vectors: Tensor = tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return vectors


def unpatchify(
    patches: Float[Tensor, "b n d"], patch_size: PatchSize, grid: tuple[int, int]
) -> Float[Tensor, "b c height width"]:
    """Inverts `patchify` for a grid of (rows, cols) patches."""
    rows, cols = grid
    tiles = patches.unflatten(2, (*patch_sides(patch_size), -1)).unflatten(1, (rows, cols))  # b rows cols p p c
    images: Tensor = tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
    return images


def require_whole_patches(height: int, width: int, patch_size: PatchSize) -> None:
    """Raises a ValueError that names nearby sizes unless the image is whole patches both ways."""
    if are_whole_cells((height, width), patch_size):
        return
    sides = patch_sides(patch_size)
    fitting = [max(1, round(side / patch)) * patch for side, patch in zip((height, width), sides, strict=True)]
    divisors = [size for size in range(2, min(height, width) + 1) if height % size == 0 and width % size == 0]
    nearest = sorted(sorted(divisors, key=lambda size: abs(size - min(sides)))[:2])
    units = f", or patches of {' or '.join(map(str, nearest))} px" if nearest else ""
    raise ValueError(
        f"{height}x{width} px images are not whole {patch_text(patch_size)} px patches; "
        f"use {fitting[0]}x{fitting[1]} px images{units}"
    )
