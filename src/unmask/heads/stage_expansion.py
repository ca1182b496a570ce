"""Splits tokens of a last stage into those of smaller patches."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn


class StageExpansion(nn.Module):
    """Computes one token for each patch under a token of the last stage, by a linear layer for each place in it.

    UM-MAE's code (arXiv:2205.10063) does so with the layer that leads into the decoder.

    Args:
        channels: Of the tokens before and after.
        factor: Patches along a side of a token of the last stage.
    """

    def __init__(self, *, channels: int, factor: int) -> None:
        super().__init__()
        self.project = nn.ConvTranspose2d(channels, channels, kernel_size=factor, stride=factor)

    def forward(self, maps: Sequence[Float[Tensor, "b k _h _w _c"]]) -> Float[Tensor, "b k h w d"]:
        """Takes the maps of stages, shallow to deep, and expands the last one."""
        units = maps[-1]
        expanded: Tensor = self.project(units.flatten(0, 1).permute(0, 3, 1, 2))
        by_unit: Tensor = expanded.permute(0, 2, 3, 1).unflatten(0, units.shape[:2])
        return by_unit
