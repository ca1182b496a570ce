"""Crops that bring one image of any size to the size a loader serves."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.data.samples import Pixels, SampleKey
from unmask.data.transforms import Augmentation, resize_and_centre_crop
from unmask.randomness import sample_keys


def augmentation_keys(seed: int, epoch: int | Int[Tensor, " b"], index: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The keys of all augmentation draws of these samples in this epoch."""
    return sample_keys(seed, "augmentation", epoch, index)


@dataclass(frozen=True, kw_only=True)
class AugmentedCrop:
    """The training crop, keyed by (seed, epoch, sample)."""

    augmentation: Augmentation
    size: tuple[int, int]
    seed: int

    def __call__(self, image: Pixels, key: SampleKey) -> Pixels:
        keys = augmentation_keys(self.seed, key.epoch, torch.tensor([key.index]))
        return self.augmentation.crop_image(image, keys, self.size)


@dataclass(frozen=True, kw_only=True)
class CentreCrop:
    """The evaluation crop; the same in every epoch."""

    size: tuple[int, int]
    crop_share: float

    def __call__(self, image: Pixels, key: SampleKey) -> Pixels:
        return resize_and_centre_crop(image, self.size, self.crop_share)
