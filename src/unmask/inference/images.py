"""Which images a command is about, and how they are served to a backbone."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device

from unmask.data.datamodule import ImageDataModule
from unmask.data.dataset import ImageDataset
from unmask.data.files.splits import Split
from unmask.types import ImageBatch


class SelectedImages(NamedTuple):
    """The images of one split, as one backbone takes them."""

    data: ImageDataModule
    split: Split

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def dataset(self) -> ImageDataset:
        return self.data.dataset(self.split)

    def name(self, index: int) -> str:
        """A file's path, or the split and the number of an image in it."""
        return self.dataset.locate(index) or f"{self.split}/{index}"

    def names(self) -> list[str]:
        return [self.name(index) for index in range(len(self.dataset))]

    def part(self, indices: Sequence[int]) -> "SelectedImages":
        """Some of the images, in the order given."""
        kept = self.dataset.subset(torch.tensor(indices))
        return SelectedImages(self.data.with_dataset(self.split, kept), self.split)

    def batches(self, device: torch.device) -> Iterator[ImageBatch]:
        """Reads each image once, in order, not augmented, normalized, on the device."""
        for raw in self.data.evaluation_loader(self.split):
            yield self.data.to_model_input(move_data_to_device(raw, device), augmented=False)
