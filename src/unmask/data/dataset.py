"""Image data sets as a loader reads them: by (epoch, index), so that every draw is keyed."""

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float32, Int, Shaped, UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate, get_worker_info

from unmask.data.files.opening import open_file
from unmask.data.files.paths import PathList
from unmask.data.files.pixels import OpenFile, Pixels

UNLABELED = -1
FILLER_EPOCH = -1  # of a sample that only keeps the batches of all devices equally many
IDLE = -1  # of a worker that reads no image

_FINGERPRINT_BYTES = 8
_IMAGES_HASHED_AT_ONCE = 4096


class SampleKey(NamedTuple):
    """Which sample a loader asks for, and in which epoch."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which no one needs


def key_columns(keys: Sequence[SampleKey]) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
    """Epochs and numbers of samples; torch reads two plain lists several times as fast as a list of pairs."""
    epochs, indices = zip(*keys, strict=True)
    return torch.tensor(epochs), torch.tensor(indices)


def gather_images(images: list[Pixels]) -> Shaped[Tensor, "b channels height width"]:
    """Stacks images; in a worker straight into the shared memory they leave it by, not by way of a copy."""
    stacked: Tensor = default_collate(images)
    return stacked


class BadImage(NamedTuple):
    """An image that was to be trained on and could not be read."""

    epoch: int
    name: str  # as messages call it: the path of a file
    reason: str


class RawBatch(NamedTuple):
    """Images as stored or cropped, before they are normalized on the device."""

    image: UInt8[Tensor, "b channels height width"] | Float32[Tensor, "b channels height width"]  # as `Pixels`
    label: Int[Tensor, " b"]
    index: Int[Tensor, " b"]  # type: ignore[assignment]
    epoch: Int[Tensor, " b"]
    crop: Int[Tensor, "b 5"] | None = None  # left to the device: top, left, height, width, and 1 where mirrored
    bad: Sequence[BadImage] = ()  # for which others stand in the batch


ImageCrop = Callable[[Pixels, SampleKey], Pixels]


class LoaderCrop(ABC):
    """Brings one image of any size to the size a loader serves."""

    @abstractmethod
    def __call__(self, image: Pixels, key: SampleKey) -> Pixels: ...

    def prepared(self, keys: Sequence[SampleKey]) -> ImageCrop:
        """The same crop, with what it needs for a whole batch looked up at once."""
        return self


class ImageDataset(ABC):
    """A split of a data set.

    Attributes:
        labels: Class of each image, -1 where there is none.
        class_names: Names in the order of the labels; empty without labels.
    """

    labels: Int[Tensor, " n"]
    class_names: tuple[str, ...]
    is_streamed: ClassVar[bool] = False  # then an epoch is read in the stream's own order

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_labeled(self) -> bool:
        return len(self) > 0 and bool((self.labels != UNLABELED).all())

    @cached_property
    def fingerprint(self) -> str:
        """Hashes what tells this split from another: labels, names of classes and what `identity` adds, in order."""
        digest = hashlib.blake2b(digest_size=_FINGERPRINT_BYTES)
        for part in ("\n".join(self.class_names).encode(), self.labels.long().cpu().numpy().tobytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
        for part in self.identity():
            digest.update(part)
        return digest.hexdigest()

    def identity(self) -> Iterator[bytes]:
        """Yields what stands for the images in the fingerprint; nothing where that would take reading them all."""
        yield from ()

    def locate(self, position: int) -> str | None:
        """Names the file of an image; None where it has none of its own."""
        return None

    @abstractmethod
    def read(self, keys: Sequence[SampleKey], crop: ImageCrop) -> RawBatch:
        """Reads the images of one batch, brought to one size by `crop` unless that is left to the device."""

    def wrap_sampler(self, batches: Sampler[list[SampleKey]], *, seed: int | None) -> Sampler[list[SampleKey]]:
        """What a loader is to hand to its workers: the keys alone, where workers can read samples in any order.

        Args:
            batches: The keys of each batch.
            seed: Key of the order of streamed samples; None keeps the stored order.
        """
        del seed
        return batches

    def stored(self, index: int) -> tuple[bytes, str] | None:
        """The file of an image, untouched, and the ending of its name; None where there is no file of its own."""
        del index
        return None

    def open(self, index: int) -> OpenFile | None:
        """Opens the file of an image; None where there is no file of its own."""
        stored = self.stored(index)
        return None if stored is None else io.BytesIO(stored[0])

    def name_of(self, index: int) -> str:
        """What messages call an image."""
        return f"image {index}"

    @abstractmethod
    def subset(self, indices: Int[Tensor, " m"]) -> "ImageDataset":
        """Keeps the samples at `indices`, renumbered from 0."""


class InMemoryDataset(ImageDataset):
    """Small images of one size, kept as one uint8 tensor."""

    def __init__(
        self, images: UInt8[Tensor, "n 3 height width"], labels: Int[Tensor, " n"], class_names: Sequence[str]
    ) -> None:
        self.images = images
        self.labels = labels
        self.class_names = tuple(class_names)

    def identity(self) -> Iterator[bytes]:
        """Yields every pixel."""
        yield from (image.contiguous().numpy().tobytes() for image in self.images.split(_IMAGES_HASHED_AT_ONCE))

    def read(self, keys: Sequence[SampleKey], crop: ImageCrop) -> RawBatch:
        epoch, index = key_columns(keys)
        images = self.images.index_select(0, index)  # a third of the time of self.images[index]
        return RawBatch(images, self.labels[index], index, epoch)

    def subset(self, indices: Int[Tensor, " m"]) -> "InMemoryDataset":
        return InMemoryDataset(self.images[indices], self.labels[indices], self.class_names)


class ImageFileDataset(ImageDataset):
    """Images of any size in files, decoded and cropped one by one in the loader's workers.

    Args:
        paths: One file an image.
        labels, class_names: See `ImageDataset`.
        decode: Reads a file; raises a ValueError that names it.
    """

    def __init__(
        self,
        paths: PathList,
        labels: Int[Tensor, " n"],
        class_names: Sequence[str],
        *,
        decode: Callable[[str], Pixels],
    ) -> None:
        self.paths = paths
        self.labels = labels
        self.class_names = tuple(class_names)
        self.decode = decode

    def identity(self) -> Iterator[bytes]:
        """Yields each file's size and its path below the folder all share, so that a set may be moved."""
        folder = os.path.commonpath([Path(path).parent for path in self.paths]) if self.paths else ""
        for path in self.paths:
            yield f"{Path(path).stat().st_size} {os.path.relpath(path, folder)}\n".encode()

    def locate(self, position: int) -> str:
        return str(Path(self.paths[position]).absolute())

    def read(self, keys: Sequence[SampleKey], crop: ImageCrop) -> RawBatch:
        images = gather_images([crop(self.decode(self.paths[key.index]), key) for key in keys])
        epoch, index = key_columns(keys)
        return RawBatch(images, self.labels[index], index, epoch)

    def stored(self, index: int) -> tuple[bytes, str]:
        path = Path(self.paths[index])
        with open_file(path) as file:
            return file.read(), path.suffix.lower().lstrip(".")

    def open(self, index: int) -> OpenFile:
        return open_file(self.paths[index])

    def name_of(self, index: int) -> str:
        return self.paths[index]

    def subset(self, indices: Int[Tensor, " m"]) -> "ImageFileDataset":
        return ImageFileDataset(self.paths.take(indices), self.labels[indices], self.class_names, decode=self.decode)


class LoaderDataset(Dataset[RawBatch]):
    """An image data set with the crop a loader wants; read a batch at a time, so a loader needs no collation.

    Attributes:
        progress: In memory that workers share, for each of them its process number and the index of the image it is
            reading, or `IDLE`.
    """

    progress: Int[Tensor, "workers 2"] | None = None

    def __init__(self, dataset: ImageDataset, crop: LoaderCrop) -> None:
        self.dataset = dataset
        self.crop = crop

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        crop, worker = self.crop.prepared(keys), get_worker_info()
        if self.progress is not None and worker is not None:
            crop = _noting(crop, keys, self.progress.numpy()[worker.id, 1:])
        return self.dataset.read(keys, crop)


def _noting(crop: ImageCrop, keys: Sequence[SampleKey], place: Any) -> ImageCrop:
    """The same crop, which writes to `place` which image is read next: images are read in the order of their keys."""
    following = iter(keys)

    def note_next() -> None:
        key = next(following, None)
        place[0] = IDLE if key is None else key.index

    def noted(image: Pixels, key: SampleKey) -> Pixels:
        cropped = crop(image, key)
        note_next()
        return cropped

    note_next()
    return noted
