"""WebDataset shards: tar archives of images and their labels, on disk or on the web."""

import io
import math
import mmap
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from unmask.data.auto_split import AutoSplitDataModule
from unmask.data.dataset import UNLABELED, ImageCrop, ImageDataset, RawBatch, SampleKey, gather_images, key_columns
from unmask.data.files.decoding import ImageDecoder
from unmask.data.files.download import is_url
from unmask.data.files.pixels import Pixels
from unmask.data.files.shard_list import Shard, expand_patterns, find_shards, read_record
from unmask.data.files.splits import Split
from unmask.data.files.tar_index import LabelSource, ShardIndex, read_index
from unmask.data.labels import number_labels

_NO_LABEL = "-1"
_MAPPED_SHARDS = 512  # at a time and process, each of which takes a file descriptor
_DOWNLOADS = 4  # at a time
_HEADER = 512  # bytes of a member's header
_NPY = b"\x93NUMPY\x01\x00"
_NPY_SIZE = slice(8, 10)  # where a .npy file of format 1.0 says how long its header is


class ByteRanges(NamedTuple):
    """Where images lie: number of the shard, first byte and number of bytes in it."""

    shard: Int[Tensor, " n"]
    offset: Int[Tensor, " n"]
    size: Int[Tensor, " n"]


class ShardDataset(ImageDataset):
    """Images inside tar shards, read one by one in any order by the loader's workers.

    Args:
        shards: Paths.
        ranges: Of the images in them.
        labels, class_names: See `ImageDataset`.
        decoder: Reads an image.
    """

    def __init__(
        self,
        shards: Sequence[str],
        ranges: ByteRanges,
        labels: Int[Tensor, " n"],
        class_names: Sequence[str],
        *,
        decoder: ImageDecoder,
    ) -> None:
        self.shards = tuple(shards)
        self.ranges = ranges
        self.labels = labels
        self.class_names = tuple(class_names)
        self.decoder = decoder

    def identity(self) -> Iterator[bytes]:
        """Yields the shards' names and where in them the images lie, so that a set may be moved."""
        yield "\n".join(Path(shard).name for shard in self.shards).encode()
        yield from (column.numpy().tobytes() for column in self.ranges)

    def read(self, keys: Sequence[SampleKey], crop: ImageCrop) -> RawBatch:
        images = gather_images([crop(self._decode(key.index), key) for key in keys])
        epoch, index = key_columns(keys)
        return RawBatch(images, self.labels[index], index, epoch)

    def stored(self, index: int) -> tuple[bytes, str]:
        shard, offset, size = (int(column[index]) for column in self.ranges)
        member = _member(self.shards[shard], offset)
        return _view(self.shards[shard], offset, size).tobytes(), member.rpartition(".")[2].lower()

    def name_of(self, index: int) -> str:
        shard, offset, _ = (int(column[index]) for column in self.ranges)
        return f"{_member(self.shards[shard], offset)} in shard {self.shards[shard]}"

    def subset(self, indices: Int[Tensor, " m"]) -> "ShardDataset":
        ranges = ByteRanges(*(column[indices] for column in self.ranges))
        return ShardDataset(self.shards, ranges, self.labels[indices], self.class_names, decoder=self.decoder)

    def _decode(self, index: int) -> Pixels:
        shard, offset, size = (int(column[index]) for column in self.ranges)
        path = self.shards[shard]
        content = _view(path, offset, size)
        if content[: len(_NPY)].tobytes() == _NPY and self.decoder.pixel_scale is None:
            pixels = _view_pixels(content, self.decoder.channels)
            if pixels is not None:
                return pixels
        return self.decoder.decode(content.tobytes(), self.name_of(index))


