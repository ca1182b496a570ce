"""ImageNet-1k as lightning-bolts divides it."""

from pathlib import Path
from typing import Any

import torch

from unmask.data.datamodule import ImageDataModule
from unmask.data.dataset import ImageFileDataset
from unmask.data.files.paths import PathList
from unmask.data.files.splits import Split
from unmask.data.sources.bolts import import_bolts, kept_numpy_state, quiet_warnings
from unmask.data.sources.imagenet_archives import meta_folder


class ImageNetBolts(ImageDataModule):
    """Reads ImageNet by the lists of `pl_bolts.datamodules.ImagenetDataModule`, which DDMIM's authors used.

    Which images a split has, and in which order they are stored, is what bolts says; how they are decoded, cropped and
    shuffled is ours, as in every data module. Needs the extra `bolts`. `ImageNet` with `held_out_per_class=50` has the
    same splits without it.

    Differs: bolts 0.7.0 reads three attributes that Lightning has removed since; they are given to it. numpy's global
    generator, which bolts seeds with 1234, is left as it was.

    Args:
        root: Holds the folders `train` and `val`, each with one folder a class, and `meta.bin` in itself or in one of
            them.
        held_out_per_class: Training images of each class that become the val split, bolts' `num_imgs_per_val_class`.
        crop_pct, shared: See `ImageDataModule`.

    Raises:
        ValueError: lightning-bolts is not installed, a folder or `meta.bin` is missing, or every image of a class
            would be held out.
    """

    holds_images_in_memory = False

    def __init__(self, *, root: str, held_out_per_class: int = 50, crop_pct: float = 0.875, **shared: Any) -> None:
        super().__init__(crop_pct=crop_pct, **shared)
        if held_out_per_class < 1:
            raise ValueError(f"data.held_out_per_class must be at least 1, got {held_out_per_class}")
        import_bolts()
        self.root = Path(root).expanduser()
        self.held_out_per_class = held_out_per_class

    def load_split(self, split: Split) -> ImageFileDataset:
        for folder in ("train", "val"):
            if not (self.root / folder).is_dir():
                raise ValueError(f"{self.root} has no folder {folder}; data=imagenet_bolts expects train/ and val/")
        dataset = self._bolts_dataset(split)
        paths, labels = zip(*dataset.imgs, strict=True) if dataset.imgs else ((), ())
        lacking = set(range(len(dataset.wnids))) - set(labels)
        if lacking:
            raise ValueError(
                f"the {split} split of {self.root} has no image of {dataset.wnids[min(lacking)]}: bolts holds "
                f"{self.held_out_per_class} of each class out; set a smaller data.held_out_per_class"
            )
        return ImageFileDataset(PathList(paths), torch.tensor(labels), dataset.wnids, decode=self.decoder.read)

    def _bolts_dataset(self, split: Split) -> Any:
        meta = meta_folder(self.root)
        if meta is None:
            raise ValueError(
                f"{self.root} has no meta.bin, nor have train and val; data=imagenet writes it from "
                "ILSVRC2012_devkit_t12.tar.gz, and data=imagenet needs none"
            )
        module_class = import_bolts().datamodules.ImagenetDataModule
        with kept_numpy_state(), quiet_warnings():
            module = module_class(str(self.root), str(meta), self.held_out_per_class)
            for transforms in ("train_transforms", "val_transforms", "test_transforms"):
                setattr(module, transforms, None)  # of LightningDataModule until 1.7
            return getattr(module, f"{split}_dataloader")().dataset
