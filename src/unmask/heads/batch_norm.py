"""Batch normalisation of features."""

from jaxtyping import Float
from torch import Tensor, nn


class FeatureNorm(nn.BatchNorm1d):
    """torch's batch normalisation, which says what to do about a batch of one image.

    Raises:
        ValueError: A single image is to be normalised in training.
    """

    def forward(self, input: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:  # noqa: A002 (torch's name)
        if self.training and len(input) == 1:
            raise ValueError(
                "batch normalisation has nothing to compare a single image with; "
                "set global_batch_size to 2 images or more for each device"
            )
        normalised: Tensor = super().forward(input)
        return normalised
