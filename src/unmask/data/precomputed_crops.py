"""Small images in memory together with where their training crops lie, for the device to cut."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.data.augmentation.crops import AugmentedCrop, augmentation_keys
from unmask.data.dataset import ImageDataset, LoaderDataset, RawBatch, SampleKey

_PLACED_AT_ONCE = 4096


class PrecomputedCrops(LoaderDataset):
    """Images of one size as stored, with their crops in `RawBatch.crop`.

    The crops of a whole epoch are drawn at once: for one batch of small images the draws would take half as long as
    the cutting.
    """

    crop: AugmentedCrop

    def __init__(self, dataset: ImageDataset, crop: AugmentedCrop) -> None:
        super().__init__(dataset, crop)
        self._last: tuple[int, Int[Tensor, "n 5"]] | None = None  # an epoch and its crops

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        batch = super().__getitems__(keys)
        height, width = batch.image.shape[2:]
        epochs = {key.epoch for key in keys}
        if len(epochs) > 1:
            return batch._replace(crop=self._place(batch.epoch, batch.index, (height, width)))
        return batch._replace(crop=self._epoch(epochs.pop(), (height, width)).index_select(0, batch.index))

    def _epoch(self, epoch: int, size: tuple[int, int]) -> Int[Tensor, "n 5"]:
        if self._last is None or self._last[0] != epoch:
            parts = torch.arange(len(self)).split(_PLACED_AT_ONCE)
            self._last = epoch, torch.cat([self._place(epoch, part, size) for part in parts])
        return self._last[1]

    def _place(
        self, epoch: int | Int[Tensor, " b"], index: Int[Tensor, " b"], size: tuple[int, int]
    ) -> Int[Tensor, "b 5"]:
        augmentation = self.crop.augmentation
        draws = augmentation.draws(augmentation_keys(self.crop.seed, epoch, index))
        boxes, flipped = augmentation.place(draws, *size)
        return torch.stack([*boxes, flipped.long()], dim=1)
