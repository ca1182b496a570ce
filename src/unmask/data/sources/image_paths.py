"""Images a user points at: one file, a folder, or a text file that lists them."""

from pathlib import Path
from typing import Any

import torch

from unmask.data.datamodule import ImageDataModule
from unmask.data.dataset import UNLABELLED, ImageFileDataset
from unmask.data.files.listing import find_images
from unmask.data.files.paths import PathList
from unmask.data.files.splits import Split
from unmask.data.sources.filelist import FileList

_LIST_SUFFIXES = (".txt", ".csv")


class ImagePaths(ImageDataModule):
    """One image, all images below a folder, or those a text file lists; they are the test split, without labels.

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
        paths = self._paths()
        labels = torch.full((len(paths),), UNLABELLED)
        return ImageFileDataset(paths, labels, (), decode=self.decoder.read)

    def _paths(self) -> PathList:
        if self.image.is_dir():
            found = find_images(self.image, self.decoder.suffixes)
            if not len(found.paths):
                raise ValueError(f"no image below {self.image}; name a folder of images")
            return found.paths
        if self.image.suffix.lower() in _LIST_SUFFIXES:
            return FileList(train=str(self.image), **self.shared).read_split("train").paths
        return PathList([str(self.image)])
