"""Masks for the stages of a hierarchical backbone."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.masking.base import MaskGenerator
from unmask.masking.bernoulli import BernoulliMaskGenerator
from unmask.masking.random import RandomMaskGenerator
from unmask.patches import PatchMask
from unmask.randomness import sample_keys
from unmask.types import Images

_log = logging.getLogger("unmask")


@dataclass(frozen=True, kw_only=True)
class StageMaskGenerator:
    """Masks tokens as they enter each stage whose ratio is not 0.

    Nested: one mask is drawn, and every masked stage masks the same part of the image; a cell of a stage takes the
    mask of its top-left patch. Where patches are at least as large as the cells of the deepest masked stage, that is
    the same as masking cells whose patches are all, or in part, masked.

    Independent: every masked stage draws a mask of its own, on patches that are no smaller than the stage's cells;
    the pixels under any of them count as masked.

    Args:
        ratios: Fraction masked at each stage, shallow to deep, each 0 or in (0, 1).
        patch_size: Side of one maskable patch, pixels.
        token_size: Side of a token of the first stage, pixels; it doubles from stage to stage.
        nested: One mask for all stages, or one for each.
        distribution: "exact" masks a fixed number of patches of each image, "bernoulli" each patch with a probability.

    Raises:
        ValueError: No stage is masked, a ratio lies outside [0, 1), or nested stages have different ratios.
    """

    ratios: Sequence[float]
    patch_size: int
    token_size: int
    nested: bool = True
    distribution: str = "exact"

    def __post_init__(self) -> None:
        if not isinstance(self.patch_size, int):
            raise ValueError(
                f"masks of stages have square patches; patch_size must be one number, got {self.patch_size}"
            )
        nonzero = [ratio for ratio in self.ratios if ratio != 0]
        if not nonzero:
            raise ValueError(f"mask ratios {list(self.ratios)} mask nothing; give at least one stage a ratio above 0")
        if self.nested and len(set(nonzero)) > 1:
            raise ValueError(
                f"nested masks are one mask seen by every stage, but the ratios {list(self.ratios)} differ; give all "
                "masked stages the same ratio, or draw a mask for each by nested=false"
            )
        if self.distribution not in ("exact", "bernoulli"):
            raise ValueError(f"mask distribution must be exact or bernoulli, got {self.distribution!r}")
        for stage, ratio in enumerate(self.ratios):
            if ratio != 0:
                self._generator(stage, ratio)
        deepest = max(stage for stage, ratio in enumerate(self.ratios) if ratio != 0)
        cell = self.token_size * 2**deepest
        if self.nested and self.patch_size % cell and self.distribution == "exact":
            _log.warning(
                f"mask patches of {self.patch_size} px are not whole cells of {cell} px of stage {deepest}, so what "
                f"is masked at that stage is not what is masked of the image; use a multiple of {cell} px"
            )

    def __call__(self, images: Images, keys: Int[Tensor, " b"] | None = None) -> PatchMask:
        if self.nested:
            ratio = next(ratio for ratio in self.ratios if ratio != 0)
            mask = self._generator(0, ratio)(images, keys)
            by_stage = tuple(self._mask_at(stage, mask) if ratio else None for stage, ratio in enumerate(self.ratios))
            return PatchMask(mask.masked, mask.patch_size, mask.num_masked, by_stage)
        masks = tuple(
            self._generator(stage, ratio)(images, None if keys is None else sample_keys(stage, "stage", 0, keys))
            if ratio
            else None
            for stage, ratio in enumerate(self.ratios)
        )
        drawn = [mask for mask in masks if mask is not None]
        finest = min(mask.patch_size for mask in drawn)
        union = torch.stack([mask.at_stride(finest) for mask in drawn]).any(dim=0)
        return PatchMask(union, finest, by_stage=masks)

    def _mask_at(self, stage: int, mask: PatchMask) -> PatchMask:
        cell = self.token_size * 2**stage
        if stage == 0 or mask.patch_size % cell == 0:  # a unit below a token is for the method to refuse
            return mask
        return PatchMask(mask.at_stride(cell, coarse="nearest"), cell)

    def _generator(self, stage: int, ratio: float) -> MaskGenerator:
        patch_size = self.patch_size
        if not self.nested:
            patch_size = max(patch_size, self.token_size * 2**stage)
        if self.distribution == "bernoulli":
            return BernoulliMaskGenerator(ratio=ratio, patch_size=patch_size)
        return RandomMaskGenerator(ratio=ratio, patch_size=patch_size)


def stage_masks(mask: PatchMask, num_stages: int, masked_stages: Sequence[int]) -> tuple[PatchMask | None, ...]:
    """Reads what is masked at each stage; a mask without stages is taken as nested, for the stages listed."""
    return mask.by_stage or tuple(mask if stage in masked_stages else None for stage in range(num_stages))
