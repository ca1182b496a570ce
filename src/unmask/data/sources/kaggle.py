"""Kaggle competitions and data sets as they are downloaded."""

import csv
import logging
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from unmask.data.dataset import UNLABELED, ImageDataset, ImageFileDataset
from unmask.data.files.archives import unpack_zip
from unmask.data.files.splits import Split
from unmask.data.labels import number_labels
from unmask.data.sources.folder import ImageFolder
from unmask.data.splits import hold_out

Part = Literal["all", "labeled", "unlabeled"]

_log = logging.getLogger(__name__)


class Kaggle(ImageFolder):
    """A zip archive of Kaggle's, or a folder of them, extracted or not.

    Archives are extracted beside themselves, once: `train.zip` to `train/`. Labels come from a table `id, label` where
    there is one, its identifiers being names of files with or without their ending; else from class folders, as
    `ImageFolder` reads them. Images the table does not name are unlabeled. A folder `test` without any label, as
    competitions hand it out, is not the test split: that is then held out from the training images.

    Args:
        root: The archive or the folder. None downloads.
        slug: "owner/name" of a data set to download by kagglehub (the extra `kaggle`) with the user's own
            credentials; only without `root`.
        table: Name of the table in the folder; without such a file, class folders are the labels.
        id_column, label_column: Headers; None takes the first and the second column.
        part: Of the training images: "all"; "labeled": `num_labeled` of them, evenly over the classes; "unlabeled":
            the others, their labels taken off. One run pre-trains on one part, another learns labels on the other.
        num_labeled: Size of the labeled part; unused with `part="all"`.
        shared: See `ImageFolder`.

    Raises:
        ValueError: Neither or both of `root` and `slug` are given, `part` and `num_labeled` do not fit, kagglehub is
            not installed, an archive is unsafe (`unpack_zip`), or the table has no such column, or names no image that
            is there.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        slug: str | None = None,
        table: str = "labels.csv",
        id_column: str | None = None,
        label_column: str | None = None,
        part: Part = "all",
        num_labeled: int = 0,
        **shared: Any,
    ) -> None:
        if part not in get_args(Part):
            raise ValueError(f"data.part must be 'all', 'labeled' or 'unlabeled', got {part!r}")
        if (part == "all") != (num_labeled == 0) or num_labeled < 0:
            raise ValueError(
                f"data.part={part} and data.num_labeled={num_labeled} do not go together; name a part and how many "
                "images the labeled one has, or neither"
            )
        if (root is None) == (slug is None):
            raise ValueError("data=kaggle takes data.root, what was downloaded, or data.slug=OWNER/NAME; give one")
        place = _download(slug) if slug is not None else Path(str(root)).expanduser()
        super().__init__(root=str(_unpacked(place)), **shared)
        self.table, self.id_column, self.label_column = self.root / table, id_column, label_column
        self.part, self.num_labeled = part, num_labeled

    def load_split(self, split: Split) -> ImageDataset:
        dataset = super().load_split(split)
        if split != "train" or self.part == "all":
            return dataset
        if not 0 < self.num_labeled < len(dataset):
            raise ValueError(
                f"data.num_labeled={self.num_labeled} of {len(dataset)} training images leaves one part empty; "
                f"set it below {len(dataset)}"
            )
        rest, labeled = hold_out(dataset.labels, self.num_labeled, seed=self.split_seed)
        kept = dataset.subset(labeled if self.part == "labeled" else rest)
        _log.info("of them the %s part: %d images", self.part, len(kept))
        if self.part == "unlabeled":
            kept.labels, kept.class_names = torch.full_like(kept.labels, UNLABELED), ()
        return kept

    def origin(self, split: Split) -> str | None:
        return None if split == "test" and self._test_lacks_labels else super().origin(split)

    def read_split(self, split: Split) -> ImageFileDataset:
        found = super().read_split(split)
        if not self._labels_by_name:
            return found
        written = [self._labels_by_name.get(_name(path)) for path in found.paths]
        if split == "train" and not any(written):
            raise ValueError(
                f"{self.table} names no image below {self._folders['train']}: there {Path(found.paths[0]).name}, "
                f"in the table {next(iter(self._labels_by_name))}; set data.id_column"
            )
        classes = () if split == "train" else self.training_images.class_names
        labels, classes = number_labels(written, classes, source=str(self.table))
        return ImageFileDataset(found.paths, labels, classes, decode=self.decoder.read)

    @cached_property
    def _test_lacks_labels(self) -> bool:
        if not self._labels_by_name or "test" not in self._folders:
            return False
        return not any(_name(path) in self._labels_by_name for path in super().read_split("test").paths)

    @cached_property
    def _labels_by_name(self) -> dict[str, str]:
        if not self.table.is_file():
            return {}
        with self.table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            columns = [
                self._column(header, name, place) for place, name in enumerate((self.id_column, self.label_column))
            ]
            return {_name(row[columns[0]]): row[columns[1]] for row in rows if len(row) > max(columns)}

    def _column(self, header: list[str], name: str | None, place: int) -> int:
        if name is None and place < len(header):
            return place
        if name in header:
            return header.index(str(name))
        key = ("id_column", "label_column")[place]
        raise ValueError(f"{self.table} has no column {name!r}; set data.{key} to one of {', '.join(header) or 'none'}")


def _name(path: str) -> str:
    """The name of a file without folders and ending."""
    return Path(path.strip()).stem


def _unpacked(place: Path) -> Path:
    if place.is_file():
        return _unpacked_beside(place)
    for archive in sorted(place.glob("*.zip")):
        _unpacked_beside(archive)
    return place


def _unpacked_beside(archive: Path) -> Path:
    was_there = archive.with_suffix("").exists()
    target = unpack_zip(archive, archive.with_suffix(""))
    if not was_there:
        _log.info("%s is extracted to %s", archive, target)
    return target


def _download(slug: str) -> Path:
    try:
        kagglehub = import_module("kagglehub")
    except ImportError as error:
        raise ValueError("data.slug downloads by kagglehub; pip install 'unmask[kaggle]', or set data.root") from error
    return Path(kagglehub.dataset_download(slug))
