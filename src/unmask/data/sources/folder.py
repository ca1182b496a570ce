"""Folders of images as people have them: with splits or without, with classes or without."""

import logging
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from unmask.data.auto_split import AutoSplitDataModule
from unmask.data.dataset import UNLABELED, ImageFileDataset
from unmask.data.files.decoding import ARRAY_SUFFIXES
from unmask.data.files.listing import FoundImages, find_images, is_folder, list_visible
from unmask.data.files.splits import SPLIT_NAMES, Split

FolderLabels = Literal["auto", "folders", "none"]

_log = logging.getLogger(__name__)


class ImageFolder(AutoSplitDataModule):
    """Image files below a folder, whose layout is recognized by looking.

    Splits: below a folder `train` stand the training images, below `val` (or `valid`, `validation`) and `test` beside
    it those splits. Without `train`, all of `root` is training images. **A split without a folder is held out from the
    training images**, evenly over the classes; so if there is `val` and no `test`, `val` stays what it is and the test
    images come from `train`. No test image is ever in another split. What is held out depends on the files and
    `split_seed` alone, so that runs of any seed, and their evaluation, agree on it. A `root` holding nothing but one
    folder stands for that folder.

    Classes: with `labels="auto"`, images are labeled by their folder if every training image lies in exactly one
    folder below the split and there are two such folders or more; flat and deeper layouts are unlabeled. A `val` or
    `test` without any folder is then unlabeled too, as competitions hand it out; else it must have the classes of
    `train`. Nested folders that happen to look like classes do no harm in pre-training.

    Hidden files and folders, `__MACOSX` and files that are not named like images are ignored; links are followed.

    Args:
        root: The folder.
        labels: "auto"; "folders": the first folder below the split is the class, at any depth; "none": no labels.
        shared: See `AutoSplitDataModule`; a split is the source's own where it has a folder.

    Raises:
        ValueError: A value is out of range or `root` is no folder; when a split is read, it has no image, a class
            folder is empty, classes differ between the splits, or a link is broken or leads back to a folder above it.
    """

    def __init__(
        self,
        *,
        root: str,
        labels: FolderLabels = "auto",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if labels not in get_args(FolderLabels):
            raise ValueError(f"data.labels must be 'auto', 'folders' or 'none', got {labels!r}")
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            problem = "is not a folder" if self.root.exists() else "does not exist"
            raise ValueError(
                f"data.root={root} {problem} (seen from {Path.cwd()}); set data.root to a folder of images"
            )
        self.labels = labels

    def origin(self, split: Split) -> str | None:
        return str(self._folders[split]) if split in self._folders else None

    def how_to_add(self, split: Split) -> str:
        return f"put a folder {split} beside train"

    def read_split(self, split: Split) -> ImageFileDataset:
        classes = self._class_folders
        found = self._found_training_images if split == "train" else self._find_images(self._folders[split])
        if not classes or (self.labels == "auto" and not any(found.subfolders)):
            labels = torch.full((len(found.paths),), UNLABELED)
            return ImageFileDataset(found.paths, labels, (), decode=self.decoder.read)
        _require_class_folders(found)
        _require_same_classes(found, classes, self._folders["train"])
        return ImageFileDataset(found.paths, found.labels(classes), classes, decode=self.decoder.read)

    @cached_property
    def _folders(self) -> dict[Split, Path]:
        return _find_splits(self.root)

    @cached_property
    def _found_training_images(self) -> FoundImages:
        return self._find_images(self._folders["train"])

    def _find_images(self, folder: Path) -> FoundImages:
        suffixes = self.decoder.suffixes
        found = find_images(folder, suffixes)
        ignored = ", ".join(f"{count} {suffix}" for suffix, count in found.ignored.most_common(5))
        if any(f".{suffix}" in found.ignored for suffix in ARRAY_SUFFIXES):
            ignored += " (arrays are read where data.channels is not 3, or data.pixel_scale is set)"
        if not len(found.paths):
            raise ValueError(
                f"no image below {folder} ({f'only {ignored}' if ignored else 'no file at all'}); "
                f"expected files named .{', .'.join(sorted(suffixes))}"
            )
        if ignored:
            total = found.ignored.total()
            _log.info("ignored %d files below %s that are not named like images: %s", total, folder, ignored)
        return found

    @cached_property
    def _class_folders(self) -> tuple[str, ...]:
        """The classes of all splits, in the order of their labels; empty without labels."""
        found = self._found_training_images
        if self.labels == "none":
            return ()
        if self.labels == "auto" and not found.class_folders:
            return ()
        _require_class_folders(found)
        return found.classes


def _find_splits(root: Path) -> dict[Split, Path]:
    entries = list_visible(root)
    subfolders = [Path(entry.path) for entry in entries if is_folder(entry)]
    folders: dict[Split, Path] = {}
    for split, names in SPLIT_NAMES.items():
        matches = [folder for folder in subfolders if folder.name.lower() in names]
        if len(matches) > 1:
            raise ValueError(f"{matches[0]} and {matches[1]} are both the {split} split; keep one, or merge them")
        if matches:
            folders[split] = matches[0]
    if not folders and len(entries) == 1 and entries[0].is_dir(follow_symlinks=False):
        return _find_splits(subfolders[0])
    if folders and "train" not in folders:
        raise ValueError(
            f"{root} has the folder {' and '.join(folder.name for folder in folders.values())} but no folder train; "
            "put the training images in one"
        )
    return folders or {"train": root}


def _require_class_folders(found: FoundImages) -> None:
    """Raises a ValueError unless each image lies in a class folder and each class folder holds an image."""
    if () in found.subfolders:
        stray = found.paths[int((found.subfolder_of == found.subfolders.index(())).nonzero()[0])]
        raise ValueError(
            f"{stray} lies in no class folder of {found.folder}; move it into one, or set data.labels=none"
        )
    subfolders = [entry.name for entry in list_visible(found.folder) if is_folder(entry)]
    empty = sorted(set(subfolders) - set(found.classes))
    if empty:
        raise ValueError(
            f"no image in {_enumerate(empty)} of {found.folder}, which would be a class; "
            "add its images, remove it, or set data.labels=none"
        )


def _require_same_classes(found: FoundImages, classes: tuple[str, ...], train: Path) -> None:
    here, there = set(found.classes) - set(classes), set(classes) - set(found.classes)
    if here or there:
        raise ValueError(
            f"the classes differ: {_enumerate(here)} only in {found.folder}, {_enumerate(there)} only in {train}; "
            "give both the same class folders, or set data.labels=none"
        )


def _enumerate(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(map(repr, ordered[:5])) + more if ordered else "none"
