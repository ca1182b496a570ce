"""ImageNet-1k: `train/<wnid>/` and `val/<wnid>/`, or the official archives."""

import logging
from typing import Any

import torch

from unmask.data.dataset import ImageDataset, ImageFileDataset
from unmask.data.files.listing import FoundImages
from unmask.data.files.splits import Split
from unmask.data.sources.folder import ImageFolder
from unmask.data.sources.imagenet_archives import DevkitMeta, extract_archives, read_meta
from unmask.data.splits import hold_out_per_class

_log = logging.getLogger(__name__)


class ImageNet(ImageFolder):
    """ImageNet, or part of it, with the official validation images as the test split.

    Where `root` holds the official archives instead of folders they are extracted beside themselves, once
    (`extract_archives`). A `meta.bin` of torchvision's or lightning-bolts', in `root`, `train` or `val`, says which
    class folders there may be, and the classes of validation images that lie in `val` without class folders.

    What chooses between epochs or learning rates must not be what is reported, so the val split is held out from the
    training images: `held_out_per_class` of each class, by the rule of lightning-bolts (`hold_out_per_class`). 50 is
    the split the original DDMIM used.

    Args:
        root: Holds the folders `train` and `val`, each with one folder a class, or the archives
            `ILSVRC2012_img_train.tar`, `ILSVRC2012_img_val.tar` and `ILSVRC2012_devkit_t12.tar.gz`.
        held_out_per_class: Training images of each class that become the val split. 0 trains on all of them, as the
            published runs do; the official validation images are then both splits, and a log line says so.
        shared: See `ImageFolder`.

    Raises:
        ValueError: `root` has no such folders or archives, a class folder is unknown to `meta.bin`, or a class has too
            few images.
    """

    def __init__(self, *, root: str, held_out_per_class: int = 10, **shared: Any) -> None:
        super().__init__(root=root, labels="folders", val_fraction=0.0, test_fraction=0.0, **shared)
        if held_out_per_class < 0:
            raise ValueError(f"data.held_out_per_class must not be below 0, got {held_out_per_class}")
        self.held_out_per_class = held_out_per_class

    def prepare_data(self) -> None:
        extract_archives(self.root)

    def load_split(self, split: Split) -> ImageDataset:
        extract_archives(self.root)
        missing = [name for name in ("train", "val") if name not in self._folders]
        if missing:
            raise ValueError(
                f"{self.root} has no folder {' and no folder '.join(missing)}; data=imagenet expects train/<wnid>/ "
                "and val/<wnid>/, or ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
                "ILSVRC2012_devkit_t12.tar.gz. For other layouts use data=folder"
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

    def read_split(self, split: Split) -> ImageFileDataset:
        meta = read_meta(self.root)
        if split == "val" and meta is not None:
            found = self._find_images(self._folders["val"])
            if found.subfolders == ((),):
                return self._label_by_order(found, meta)
        dataset = super().read_split(split)
        unknown = [] if meta is None else [name for name in dataset.class_names if name not in meta.classes]
        if unknown:
            raise ValueError(
                f"{self._folders[split]} has the class folder {unknown[0]!r}, which meta.bin does not list; "
                "remove it, or use data=folder"
            )
        return dataset

    def _label_by_order(self, found: FoundImages, meta: DevkitMeta) -> ImageFileDataset:
        """Validation images as the archive holds them: their order of names tells their classes."""
        if len(found.paths) != len(meta.val_wnids):
            raise ValueError(
                f"{found.folder} has {len(found.paths)} images outside class folders, and meta.bin the classes of "
                f"{len(meta.val_wnids)}; extract ILSVRC2012_img_val.tar again"
            )
        number = {wnid: index for index, wnid in enumerate(self.training_images.class_names)}
        lacking = sorted(set(meta.val_wnids) - set(number))
        if lacking:
            raise ValueError(f"{self._folders['train']} has no folder {lacking[0]!r}, of which there are val images")
        labels = torch.tensor([number[wnid] for wnid in meta.val_wnids])
        return ImageFileDataset(found.paths, labels, self.training_images.class_names, decode=self.decoder.read)
