"""Which images lie below a folder: found by a walk, or read from the cache of the last one."""

import hashlib
import json
import logging
import os
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unmask.atomic_write import atomic_write
from unmask.data.files.paths import PathList

Subfolder = tuple[str, ...]
"""The names of the folders that lead from the folder searched to an image."""

_FORMAT = 2  # of the cached listings
_CACHED_FROM = 100_000  # images; fewer are found in a moment
_SETTLED_NS = 2 * 10**9  # a folder changed more recently may change again without its time showing it

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoundImages:
    """The images below a folder, in the order of their names.

    Attributes:
        subfolders: Where images lie, each named once.
        subfolder_of: Which of the subfolders each image lies in.
        ignored: How many other files there are, by the ending of their names.
    """

    folder: Path
    paths: PathList
    subfolders: tuple[Subfolder, ...]
    subfolder_of: Int[Tensor, " n"]
    ignored: Counter[str]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted({subfolder[0] for subfolder in self.subfolders if subfolder}))

    @property
    def class_folders(self) -> tuple[str, ...]:
        """The folders, where there are several and each image lies in exactly one; else none."""
        lie_in_one = all(len(subfolder) == 1 for subfolder in self.subfolders)
        return self.classes if len(self.classes) > 1 and lie_in_one else ()

    def labels(self, classes: Sequence[str]) -> Int[Tensor, " n"]:
        """The number of each image's first folder in `classes`, which has them all."""
        numbers = {name: number for number, name in enumerate(classes)}
        return torch.tensor([numbers[subfolder[0]] for subfolder in self.subfolders])[self.subfolder_of]


def find_images(folder: Path, suffixes: frozenset[str]) -> FoundImages:
    """Finds the files named like images at any depth.

    A listing of 100,000 images or more is cached in `$XDG_CACHE_HOME/unmask/listings` (by default below
    `~/.cache`). It is used again only if every folder it was made from still has the inode and the times of change it
    had, which file systems renew whenever a name is added, removed or replaced; otherwise, or if any folder had changed
    within the two seconds before, the folder is walked again. What is *in* the files is read every time. Removing a
    cached listing costs only time.

    Raises:
        ValueError: A folder cannot be read or is named like an image, a link is broken or leads back to a folder above
            it.
    """
    folder = folder.absolute()
    cached = _cache_file(folder, suffixes)
    found = _load(cached, folder)
    if found is not None:
        _log.info("%d images below %s, as cached in %s", len(found.paths), folder, cached)
        return found
    began = time.time_ns()
    scan = _Scan(suffixes)
    paths = PathList(scan.walk(str(folder), (), frozenset()))
    found = FoundImages(
        folder=folder,
        paths=paths,
        subfolders=tuple(scan.subfolders),
        subfolder_of=torch.tensor(scan.subfolder_of, dtype=torch.int32),
        ignored=scan.ignored,
    )
    is_settled = all(max(times[2:]) < began - _SETTLED_NS for times in scan.visited.values())
    if len(paths) >= _CACHED_FROM and is_settled:
        _save(cached, found, scan.visited)
    return found


def list_visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder in the order of their names, without hidden ones and `__MACOSX`."""
    try:
        with os.scandir(folder) as listing:
            entries = [entry for entry in listing if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    except OSError as error:
        raise ValueError(f"cannot read the folder {folder} ({error.strerror})") from error
    return sorted(entries, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; raises a ValueError where a link is broken."""
    if entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110 (a tenth of Path's time, for each of millions)
        raise ValueError(f"broken link {entry.path} -> {Path(entry.path).readlink()}; repair or remove it")
    return entry.is_dir()


class _Scan:
    """One walk through a folder, and what it found beside the images."""

    def __init__(self, suffixes: frozenset[str]) -> None:
        self.suffixes = suffixes
        self.subfolders: dict[Subfolder, int] = {}
        self.subfolder_of: list[int] = []
        self.ignored: Counter[str] = Counter()
        self.visited: dict[str, tuple[int, ...]] = {}

    def walk(self, folder: str, subfolder: Subfolder, above: frozenset[tuple[int, ...]]) -> Iterator[str]:
        """Yields each image; counts the other files by the ending of their names."""
        self.visited[folder] = identity = _identity(folder)  # before the listing, so that no change is missed
        if identity[:2] in above:
            raise ValueError(f"symlink cycle: {folder} leads back to a folder it lies in; remove the link")
        for entry in list_visible(folder):
            _, dot, suffix = entry.name.lower().rpartition(".")
            if is_folder(entry):
                if dot and suffix in self.suffixes:
                    raise ValueError(f"{entry.path} is a folder with the name of an image; rename or remove it")
                yield from self.walk(entry.path, (*subfolder, entry.name), above | {identity[:2]})
            elif dot and suffix in self.suffixes:
                self.subfolder_of.append(self.subfolders.setdefault(subfolder, len(self.subfolders)))
                yield entry.path
            else:
                self.ignored[f".{suffix}" if dot else "without ending"] += 1


def _identity(folder: str) -> tuple[int, ...]:
    """Changes with every name added to, removed from or replaced in a folder. Users cannot set the last number."""
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _cache_file(folder: Path, suffixes: frozenset[str]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    asked = json.dumps([_FORMAT, str(folder), sorted(suffixes)])
    return cache / "unmask" / "listings" / f"{hashlib.sha256(asked.encode(errors='surrogateescape')).hexdigest()}.npz"


def _save(file: Path, found: FoundImages, visited: dict[str, tuple[int, ...]]) -> None:
    """Writes a listing, all of it or nothing; where that cannot be done, the next start takes longer."""
    notes = {"visited": visited, "subfolders": found.subfolders, "ignored": found.ignored}
    try:
        with atomic_write(file) as partial:
            np.savez(
                partial,
                block=found.paths.block.numpy(),
                ends=found.paths.ends.numpy(),
                subfolder_of=found.subfolder_of.numpy(),
                notes=np.frombuffer(json.dumps(notes).encode(), dtype=np.uint8),
            )
    except OSError as error:
        _log.info("the listing of %s is not cached: %s (%s)", found.folder, file, error.strerror)
    else:
        _log.info("the listing of %s is cached in %s", found.folder, file)


def _load(file: Path, folder: Path) -> FoundImages | None:
    """Reads a cached listing; None if there is none, it is damaged, or a folder has changed since."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            notes: dict[str, Any] = json.loads(stored["notes"].tobytes())
            if any(_identity(visited) != tuple(times) for visited, times in notes["visited"].items()):
                return None
            block, ends, subfolder_of = (torch.from_numpy(stored[name]) for name in ("block", "ends", "subfolder_of"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return FoundImages(
        folder=folder,
        paths=PathList.from_block(block, torch.cat([ends.new_zeros(1), ends[:-1]]), ends),
        subfolders=tuple(tuple(subfolder) for subfolder in notes["subfolders"]),
        subfolder_of=subfolder_of,
        ignored=Counter(notes["ignored"]),
    )
