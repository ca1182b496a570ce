"""Which images a command is about, and how they are served to a backbone."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device

from unmask.data.datamodule import ImageDataModule, Split
from unmask.data.samples import ImageSamples
from unmask.types import ImageBatch


class Shown(NamedTuple):
    """The images of one split, as one backbone takes them."""

    data: ImageDataModule
    split: Split

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def samples(self) -> ImageSamples:
        return self.data.samples(self.split)

    def name(self, index: int) -> str:
        """A file's path, or the split and the number of an image in it."""
        return self.samples.locate(index) or f"{self.split}/{index}"

    def names(self) -> list[str]:
        return [self.name(index) for index in range(len(self.samples))]

    def part(self, indices: Sequence[int]) -> "Shown":
        """Some of the images, in the order given."""
        kept = self.samples.subset(torch.tensor(indices))
        return Shown(self.data.with_samples(self.split, kept), self.split)

    def batches(self, device: torch.device) -> Iterator[ImageBatch]:
        """Reads each image once, in order, not augmented, normalised, on the device."""
        for raw in self.data.evaluation_loader(self.split):
            yield self.data.finish(move_data_to_device(raw, device), augmented=False)
