"""Images a user points at: one file, a folder, or a text file that lists them."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.data.datamodule import ImageDataModule
from unmask.data.dataset import UNLABELED, ImageFileDataset
from unmask.data.files.listing import find_images
from unmask.data.files.paths import PathList
from unmask.data.files.splits import SPLIT_NAMES, Split
from unmask.data.sources.filelist import FileList

_LIST_SUFFIXES = (".txt", ".csv")
_SPLIT_FOLDERS = {name for names in SPLIT_NAMES.values() for name in names}


class ImagePaths(ImageDataModule):
    """One image, all images below a folder, or those a text file lists; they are the test split.

    Images are labeled where each lies in exactly one of several folders that are not named like splits, and where a
    list gives labels; others have none.

    Args:
        image: The path. Any layout of a folder will do; a `.txt` or `.csv` is read as `FileList` reads it.
        shared: See `ImageDataModule`.

    Raises:
        ValueError: There is nothing at the path, or no image; when another split is asked for.
    """

    holds_images_in_memory = False

    def __init__(self, *, image: str, **shared: Any) -> None:
        super().__init__(**shared)
        self.image = Path(image).expanduser()
        self.shared = shared
        if not self.image.exists():
            raise ValueError(f"there is nothing at {image} (seen from {Path.cwd()}); name an image, a folder or a list")

    def load_split(self, split: Split) -> ImageFileDataset:
        if split != "test":
            raise ValueError(f"the images at {self.image} can be predicted and shown, not trained on; use split test")
        if self.image.is_dir():
            return self._below_folder()
        if self.image.suffix.lower() in _LIST_SUFFIXES:
            return FileList(train=str(self.image), **self.shared).read_split("train")
        return self._dataset(PathList([str(self.image)]), torch.tensor([UNLABELED]), ())

    def _below_folder(self) -> ImageFileDataset:
        found = find_images(self.image, self.decoder.suffixes)
        if not len(found.paths):
            raise ValueError(f"no image below {self.image}; name a folder of images")
        classes = found.class_folders
        if not classes or {name.lower() for name in classes} <= _SPLIT_FOLDERS:
            return self._dataset(found.paths, torch.full((len(found.paths),), UNLABELED), ())
        return self._dataset(found.paths, found.labels(classes), classes)

    def _dataset(self, paths: PathList, labels: Int[Tensor, " n"], classes: tuple[str, ...]) -> ImageFileDataset:
        return ImageFileDataset(paths, labels, classes, decode=self.decoder.read)
