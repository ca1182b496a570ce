"""Images of any source written as shards."""

import io
import itertools
import json
import logging
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import simplejpeg
import torch
import torchvision.transforms.v2.functional as TF
from jaxtyping import Float64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode

from unmask.data.datamodule import ImageDataModule
from unmask.data.dataset import BadImage, ImageDataset, SampleKey
from unmask.data.files.decoding import BadImageError
from unmask.data.files.pixels import Pixels
from unmask.data.files.shard_list import RECORD_FORMAT, RECORD_NAME
from unmask.data.files.splits import Split

_log = logging.getLogger(__name__)
_FORMATS = ("raw", "jpeg", "keep")


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How images are stored.

    Args:
        format: "raw" writes the pixels as a numpy array of bytes; "jpeg" compresses them; "keep" copies the files.
        size: Short side, in pixels, that larger images are reduced to (bicubic, antialiased); None keeps all pixels.
        jpeg_quality: 1..100.
        images_per_shard: Images a shard holds at most.

    Raises:
        ValueError: A value is out of range, or files are to be both kept and reduced.
    """

    format: str
    size: int | None
    jpeg_quality: int = 95
    images_per_shard: int = 4096

    def __post_init__(self) -> None:
        if self.format not in _FORMATS:
            raise ValueError(f"format must be 'raw', 'jpeg' or 'keep', got {self.format!r}")
        if self.format == "keep" and self.size is not None:
            raise ValueError(
                f"format=keep copies files as they are, size={self.size} reduces images; set size=null, or format=jpeg"
            )
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, or null, got {self.size}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must lie in 1..100, got {self.jpeg_quality}")
        if self.images_per_shard < 1:
            raise ValueError(f"images_per_shard must be at least 1, got {self.images_per_shard}")

    def encode(self, pixels: Pixels) -> tuple[bytes, str]:
        """Turns an image into the content of a file and its ending."""
        if pixels.dtype != torch.uint8:
            raise ValueError(
                f"format={self.format} stores bytes, these images are numbers of finer steps; set format=keep size=null"
            )
        array = np.ascontiguousarray(self._reduce(pixels).permute(1, 2, 0).numpy())
        if self.format == "raw":
            written = io.BytesIO()
            np.lib.format.write_array(written, array, version=(1, 0))
            return written.getvalue(), "npy"
        if array.shape[2] not in (1, 3):
            raise ValueError(f"format=jpeg stores 1 or 3 channels, these images have {array.shape[2]}; set format=raw")
        colors = "RGB" if array.shape[2] == 3 else "GRAY"
        return simplejpeg.encode_jpeg(array, self.jpeg_quality, colors, colorsubsampling="420"), "jpg"

    def _reduce(self, pixels: Pixels) -> Pixels:
        height, width = pixels.shape[1:]
        if self.size is None or min(height, width) <= self.size:
            return pixels
        factor = self.size / min(height, width)
        size = [max(self.size, round(height * factor)), max(self.size, round(width * factor))]
        reduced: Tensor = TF.resize(pixels, size, InterpolationMode.BICUBIC, antialias=True)
        return reduced


class _PackedImage(NamedTuple):
    content: bytes
    ending: str
    moments: Float64[Tensor, "2 channels"]  # mean and mean square of each channel, of values in 0..1


class _ImagesToPack(Dataset[_PackedImage | BadImage]):
    """The images of a split as they are to be stored; encoded in the loader's workers."""

    def __init__(self, dataset: ImageDataset, packing: Packing, *, skips_bad: bool) -> None:
        self.dataset, self.packing, self.skips_bad = dataset, packing, skips_bad

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _PackedImage | BadImage:
        try:
            return self._pack(index)
        except BadImageError as error:
            if not self.skips_bad:
                raise
            return BadImage(0, error.name, error.reason)

    def _pack(self, index: int) -> _PackedImage:
        pixels = self.dataset.read([SampleKey(0, index)], _whole).image[0]  # also where files are kept: can it be read?
        content, ending = self._kept(index) if self.packing.format == "keep" else self.packing.encode(pixels)
        values = pixels.flatten(1).double() / 255.0
        return _PackedImage(content, ending, torch.stack([values.mean(1), values.square().mean(1)]))

    def _kept(self, index: int) -> tuple[bytes, str]:
        stored = self.dataset.stored(index)
        if stored is None:
            raise ValueError("format=keep copies files, and this source has none; set format=raw size=null")
        return stored


class _SplitRecord(NamedTuple):
    images: int
    shards: list[dict[str, Any]]
    moments: Float64[Tensor, "2 channels"]
    left_out: list[BadImage]


