"""Images of any source written as shards."""

import io
import json
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

from unmask.data.datamodule import ImageDataModule, Split
from unmask.data.samples import ImageSamples, Pixels, SampleKey
from unmask.data.shard_list import RECORD_FORMAT, RECORD_NAME

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
        colours = "RGB" if array.shape[2] == 3 else "GRAY"
        return simplejpeg.encode_jpeg(array, self.jpeg_quality, colours, colorsubsampling="420"), "jpg"

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


class _ImagesToPack(Dataset[_PackedImage]):
    """The images of a split as they are to be stored; encoded in the loader's workers."""

    def __init__(self, samples: ImageSamples, packing: Packing) -> None:
        self.samples, self.packing = samples, packing

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> _PackedImage:
        pixels = self.samples.read([SampleKey(0, index)], _whole).image[0]  # also where files are kept: is it sound?
        content, ending = self._kept(index) if self.packing.format == "keep" else self.packing.encode(pixels)
        values = pixels.flatten(1).double() / 255.0
        return _PackedImage(content, ending, torch.stack([values.mean(1), values.square().mean(1)]))

    def _kept(self, index: int) -> tuple[bytes, str]:
        stored = self.samples.stored(index)
        if stored is None:
            raise ValueError("format=keep copies files, and this source has none; set format=raw size=null")
        return stored


class _SplitRecord(NamedTuple):
    images: int
    shards: list[dict[str, Any]]
    moments: Float64[Tensor, "2 channels"]


def write_packed(
    data: ImageDataModule, out: Path, packing: Packing, splits: Sequence[Split] = ("train", "val", "test")
) -> dict[str, Any]:
    """Writes splits as shards with a record beside them, all of them or nothing.

    Samples keep their order, so that a run on the shards sees what a run on the source sees.

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
    everything = {split: data.samples(split) for split in splits}
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.mkdir(parents=True)
    except FileExistsError:
        raise ValueError(
            f"{partial} exists: another packing to {out} is at work, or was killed; remove it if none is"
        ) from None
    try:
        written = {
            split: _write_split(samples, partial, split, packing, data.num_workers)
            for split, samples in everything.items()
        }
        record = _describe(data, packing, written)
        (partial / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.rename(out)
    except OSError as error:
        raise ValueError(f"out={out} cannot be written ({error.strerror}); nothing was kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record


def _write_split(samples: ImageSamples, folder: Path, split: Split, packing: Packing, num_workers: int) -> _SplitRecord:
    labels = samples.labels.tolist() if samples.class_names else None
    images = iter(_encoded(samples, packing, num_workers))
    shards, moments = [], torch.zeros(())
    for number, start in enumerate(range(0, len(samples), packing.images_per_shard)):
        path = folder / f"{split}-{number:06d}.tar"
        end = min(start + packing.images_per_shard, len(samples))
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for index in range(start, end):
                image = next(images)
                moments = moments + image.moments
                _add(archive, f"{index:09d}.{image.ending}", image.content)
                if labels is not None:
                    _add(archive, f"{index:09d}.cls", str(labels[index]).encode())
        shards.append({"name": path.name, "bytes": path.stat().st_size, "images": end - start})
    return _SplitRecord(len(samples), shards, moments / len(samples))


def _encoded(samples: ImageSamples, packing: Packing, num_workers: int) -> Iterator[_PackedImage]:
    loader = DataLoader(
        _ImagesToPack(samples, packing), batch_size=None, num_workers=num_workers, collate_fn=_as_fetched
    )
    yield from loader


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
        "splits": {split: {"images": record.images, "shards": record.shards} for split, record in written.items()},
    }


def _whole(image: Pixels, _: SampleKey) -> Pixels:
    return image


def _as_fetched(image: Any) -> Any:
    return image
