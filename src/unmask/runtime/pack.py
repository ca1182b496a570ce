"""Packs a source into shards and says what that was worth."""

import itertools
import logging
import shlex
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch.utils.data import DataLoader

from unmask.data.datamodule import ImageDataModule
from unmask.data.dataset import RawBatch
from unmask.data.packing import Packing, write_packed
from unmask.data.sources.shards import Shards
from unmask.runtime.builders import build
from unmask.runtime.own_commands import sibling_command
from unmask.runtime.setting_types import require_types
from unmask.runtime.typed import typed

_OWN = ("size", "jpeg_quality", "images_per_shard", "timing_seconds", "seed", "global_batch_size")
_TURNS = 3  # of each side

_log = logging.getLogger("unmask")


def pack(config: DictConfig) -> None:
    """Writes the shards, then times both loaders in turns.

    Raises:
        ValueError: No source is named, or as `write_packed`.
    """
    if config.get("data") is None:
        raise ValueError("name the source to pack, such as data=folder data.root=DIR")
    require_types(config, _OWN)  # what a recipe adds refers to keys of training
    data: ImageDataModule = build(config.data)
    packing = Packing(
        format=config.format,
        size=config.size,
        jpeg_quality=config.jpeg_quality,
        images_per_shard=config.images_per_shard,
    )
    out = Path(str(config.out)).expanduser()
    record = write_packed(data, out, packing, list(config.splits))
    _log.info(_summary(record, out))
    if config.timing_seconds > 0:
        _log.info(_compare(data, out, config.timing_seconds))
    missing = [f"data.{split}_fraction=0" for split in ("val", "test") if split not in record["splits"]]
    command = [*sibling_command("run"), "data=shards", typed("data.root", out), *missing]
    _log.info(f"next: {shlex.join(command)}")


def _summary(record: dict[str, Any], out: Path) -> str:
    splits = record["splits"].items()
    counts = ", ".join(f"{split} {described['images']:,}" for split, described in splits)
    size = sum(shard["bytes"] for _, described in splits for shard in described["shards"])
    images = sum(described["images"] for _, described in splits)
    return (
        f"packed {counts} images into {out}: {_readable(size)}, {_readable(size / images)} an image\n"
        f"training images have data.pixel_mean={record['pixel_mean']} data.pixel_std={record['pixel_std']}"
    )


def _readable(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _compare(data: ImageDataModule, out: Path, seconds: float) -> str:
    """Times the training loaders of source and shards in turns, so that whatever else runs falls on both."""
    data.global_batch_size = min(data.global_batch_size, len(data.dataset("train")))
    packed = Shards(
        root=str(out),
        image_size=data.image_size,
        pixel_mean=data.pixel_mean,
        pixel_std=data.pixel_std,
        augmentation=data.augmentation,
        global_batch_size=data.global_batch_size,
        num_workers=data.num_workers,
        seed=data.seed,
        channels=data.decoder.channels,
        val_fraction=0.0,
        test_fraction=0.0,
    )
    loaders = [module.train_dataloader() for module in (data, packed)]
    streams = [_endless(loader) for loader in loaders]
    ahead = 1 + 2 * data.num_workers  # batches that may lie ready
    rates: list[list[float]] = [[], []]
    for _ in range(_TURNS):
        for stream, measured in zip(streams, rates, strict=True):
            measured.append(_images_per_second(stream, seconds / (2 * _TURNS), ahead))
    source, shards = (statistics.median(measured) for measured in rates)
    ratio = statistics.median(after / before for before, after in zip(*rates, strict=True))
    return (
        f"training loader, {data.num_workers} workers, {data.image_size[0]}x{data.image_size[1]} px: "
        f"{source:,.0f} images/s from the source, {shards:,.0f} from the shards: {ratio:.1f} times as fast"
    )


def _endless(loader: DataLoader[RawBatch]) -> Iterator[RawBatch]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


def _images_per_second(batches: Iterator[RawBatch], seconds: float, ahead: int) -> float:
    for _ in range(ahead):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(batches).index)
    return count / (time.perf_counter() - start)