class Shards(AutoSplitDataModule):
    """Tar shards as WebDataset writes and reads them: members of one key, up to the first dot, are one sample.

    The image is a member named like one (`jpg`, `png`, `webp`, ...) or `npy`, the pixels themselves as height x width
    x 3 bytes; the label is a member `cls`, a whole number or a name, or a field of a member `json`; -1 is no label.
    Shards are plain tar: their samples are listed once, kept in the cache, and then read in any order, so shuffling,
    sharing among devices and workers, and resuming are as exact as for files. Shards given by URL are downloaded once.

    Splits: those a packed data set's `dataset.json` names; or the patterns `train`, `val` and `test`; or, in a folder,
    shards called `train-*.tar`, `val-*.tar`, `test-*.tar`, or in folders of these names.

    Args:
        root: Folder or URL of a packed data set, folder of shards, or what relative patterns start from.
        train, val, test: Patterns of shards, as `expand_patterns` takes them.
        image_key, label_key, json_field: See `LabelSource`.
        shared: See `AutoSplitDataModule`; downloaded shards and lists of samples are kept in `cache_dir`.

    Raises:
        ValueError: Neither `root` nor `train` is given; when a split is read, a shard is missing or damaged, or samples
            and labels do not go together (`read_index`).
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        train: str | Sequence[str] | None = None,
        val: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        image_key: str | None = None,
        label_key: str = "auto",
        json_field: str = "label",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        named: dict[Split, str | Sequence[str] | None] = {"train": train, "val": val, "test": test}
        self.patterns = {split: patterns for split, patterns in named.items() if patterns is not None}
        if root is None and train is None:
            raise ValueError("data=shards takes data.root, a folder or URL of shards, or data.train, a pattern of them")
        if self.patterns and train is None:
            raise ValueError("data.val and data.test need data.train beside them, the pattern of the training shards")
        if root is not None and not is_url(root) and not Path(root).expanduser().is_dir():
            raise ValueError(f"data.root={root} is not a folder (seen from {Path.cwd()}); name a folder of shards")
        self.root = root if root is None or is_url(root) else str(Path(root).expanduser())
        self.source = LabelSource(image_key, label_key, json_field)

    def origin(self, split: Split) -> str | None:
        shards = self._shards.get(split)
        if shards is None:
            return None
        return shards[0].location if len(shards) == 1 else f"{shards[0].location} and {len(shards) - 1} more shards"

    def how_to_add(self, split: Split) -> str:
        return f"name its shards by data.{split}=PATTERN"

    def read_split(self, split: Split) -> ShardDataset:
        paths = self._fetch(self._shards[split])
        indices = [read_index(path, self.source, self.cache / "shards") for path in paths]
        _require_labels_alike(paths, indices)
        counts = torch.tensor([len(index.offset) for index in indices])
        written = np.concatenate([index.label for index in indices]).tolist()
        labels, classes = self._number(written, split)
        return ShardDataset(
            [str(path) for path in paths],
            ByteRanges(
                torch.repeat_interleave(torch.arange(len(paths)), counts),
                torch.from_numpy(np.concatenate([index.offset for index in indices])),
                torch.from_numpy(np.concatenate([index.size for index in indices])),
            ),
            labels,
            classes,
            decoder=self.decoder,
        )

    @cached_property
    def _record(self) -> dict[str, Any] | None:
        return read_record(self.root, self.cache) if self.root is not None and not self.patterns else None

    @cached_property
    def _shards(self) -> dict[Split, list[Shard]]:
        if self.patterns:
            return {
                split: expand_patterns(patterns, self.root, key=f"data.{split}")
                for split, patterns in self.patterns.items()
            }
        if self._record is not None:
            return dict(self._record["splits"])
        return find_shards(Path(str(self.root)))

    def _fetch(self, shards: Sequence[Shard]) -> list[Path]:
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            return list(pool.map(lambda shard: shard.fetch(self.cache), shards))

    def _number(self, written: list[str], split: Split) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
        source = str(self.origin(split))
        labels = [None if label in ("", _NO_LABEL) else label for label in written]
        if self._record is not None:
            return _number_by_record(labels, self._record["class_names"], source)
        named = [label for label in labels if label is not None]
        numbers = [label.isdecimal() for label in named]
        if any(numbers) and not all(numbers):
            raise ValueError(
                f"{source}: some labels are numbers, such as {named[numbers.index(True)]}, and some names, such as "
                f"{named[numbers.index(False)]!r}; write all of them alike"
            )
        classes = () if split == "train" else self.training_images.class_names
        return number_labels(labels, classes, source=source)


def _number_by_record(
    labels: list[str | None], class_names: Sequence[str], source: str
) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    numbers = [UNLABELED if label is None else int(label) for label in labels]
    if numbers and max(numbers) >= len(class_names):
        raise ValueError(f"{source} has the label {max(numbers)}, its record names {len(class_names)} classes")
    labeled = any(label is not None for label in labels)
    return torch.tensor(numbers), tuple(class_names) if labeled else ()


def _require_labels_alike(paths: Sequence[Path], indices: Sequence[ShardIndex]) -> None:
    with_labels = [path for path, index in zip(paths, indices, strict=True) if index.has_labels]
    without = [path for path, index in zip(paths, indices, strict=True) if not index.has_labels]
    if with_labels and without:
        raise ValueError(
            f"{with_labels[0]} has labels and {without[0]} has none; give all shards of a split labels, "
            "or set data.label_key=none"
        )


def _view_pixels(content: UInt8[np.ndarray, " n"], channels: int) -> Pixels | None:
    """The pixels in a .npy file, without a copy of them; None where it holds anything else than an image of bytes."""
    start = _NPY_SIZE.stop + int.from_bytes(content[_NPY_SIZE].tobytes(), "little")
    shape = _image_shape(content[:start].tobytes())
    if shape is None or shape[2] != channels or content.size != start + math.prod(shape):
        return None
    return torch.from_numpy(content[start:].reshape(shape)).permute(2, 0, 1)


@lru_cache(maxsize=4096)
def _image_shape(header: bytes) -> tuple[int, ...] | None:
    try:
        shape, is_transposed, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header[len(_NPY) :]))
    except ValueError:
        return None
    return shape if len(shape) == 3 and min(shape) > 0 and dtype == np.uint8 and not is_transposed else None


def _member(path: str, offset: int) -> str:
    """The name of the member whose content begins at `offset`."""
    header = _view(path, offset - _HEADER, _HEADER)
    return tarfile.TarInfo.frombuf(header.tobytes(), "utf-8", "surrogateescape").name


def _view(path: str, offset: int, size: int) -> UInt8[np.ndarray, " size"]:
    mapped = _map(path)
    if offset + size > len(mapped):
        raise ValueError(f"shard {path} is shorter than when it was listed; do not change shards while they are read")
    return np.frombuffer(mapped, np.uint8, size, offset)


@lru_cache(maxsize=_MAPPED_SHARDS)
def _map(path: str) -> mmap.mmap:
    """Maps a shard into memory, which workers may share with the process they come from."""
    with Path(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch warns of arrays it must not write to
