"""Joins what the stages of a hierarchical backbone put out for its visible mask units."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from unmask.patches import patch_grid, patch_sides
from unmask.types import FeatureStage


class StageFusion(nn.Module):
    """Adds to the last stage's tokens those of earlier stages that lie under them (Hiera, arXiv:2306.00989, sec. 3.1).

    Each earlier stage has one linear layer from all its tokens under a token of the last stage.

    Args:
        stages: The earlier ones.
        last: The last stage, whose tokens are whole tokens of each of the others.
    """

    def __init__(self, *, stages: Sequence[FeatureStage], last: FeatureStage) -> None:
        super().__init__()
        sides = [patch_grid(patch_sides(last.stride), stage.stride) for stage in stages]
        self.project = nn.ModuleList(
            nn.Conv2d(stage.channels, last.channels, kernel_size=side, stride=side)
            for stage, side in zip(stages, sides, strict=True)
        )

    def forward(self, maps: Sequence[Float[Tensor, "b k _h _w _c"]]) -> Float[Tensor, "b k h w d"]:
        """Takes the maps of each visible unit by the stages, shallow to deep, and by the last one."""
        *early, fused = maps
        for project, units in zip(self.project, early, strict=True):
            as_images = units.flatten(0, 1).permute(0, 3, 1, 2)
            fused = fused + project(as_images).permute(0, 2, 3, 1).unflatten(0, units.shape[:2])
        return fused
