"""What callbacks ask of the module that is trained and of its data."""

from typing import Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from unmask.backbones.base import MaskedBackbone
from unmask.patches import PatchMask
from unmask.types import ImageBatch, Images, PixelStatistics


@runtime_checkable
class ExportsBackbone(Protocol):
    """A module that trains a backbone worth keeping."""

    @property
    def exported_backbone(self) -> MaskedBackbone: ...


@runtime_checkable
class MasksImages(Protocol):
    """A module whose reconstructions may be drawn."""

    def held_out_mask(self, images: Images, index: Int[Tensor, " b"]) -> PatchMask | None: ...

    def borrowed_statistics(self, images: Images) -> PixelStatistics | None: ...


@runtime_checkable
class HoldsImagesOut(Protocol):
    """A data module that reads some validation images, always the same ones."""

    def held_out_images(self, count: int) -> ImageBatch: ...
