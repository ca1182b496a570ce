"""The last steps from a loader's batch to what a backbone reads, on its device."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from unmask.data.augmentation.boxes import Boxes
from unmask.data.augmentation.crops import augmentation_keys
from unmask.data.augmentation.resizing import resize_boxes
from unmask.data.augmentation.transforms import Augmentation, resize_and_center_crop
from unmask.data.dataset import FILLER_EPOCH, RawBatch
from unmask.data.statistics import PixelStatistics
from unmask.types import FILLER_INDEX, ImageBatch, Images


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """Crops images held in memory, normalizes, and in training distorts those crops and erases boxes.

    Args:
        image_size: Height and width of the images served, pixels.
        crop_pct, interpolation: Of the center crop of images held in memory.
        augmentation: Of training images.
        seed: Key of its draws.
        statistics: Mean and deviation to normalize with.
        are_in_memory: Whether batches hold images as stored, not yet cropped.
    """

    image_size: tuple[int, int]
    crop_pct: float
    interpolation: str
    augmentation: Augmentation
    seed: int
    statistics: PixelStatistics
    are_in_memory: bool

    def __call__(self, batch: RawBatch, *, augmented: bool) -> ImageBatch:
        """Without `augmented`, and where a batch was not read for training, images are cropped at the center."""
        images: Tensor = batch.image
        needs_keys = self.augmentation.rand_augment is not None or self.augmentation.random_erasing_prob > 0
        keys = augmentation_keys(self.seed, batch.epoch, batch.index) if augmented and needs_keys else None
        if augmented and batch.crop is not None:
            images = self.statistics.normalize_(self._crop(batch.image, batch.crop, keys))
        elif self.are_in_memory:
            images = self._normalize(
                resize_and_center_crop(images, self.image_size, self.crop_pct, interpolation=self.interpolation)
            )
        else:
            images = self._normalize(images)
        if keys is not None:
            images = self.augmentation.erase_batch(images, keys)
        return ImageBatch(images, batch.label, batch.index.masked_fill(batch.epoch == FILLER_EPOCH, FILLER_INDEX))

    def _crop(
        self,
        images: UInt8[Tensor, "b 3 old_height old_width"],
        crop: Int[Tensor, "b 5"],
        keys: Int[Tensor, " b"] | None,
    ) -> Float[Tensor, "b 3 height width"]:
        """Training crops of images from memory, in 0..255."""
        top, left, height, width, flipped = crop.unbind(1)
        boxes, interpolation = Boxes(top, left, height, width), self.augmentation.interpolation
        cropped = resize_boxes(images, boxes, self.image_size, interpolation, flipped == 1)
        return cropped if keys is None else self.augmentation.distort_batch(cropped, keys, self.statistics.mean)

    def _normalize(self, images: Shaped[Tensor, "b channels height width"]) -> Images:
        return self.statistics.normalize_(images.to(torch.float32, copy=True))
