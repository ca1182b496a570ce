"""ImageNet-1k's official archives, brought into folders once, and the devkit's `meta.bin`."""

import logging
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from filelock import FileLock
from torchvision.datasets import imagenet as torchvision_imagenet

_META = torchvision_imagenet.META_FILE
_log = logging.getLogger(__name__)


class DevkitMeta(NamedTuple):
    """What torchvision and lightning-bolts alike keep of the devkit in `meta.bin`.

    Attributes:
        classes: The synonyms of each WordNet identifier, `{"n01440764": ("tench", "Tinca tinca"), ...}`.
        val_wnids: The class of each validation image, in the order of the images' names.
    """

    classes: dict[str, tuple[str, ...]]
    val_wnids: list[str]


def meta_folder(root: Path) -> Path | None:
    """Where `meta.bin` lies: torchvision puts it into the root, lightning-bolts into the splits."""
    return next((folder for folder in (root, root / "train", root / "val") if (folder / _META).is_file()), None)


def read_meta(root: Path) -> DevkitMeta | None:
    """Reads `meta.bin` from `meta_folder`; None without one.

    Raises:
        ValueError: The file holds anything but plain containers of the devkit's content.
    """
    folder = meta_folder(root)
    if folder is None:
        return None
    try:
        classes, val_wnids = torch.load(folder / _META, weights_only=True)
        return DevkitMeta({str(wnid): tuple(names) for wnid, names in classes.items()}, list(val_wnids))
    except (UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / _META} is not the meta.bin that torchvision or lightning-bolts write; remove it "
            "(data=imagenet writes it from ILSVRC2012_devkit_t12.tar.gz)"
        ) from error


def extract_archives(root: Path) -> None:
    """Extracts `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar` in a folder to `train/` and `val/` beside them.

    torchvision does it, after it has compared the archives' MD5 with the official ones; it also writes `meta.bin` from
    the devkit. A split that is a folder already is left alone. A split appears under its name only when all of it is
    there: an interrupted extraction is begun again. Of several processes one extracts and the others wait.

    Raises:
        ValueError: An archive is not the official one, the devkit is missing, or the disk is too full.
    """
    if not _unextracted(root):
        return
    try:
        with FileLock(root / ".extraction.lock"):
            _extract_splits(root, _unextracted(root))  # looked up again: another process may have been faster
    except OSError as error:
        raise ValueError(f"the archives cannot be extracted into {root} ({error.strerror or error})") from error


def _extract_splits(root: Path, splits: list[str]) -> None:
    _require_room(root, splits)
    meta = (read_meta(root) or _write_meta(root)) if "val" in splits else None
    if "train" in splits:
        _extract(root, "train", torchvision_imagenet.parse_train_archive)
    if meta is not None:
        _extract(root, "val", partial(torchvision_imagenet.parse_val_archive, wnids=meta.val_wnids))


def _unextracted(root: Path) -> list[str]:
    """The splits of which there is the archive and not the folder."""
    return [split for split in ("train", "val") if _archive(root, split).is_file() and not (root / split).is_dir()]


def _archive(root: Path, part: str) -> Path:
    return root / str(torchvision_imagenet.ARCHIVE_META[part][0])


def _require_room(root: Path, splits: list[str]) -> None:
    needed, free = sum(_archive(root, split).stat().st_size for split in splits), shutil.disk_usage(root).free
    if needed > free:
        raise ValueError(
            f"extracting {' and '.join(_archive(root, split).name for split in splits)} needs {needed / 2**30:.1f} GiB "
            f"at {root}, which has {free / 2**30:.1f} free; nothing was extracted"
        )


def _extract(root: Path, split: str, parse: Callable[..., None]) -> None:
    unfinished = root / f".{split}.partial"
    shutil.rmtree(unfinished, ignore_errors=True)  # of an interrupted extraction
    _log.info("extracting %s to %s; ImageNet's takes from minutes to hours", _archive(root, split), root / split)
    try:
        parse(str(root), folder=unfinished.name)
    except RuntimeError as error:  # torchvision's word for an archive that differs from the official one
        raise ValueError(f"{_archive(root, split)} is not the official archive (MD5 differs); download it again") from (
            error
        )
    unfinished.rename(root / split)


def _write_meta(root: Path) -> DevkitMeta | None:
    """Has torchvision write `meta.bin`, which appears only whole, and reads it."""
    devkit = _archive(root, "devkit")
    if not devkit.is_file():
        raise ValueError(
            f"{root} has {_archive(root, 'val').name}, which does not contain the classes of its images; "
            f"put {devkit.name} beside it"
        )
    with tempfile.TemporaryDirectory(dir=root, prefix=".devkit-") as folder:
        (Path(folder) / devkit.name).symlink_to(devkit.resolve())
        try:
            torchvision_imagenet.parse_devkit_archive(folder)
        except RuntimeError as error:
            raise ValueError(f"{devkit} is not the official archive (MD5 differs); download it again") from error
        (Path(folder) / _META).replace(root / _META)
    return read_meta(root)
