"""What is in a set of images: formats, sizes, damage, duplicates, statistics."""

import hashlib
import math
import os
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unmask.data.augmentation.crops import CenterCrop
from unmask.data.augmentation.transforms import resize_and_center_crop
from unmask.data.datamodule import ImageDataModule
from unmask.data.dataset import ImageDataset, SampleKey
from unmask.data.files.decoding import BadImageError, ImageDecoder
from unmask.data.files.splits import Split
from unmask.data.headers import open_with_header
from unmask.data.statistics import PixelStatistics, measure_pixels
from unmask.randomness import keyed_permutation, stream_key

_CHUNK = 64  # images a worker looks at in a row
_ENDING = 4096  # bytes
_CLOSING_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # what a whole file ends with
_SECONDS_OF_DECODING = 12.0  # of training images
_FRACTION_OF_OTHER_SPLITS = 0.25  # in seconds and images decoded


class ImageFacts(NamedTuple):
    """What the header and the end of one image's file say."""

    kind: str  # such as "JPEG RGB"; empty where it cannot be told
    height: int
    width: int
    size: int  # bytes
    ending: bytes  # hash of the last bytes
    error: str = ""
    is_suspect: bool = False  # the file does not end as its format ends


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found.

    Attributes:
        facts: Of every image of every split, in stored order.
        bad: (name, reason) of each image that cannot be read.
        num_decoded: Images of which every pixel was read.
        duplicates: Groups of (split, index) whose files are equal byte for byte.
        pixels: Statistics of the training images decoded; None where there were none.
    """

    facts: Mapping[Split, Sequence[ImageFacts]]
    bad: Sequence[tuple[str, str]]
    num_decoded: int
    duplicates: Sequence[Sequence[tuple[Split, int]]]
    pixels: PixelStatistics | None

    def num_shared(self, first: Split, second: Split) -> int:
        """Counts the images of `first` that are in `second` too."""
        groups = [[split for split, _ in group] for group in self.duplicates]
        return sum(group.count(first) for group in groups if second in group)

    def num_repeated(self, split: Split) -> int:
        """Counts the images of a split that are copies of an earlier one in it."""
        counts = [sum(where == split for where, _ in group) for group in self.duplicates]
        return sum(count - 1 for count in counts if count > 1)


def inspect_images(data: ImageDataModule, splits: Sequence[Split], *, num_decoded: int) -> Inspection:
    """Reads the header and the end of every file, and all pixels of some.

    Decoded are `num_decoded` training images and a quarter as many of each other split, chosen by a key, as far as 12
    seconds reach, and 3 of each other split; those whose file does not end as its format ends come first. Files of
    equal size and end are compared in full.
    """
    facts: dict[Split, list[ImageFacts]] = {}
    bad: dict[tuple[Split, int], tuple[str, str]] = {}
    readable: list[Tensor] = []
    decoded = 0
    for split in splits:
        dataset = data.dataset(split)
        facts[split] = list(chain.from_iterable(_in_workers(_Scan(dataset, data.decoder), data.num_workers)))
        errors = {index: fact.error for index, fact in enumerate(facts[split]) if fact.error}
        suspects = [index for index, fact in enumerate(facts[split]) if fact.is_suspect]
        fraction = 1.0 if split == "train" else _FRACTION_OF_OTHER_SPLITS
        order = keyed_permutation(stream_key(0, "inspection"), len(dataset))[: int(fraction * num_decoded)].tolist()
        chosen = [index for index in dict.fromkeys([*suspects, *order]) if index not in errors]
        parts = _in_workers(_Decoding(dataset, chosen, data.image_size), data.num_workers)
        for part in _for_some_seconds(parts, fraction * _SECONDS_OF_DECODING):
            errors |= part.errors
            decoded += part.num_decoded
            if split == "train" and part.images is not None:
                readable.append(part.images)
        bad |= {(split, index): (dataset.name_of(index), errors[index]) for index in sorted(errors)}
    return Inspection(
        facts=facts,
        bad=list(dict.fromkeys(bad.values())),
        num_decoded=decoded,
        duplicates=_find_duplicates(data, facts, bad),
        pixels=_measure(readable),
    )


class _Work(Dataset[Any], ABC):
    """What is done with some of the images, a chunk of them at a time, in workers."""

    def __init__(self, dataset: ImageDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / _CHUNK)

    def __getitem__(self, number: int) -> Any:
        return self.work(self.indices[number * _CHUNK : (number + 1) * _CHUNK])

    @abstractmethod
    def work(self, indices: Sequence[int]) -> Any:
        """Does it for one chunk."""


class _Scan(_Work):
    """Reads headers and ends."""

    def __init__(self, dataset: ImageDataset, decoder: ImageDecoder) -> None:
        super().__init__(dataset, range(len(dataset)))
        self.decoder = decoder

    def work(self, indices: Sequence[int]) -> list[ImageFacts]:
        return [self._facts(index) for index in indices]

    def _facts(self, index: int) -> ImageFacts:
        try:
            with open_with_header(self.dataset, index, self.decoder) as opened:
                if opened is None:
                    return self._facts_of_pixels(index)
                file, header = opened
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _ENDING))
                ending = file.read()
        except BadImageError as error:
            return ImageFacts("", 0, 0, 0, b"", error.reason)
        mark = _CLOSING_MARKS.get(header.kind.split()[0], b"")
        return ImageFacts(*header, size, _digest(ending), is_suspect=mark not in ending)

    def _facts_of_pixels(self, index: int) -> ImageFacts:
        pixels = _pixels(self.dataset, index)
        content = pixels.numpy().tobytes()
        height, width = pixels.shape[1:]
        return ImageFacts("pixels in memory", height, width, len(content), _digest(content[-_ENDING:]))


class _Contents(_Work):
    """Hashes whole files."""

    def work(self, indices: Sequence[int]) -> list[bytes]:
        return [self._hash(index) for index in indices]

    def _hash(self, index: int) -> bytes:
        file = self.dataset.open(index)
        if file is None:
            return _digest(_pixels(self.dataset, index).numpy().tobytes())
        with file:
            return _digest(file.read())


class _Decoded(NamedTuple):
    num_decoded: int
    errors: dict[int, str]
    images: Tensor | None  # of one size; None where all are bad


class _Decoding(_Work):
    """Reads all pixels."""

    def __init__(self, dataset: ImageDataset, indices: Sequence[int], size: tuple[int, int]) -> None:
        super().__init__(dataset, indices)
        self.size = size
        self.crop = CenterCrop(size=size, crop_pct=1.0)

    def work(self, indices: Sequence[int]) -> _Decoded:
        errors, images = {}, []
        for index in indices:
            try:
                image = self.dataset.read([SampleKey(0, index)], self.crop).image
                images.append(resize_and_center_crop(image, self.size, 1.0))
            except BadImageError as error:
                errors[index] = error.reason
        return _Decoded(len(indices), errors, torch.cat(images) if images else None)


def _in_workers(work: _Work, num_workers: int) -> Iterator[Any]:
    workers = min(num_workers, len(work) // 2)  # for a few chunks, processes would only cost
    yield from DataLoader(work, batch_size=None, collate_fn=_as_it_is, num_workers=workers)


def _as_it_is(result: Any) -> Any:
    return result


def _for_some_seconds(parts: Iterator[_Decoded], seconds: float) -> Iterator[_Decoded]:
    end = time.monotonic() + seconds
    for part in parts:
        yield part
        if time.monotonic() > end:
            return


def _pixels(dataset: ImageDataset, index: int) -> Tensor:
    pixels: Tensor = dataset.read([SampleKey(0, index)], lambda image, _: image).image[0]
    return pixels.contiguous()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _measure(images: Sequence[Tensor]) -> PixelStatistics | None:
    try:
        return measure_pixels(images)
    except ValueError:  # none, or all of one color
        return None


def _find_duplicates(
    data: ImageDataModule, facts: Mapping[Split, Sequence[ImageFacts]], bad: Container[tuple[Split, int]]
) -> list[list[tuple[Split, int]]]:
    alike: dict[Any, list[tuple[Split, int]]] = defaultdict(list)
    for split, of_split in facts.items():
        for index, fact in enumerate(of_split):
            if (split, index) not in bad:
                alike[fact.size, fact.ending].append((split, index))
    candidates = [place for group in alike.values() if len(group) > 1 for place in group]
    equal: dict[bytes, list[tuple[Split, int]]] = defaultdict(list)
    for split in facts:
        indices = [index for where, index in candidates if where == split]
        hashes = chain.from_iterable(_in_workers(_Contents(data.dataset(split), indices), data.num_workers))
        for index, content in zip(indices, hashes, strict=True):
            equal[content].append((split, index))
    return [group for group in equal.values() if len(group) > 1]
