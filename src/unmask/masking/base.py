"""The contract of mask generators."""

from typing import Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from unmask.patches import PatchMask
from unmask.types import Images


@runtime_checkable
class MaskGenerator(Protocol):
    """Decides which patches of each image are masked. Reads the images' shape and device, never their pixels."""

    def __call__(self, images: Images, keys: Int[Tensor, " b"] | None = None) -> PatchMask:
        """Draws one mask an image.

        Args:
            images: The batch to be masked.
            keys: One key an image (`unmask.randomness.sample_keys`) makes its mask reproducible; None draws from
                torch's generator.
        """
        ...
