"""SimMIM's one-layer prediction head."""

from jaxtyping import Float
from torch import Tensor, nn

from unmask.types import Images


class PixelShuffleHead(nn.Module):
    """Predicts every pixel of a cell from the cell's features (SimMIM sec. 3.3): 1x1 convolution, then pixel shuffle.

    Args:
        in_channels: Width of the feature map.
        stride: Pixels along the side of a cell; the prediction is that many times larger than the map.
        image_channels: Channels of the prediction.
    """

    def __init__(self, *, in_channels: int, stride: int, image_channels: int = 3) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, image_channels * stride**2, kernel_size=1)
        self.shuffle = nn.PixelShuffle(stride)  # channel slowest, unlike `unmask.patches.patchify`

    def forward(self, features: Float[Tensor, "b c h w"]) -> Images:
        prediction: Tensor = self.shuffle(self.project(features))
        return prediction
