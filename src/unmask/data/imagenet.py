"""ImageNet-1k as it is extracted: `train/<wnid>/` and `val/<wnid>/`."""

import logging
from typing import Any

from unmask.data.datamodule import Split
from unmask.data.folder import ImageFolder
from unmask.data.samples import ImageSamples
from unmask.data.splits import hold_out_per_class

_log = logging.getLogger(__name__)


class ImageNet(ImageFolder):
    """ImageNet, or part of it, with the official validation images as the test split.

    What chooses between epochs or learning rates must not be what is reported, so the val split is held out from the
    training images: `held_out_per_class` of each class, by the rule of lightning-bolts (`hold_out_per_class`). 50 is
    the split the original DDMIM used.

    Args:
        root: Holds the folders `train` and `val`, each with one folder a class.
        held_out_per_class: Training images of each class that become the val split. 0 trains on all of them, as the
            published runs do; the official validation images are then both splits, and a log line says so.
        shared: See `ImageFolder`.

    Raises:
        ValueError: `root` has no such folders, or a class too few images.
    """

    def __init__(self, *, root: str, held_out_per_class: int = 10, **shared: Any) -> None:
        super().__init__(root=root, labels="folders", val_share=0.0, test_share=0.0, **shared)
        if held_out_per_class < 0:
            raise ValueError(f"data.held_out_per_class must not be below 0, got {held_out_per_class}")
        self.held_out_per_class = held_out_per_class

    def load_split(self, split: Split) -> ImageSamples:
        missing = [name for name in ("train", "val") if name not in self._folders]
        if missing:
            raise ValueError(
                f"{self.root} has no folder {' and no folder '.join(missing)}; data=imagenet expects train/<wnid>/ "
                "and val/<wnid>/ as the archives are extracted and sorted. For other layouts use data=folder"
            )
        if split == "test" or (split == "val" and not self.held_out_per_class):
            if split == "val":
                _log.warning("data.held_out_per_class=0: what is chosen on val is chosen on the test images")
            return self.read_split("val")
        training = self.training_images
        if not self.held_out_per_class:
            return training
        kept, held_out = hold_out_per_class(training.labels, self.held_out_per_class)
        return training.subset(kept if split == "train" else held_out)
