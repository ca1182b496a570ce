"""Crops that bring one image of any size to the size a loader serves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Int
from torch import Tensor

from unmask.data.augmentation.boxes import ImageDraws
from unmask.data.augmentation.transforms import Augmentation, resize_and_center_crop
from unmask.data.dataset import LoaderCrop, SampleKey, key_columns
from unmask.data.files.pixels import Pixels
from unmask.randomness import sample_keys


def augmentation_keys(seed: int, epoch: int | Int[Tensor, " b"], index: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The keys of all augmentation draws of these samples in this epoch."""
    return sample_keys(seed, "augmentation", epoch, index)


@dataclass(frozen=True, kw_only=True)
class AugmentedCrop(LoaderCrop):
    """The training crop and distortion, keyed by (seed, epoch, sample)."""

    augmentation: Augmentation
    size: tuple[int, int]
    seed: int
    fill: tuple[float, ...]  # RGB in 0..1, of what a distortion moves in from outside
    together: Sequence[SampleKey] = ()  # whose draws are looked up at once, when the first is needed

    def __call__(self, image: Pixels, key: SampleKey) -> Pixels:
        draws = self._looked_up[key] if key in self._looked_up else self._draws([key])[key]
        cropped = self.augmentation.crop_image(image, draws, self.size)
        if self.augmentation.rand_augment is None:
            return cropped
        return self.augmentation.distort_image(cropped, self._keys([key]), self.fill)

    def prepared(self, keys: Sequence[SampleKey]) -> "AugmentedCrop":
        return replace(self, together=keys)

    @cached_property
    def _looked_up(self) -> Mapping[SampleKey, ImageDraws]:
        return self._draws(self.together) if self.together else {}

    def _draws(self, keys: Sequence[SampleKey]) -> Mapping[SampleKey, ImageDraws]:
        return dict(zip(keys, self.augmentation.draws(self._keys(keys)).each(), strict=True))

    def _keys(self, keys: Sequence[SampleKey]) -> Int[Tensor, " b"]:
        epoch, index = key_columns(keys)
        return augmentation_keys(self.seed, epoch, index)


@dataclass(frozen=True, kw_only=True)
class CenterCrop(LoaderCrop):
    """The evaluation crop; the same in every epoch."""

    size: tuple[int, int]
    crop_pct: float
    interpolation: str = "bicubic"

    def __call__(self, image: Pixels, key: SampleKey) -> Pixels:
        return resize_and_center_crop(image, self.size, self.crop_pct, interpolation=self.interpolation)
