"""Images listed in text files, one line each."""

import functools
import logging
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unmask.data.auto_split import AutoSplitDataModule
from unmask.data.dataset import ImageFileDataset
from unmask.data.files.decoding import ARRAY_SUFFIXES, IMAGE_SUFFIXES
from unmask.data.files.paths import PathList
from unmask.data.files.splits import Split
from unmask.data.labels import number_labels

_log = logging.getLogger(__name__)
_COMMENT = "#"
_NAME_ENDINGS = IMAGE_SUFFIXES | ARRAY_SUFFIXES


class ListedImage(NamedTuple):
    """What a line says."""

    number: int  # of the line, from 1
    path: str
    label: str | None


class FileList(AutoSplitDataModule):
    """Images named in text files, a line `path, label` each.

    The label stands behind the last comma and may be left out: what follows the last comma is no label if it ends like
    the name of an image. It is a class number from 0, or a name. Blank lines and lines that begin with `#` are
    skipped; spaces, commas and any script in paths survive. Files are UTF-8, with or without a byte-order mark.

    Args:
        train: The list of training images.
        val, test: The other lists; None holds the split out from the training images.
        root: Folder that relative paths start from, and that no path may leave; None: the folder of each list, which
            relative paths may not leave, while absolute ones are taken as they are.
        shared: See `AutoSplitDataModule`.

    Raises:
        ValueError: A list is missing, empty or not UTF-8, a line names no file or one outside `root`, or a label is
            unknown; each with the list and the line.
    """

    def __init__(
        self, *, train: str, val: str | None = None, test: str | None = None, root: str | None = None, **shared: Any
    ) -> None:
        super().__init__(**shared)
        named: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.lists = {split: Path(path).expanduser() for split, path in named.items() if path is not None}
        self.root = None if root is None else Path(root).expanduser()
        for split, path in self.lists.items():
            if not path.is_file():
                raise ValueError(f"data.{split}={path} is not a file (seen from {Path.cwd()}); name a list of images")
        if self.root is not None and not self.root.is_dir():
            raise ValueError(f"data.root={root} is not a folder (seen from {Path.cwd()})")

    def origin(self, split: Split) -> str | None:
        return str(self.lists[split]) if split in self.lists else None

    def how_to_add(self, split: Split) -> str:
        return f"name a list of its own by data.{split}=FILE"

    def read_split(self, split: Split) -> ImageFileDataset:
        path = self.lists[split]
        written: list[str | None] = []
        hashes, lines = array("q"), array("q")
        paths = PathList(self._locate_lines(path, written, hashes, lines))
        if not len(paths):
            raise ValueError(f"{path} lists no image")
        repeated = len(paths) - len(np.unique(hashes))
        if repeated:
            _log.warning("%s names %d image(s) more than once; each mention is a sample", path, repeated)
        classes = () if split == "train" else self.training_images.class_names
        labels, classes = number_labels(written, classes, source=str(path), lines=lines)
        return ImageFileDataset(paths, labels, classes, decode=self.decoder.read)

    def _locate_lines(
        self, path: Path, written: list[str | None], hashes: "array[int]", lines: "array[int]"
    ) -> Iterator[str]:
        """Yields each line's file; appends its label, equal ones as one object, its hash and number: lists are long."""
        seen: dict[str | None, str | None] = {}
        base = _BaseFolder(path, self.root)
        for line in self.read_list(path):
            located = base.locate(line)
            written.append(seen.setdefault(line.label, line.label))
            hashes.append(hash(located))
            lines.append(line.number)
            yield located

    def read_list(self, path: Path) -> Iterator[ListedImage]:
        """Reads what each line names, before any file is looked for."""
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                text = decode_line(raw, path, number).strip()
                if text and not text.startswith(_COMMENT):
                    yield _parse(number, text)


def decode_line(raw: bytes, path: Path, number: int) -> str:
    """Reads one line as UTF-8, a byte-order mark before the first left out."""
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason}); save the list as UTF-8") from error


def _parse(number: int, text: str) -> ListedImage:
    path, comma, label = text.rpartition(",")
    _, dot, suffix = label.strip().lower().rpartition(".")
    if not comma or (dot and suffix in _NAME_ENDINGS):
        return ListedImage(number, text, None)
    return ListedImage(number, path.strip(), label.strip() or None)


class _BaseFolder:
    """Where the paths of a list start from; plain strings, since Path would take ten times as long on millions."""

    def __init__(self, source: Path, root: Path | None) -> None:
        self.source, self.root = source, root
        self.base = str(source.parent if root is None else root)
        self.real_root = None if root is None else os.path.join(os.path.realpath(root), "")
        self.real_folder = functools.cache(os.path.realpath)

    def locate(self, line: ListedImage) -> str:
        path = os.path.join(self.base, line.path)  # an absolute path stands for itself
        if self.real_root is None:
            self._require_below_list(line)
        elif not self._real(path).startswith(self.real_root):
            raise ValueError(
                f"{self.source}:{line.number}: {line.path} leads out of data.root={self.root}; "
                "set data.root to a folder that holds all images"
            )
        if not os.path.isfile(path):
            raise ValueError(f"{self.source}:{line.number}: no file {path}")
        return path

    def _require_below_list(self, line: ListedImage) -> None:
        if ".." in line.path and os.path.normpath(line.path).startswith(os.pardir):
            raise ValueError(
                f"{self.source}:{line.number}: {line.path} leads out of the list's folder; set data.root to a folder "
                "that holds all images"
            )

    def _real(self, path: str) -> str:
        """What `realpath` gives, looking at each folder once."""
        folder, name = os.path.split(path)
        real = os.path.join(self.real_folder(folder), name)
        return os.path.realpath(real) if name in ("", ".", "..") or os.path.islink(real) else real
