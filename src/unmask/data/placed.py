"""Small images in memory together with where their training crops lie, for the device to cut."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.data.crops import AugmentedCrop, augmentation_keys
from unmask.data.samples import InMemoryImages, LoaderSamples, RawBatch, SampleKey

_PLACED_AT_ONCE = 4096


class PlacedSamples(LoaderSamples):
    """Images of one size as stored, with their crops in `RawBatch.crop`.

    The crops of a whole epoch are drawn at once: for one batch of small images the draws would take half as long as
    the cutting.
    """

    samples: InMemoryImages
    crop: AugmentedCrop

    def __init__(self, samples: InMemoryImages, crop: AugmentedCrop) -> None:
        super().__init__(samples, crop)
        self._last: tuple[int, Int[Tensor, "n 5"]] | None = None  # an epoch and its crops

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        batch = super().__getitems__(keys)
        epochs = {key.epoch for key in keys}
        if len(epochs) > 1:
            return batch._replace(crop=self._place(batch.epoch, batch.index))
        return batch._replace(crop=self._epoch(epochs.pop()).index_select(0, batch.index))

    def _epoch(self, epoch: int) -> Int[Tensor, "n 5"]:
        if self._last is None or self._last[0] != epoch:
            parts = torch.arange(len(self)).split(_PLACED_AT_ONCE)
            self._last = epoch, torch.cat([self._place(epoch, part) for part in parts])
        return self._last[1]

    def _place(self, epoch: int | Int[Tensor, " b"], index: Int[Tensor, " b"]) -> Int[Tensor, "b 5"]:
        augmentation = self.crop.augmentation
        draws = augmentation.draws(augmentation_keys(self.crop.seed, epoch, index))
        boxes, flipped = augmentation.place(draws, *self.samples.images.shape[2:])
        return torch.stack([*boxes, flipped.long()], dim=1)