def write_packed(
    data: ImageDataModule, out: Path, packing: Packing, splits: Sequence[Split] = ("train", "val", "test")
) -> dict[str, Any]:
    """Writes splits as shards with a record beside them, all of them or nothing.

    Samples keep their order, so that a run on the shards sees what a run on the source sees. Images that cannot be read
    are left out where the source is to skip them (`on_bad_image`), up to its `max_bad_fraction` of each split.

    Args:
        data: The source.
        out: A folder that does not exist yet.
        packing: How images are stored.
        splits: Which to write; "train" among them.

    Returns:
        The record: names of the classes, shards with their sizes, mean and deviation of the training images.

    Raises:
        ValueError: The folder exists or cannot be written, an image cannot be read, or a split is missing.
    """
    if "train" not in splits or not set(splits) <= set(get_args(Split)):
        raise ValueError(f"splits must be some of train, val and test, with train, got {list(splits)}")
    if out.exists():
        raise ValueError(f"out={out} exists already; name a folder that does not")
    everything = {split: data.dataset(split) for split in splits}
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.mkdir(parents=True)
    except FileExistsError:
        raise ValueError(
            f"{partial} exists: another packing to {out} is running, or was killed; remove it if none is running"
        ) from None
    try:
        written = {
            split: _write_split(data, dataset, partial / split, packing) for split, dataset in everything.items()
        }
        record = _describe(data, packing, written)
        (partial / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.rename(out)
    except OSError as error:
        raise ValueError(f"out={out} cannot be written ({error.strerror}); nothing was kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record


def _write_split(data: ImageDataModule, dataset: ImageDataset, prefix: Path, packing: Packing) -> _SplitRecord:
    left_out: list[BadImage] = []
    images = _readable(
        _encoded(data, dataset, packing), left_out, limit=int(data.bad_images.max_fraction * len(dataset))
    )
    shards, moments, count = [], torch.zeros(()), 0
    for number, batch in enumerate(_batches(images, packing.images_per_shard)):
        path = prefix.with_name(f"{prefix.name}-{number:06d}.tar")
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            start = count
            for label, image in batch:
                moments = moments + image.moments
                _add(archive, f"{count:09d}.{image.ending}", image.content)
                if dataset.class_names:
                    _add(archive, f"{count:09d}.cls", str(label).encode())
                count += 1
        shards.append({"name": path.name, "bytes": path.stat().st_size, "images": count - start})
    return _SplitRecord(count, shards, moments / count, left_out)


_Labeled = tuple[int, _PackedImage]


def _encoded(
    data: ImageDataModule, dataset: ImageDataset, packing: Packing
) -> Iterator[tuple[int, _PackedImage | BadImage]]:
    loader = DataLoader(
        _ImagesToPack(dataset, packing, skips_bad=data.bad_images.on_bad_image == "skip"),
        batch_size=None,
        num_workers=data.num_workers,
        collate_fn=_as_fetched,
    )
    yield from zip(dataset.labels.tolist(), loader, strict=True)


def _readable(
    images: Iterator[tuple[int, _PackedImage | BadImage]], left_out: list[BadImage], *, limit: int
) -> Iterator[_Labeled]:
    """Passes on what could be read and notes the rest, which must not be more than `limit`."""
    for label, image in images:
        if isinstance(image, _PackedImage):
            yield label, image
            continue
        left_out.append(image)
        _log.warning("left out: bad image %s: %s", image.name, image.reason)
        if len(left_out) > limit:
            raise ValueError(
                f"bad image {image.name}: {image.reason}; {len(left_out)} bad image(s) are more than "
                "data.max_bad_fraction of the split"
            )


def _batches(images: Iterator[_Labeled], size: int) -> Iterator[Iterator[_Labeled]]:
    """Cuts a stream into parts, each to be read before the next is asked for."""
    for first in images:
        yield itertools.chain([first], itertools.islice(images, size - 1))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _describe(data: ImageDataModule, packing: Packing, written: dict[Split, _SplitRecord]) -> dict[str, Any]:
    mean, square = written["train"].moments
    return {
        "format": RECORD_FORMAT,
        "source": type(data).__name__,
        "stored": {"format": packing.format, "size": packing.size},
        "class_names": list(data.class_names),
        "pixel_mean": [round(value, 4) for value in mean.tolist()],
        "pixel_std": [round(value, 4) for value in (square - mean.square()).clamp(min=0.0).sqrt().tolist()],
        "left_out": [bad.name for record in written.values() for bad in record.left_out],
        "splits": {split: {"images": record.images, "shards": record.shards} for split, record in written.items()},
    }


def _whole(image: Pixels, _: SampleKey) -> Pixels:
    return image


def _as_fetched(image: Any) -> Any:
    return image
