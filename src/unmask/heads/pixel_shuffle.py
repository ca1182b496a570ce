"""SimMIM's one-layer prediction head."""

import math

from jaxtyping import Float
from torch import Tensor, nn

from unmask.patches import PatchSize, patch_sides
from unmask.types import Images


class PixelShuffleHead(nn.Module):
    """Predicts every pixel of a cell from the cell's features (SimMIM sec. 3.3): 1x1 convolution, then pixel shuffle.

    Args:
        in_channels: Width of the feature map.
        stride: Pixels along the side of a cell, or its (height, width); the prediction is that many times larger than
            the map.
        image_channels: Channels of the prediction.
    """

    def __init__(self, *, in_channels: int, stride: PatchSize, image_channels: int = 3) -> None:
        super().__init__()
        self.sides = patch_sides(stride)
        self.project = nn.Conv2d(in_channels, image_channels * math.prod(self.sides), kernel_size=1)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Images:
        # The channel is slowest, unlike in `unmask.patches.patchify`; nn.PixelShuffle does the same to square cells.
        cells = self.project(features).unflatten(1, (-1, *self.sides))  # b c p p rows cols
        prediction: Tensor = cells.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)
        return prediction
