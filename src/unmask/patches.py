"""Patch geometry: the only place that knows the order of patches and of the pixels inside one."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class PatchMask:
    """Which patches of each image are hidden from the encoder.

    There is one polarity: True means hidden. `visible` always names the complement.
    """

    masked: Bool[Tensor, "b rows cols"]
    patch_size: int  # side of one maskable patch, pixels
    num_masked: int | None = None  # patches hidden in each image where that number is fixed; spares a device sync

    def at_stride(self, stride: int, *, coarse: Literal["all", "nearest"] = "all") -> Bool[Tensor, "b h w"]:
        """Resamples the mask to a feature map.

        Args:
            stride: Input pixels per cell of the feature map.
            coarse: What a cell larger than a patch takes: "all" hides it where every patch under it is hidden,
                "nearest" copies its top-left patch.

        Raises:
            ValueError: Patches and cells do not nest.
        """
        if self.patch_size % stride == 0:
            repeats = self.patch_size // stride
            return self.masked.repeat_interleave(repeats, dim=1).repeat_interleave(repeats, dim=2)
        patches_per_cell, rest = divmod(stride, self.patch_size)
        _, rows, cols = self.masked.shape
        if rest or rows % patches_per_cell or cols % patches_per_cell:
            raise ValueError(
                f"a {rows}x{cols} grid of {self.patch_size} px patches does not nest with cells of {stride} px"
            )
        if coarse == "nearest":
            return self.masked[:, ::patches_per_cell, ::patches_per_cell]
        cells = self.masked.unflatten(2, (-1, patches_per_cell)).unflatten(1, (-1, patches_per_cell))
        return torch.all(torch.all(cells, dim=4), dim=2)

    def at_pixels(self) -> Bool[Tensor, "b 1 height width"]:
        """Repeats the mask to every pixel, with one channel that broadcasts over colours."""
        return self.at_stride(1).unsqueeze(1)

    def visible_indices(self) -> Int[Tensor, "b k"]:
        """Lists the visible patches of each image in row-major order.

        Raises:
            ValueError: The images of the batch keep different numbers of patches.
        """
        masked = self.masked.flatten(1)
        num_masked = self.num_masked
        if num_masked is None:
            counts = masked.sum(dim=1)
            num_masked = int(counts.max())
            if num_masked != int(counts.min()):
                raise ValueError(
                    f"images of one batch hide different numbers of patches ({int(counts.min())} to {num_masked}); "
                    "visible indices need one number"
                )
        visible_first = masked.to(torch.uint8).argsort(dim=1, stable=True)
        return visible_first[:, : masked.shape[1] - num_masked]


@dataclass(frozen=True)
class StageMask(PatchMask):
    """A mask of the image together with what is hidden as tokens enter each stage of a backbone.

    `masked` is what the encoder cannot see of the pixels: the union over the stages.
    """

    by_stage: tuple[PatchMask | None, ...] = ()  # one entry a stage; None = the stage is left alone


def patchify(images: Float[Tensor, "b c height width"], patch_size: int) -> Float[Tensor, "b n d"]:
    """Cuts images into row-major patch vectors with the channel running fastest (MAE's layout).

    Entry `(row * patch_size + col) * c + channel` of a vector is pixel (row, col) of its patch.

    Raises:
        ValueError: The image is not a whole number of patches.
    """
    _, _, height, width = images.shape
    require_whole_patches(height, width, patch_size)
    tiles = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # b c rows p cols p
    vectors: Tensor = tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return vectors


def unpatchify(
    patches: Float[Tensor, "b n d"], patch_size: int, grid: tuple[int, int]
) -> Float[Tensor, "b c height width"]:
    """Inverts `patchify` for a grid of (rows, cols) patches."""
    rows, cols = grid
    tiles = patches.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, (rows, cols))  # b rows cols p p c
    images: Tensor = tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
    return images


def require_whole_patches(height: int, width: int, patch_size: int) -> None:
    """Raises a ValueError that names nearby sizes unless both sides are multiples of `patch_size`."""
    if height % patch_size == 0 and width % patch_size == 0:
        return
    fitting = [max(1, round(side / patch_size)) * patch_size for side in (height, width)]
    divisors = [size for size in range(2, min(height, width) + 1) if height % size == 0 and width % size == 0]
    nearest = sorted(sorted(divisors, key=lambda size: abs(size - patch_size))[:2])
    units = f", or patches of {' or '.join(map(str, nearest))} px" if nearest else ""
    raise ValueError(
        f"{height}x{width} px images are not whole {patch_size} px patches; "
        f"use {fitting[0]}x{fitting[1]} px images{units}"
    )
