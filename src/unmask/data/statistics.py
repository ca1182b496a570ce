"""Mean and deviation of training images, measured once."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float32, Int, UInt8
from torch import Tensor

from unmask.atomic_write import atomic_write
from unmask.data.dataset import ImageDataset
from unmask.randomness import keyed_permutation, stream_key
from unmask.types import Images

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Statistics = Literal["given", "auto"]

MAX_IMAGES = 10_000
"""How many are measured at most; the mean of a channel is then known to about 0.002."""

_log = logging.getLogger(__name__)


class PixelStatistics(NamedTuple):
    """Mean and standard deviation of each channel, on the scale 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalize_(self, images: Float32[Tensor, "b channels height width"]) -> Images:
        """Divides values of 0..255 by 255, subtracts the mean and divides by the deviation, in place.

        Each temporary would cost a CPU as much as the arithmetic.
        """
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return images.mul_(1.0 / (255.0 * std)).sub_(mean / std)


class TrainingStatistics:
    """What images are normalized with: as given, or measured on the training images when it is first asked for.

    Args:
        choice: "given" or "auto".
        given: One mean and deviation a channel; of no effect with "auto".
        num_channels: Of the images.
        measure: Finds out those of the training images.

    Raises:
        ValueError: The choice is unknown, or numbers are missing.
    """

    def __init__(
        self, choice: Statistics, given: PixelStatistics, *, num_channels: int, measure: Callable[[], PixelStatistics]
    ) -> None:
        if choice not in get_args(Statistics):
            raise ValueError(f"data.statistics must be 'given' or 'auto', got {choice!r}")
        for name, numbers in (("pixel_mean", given.mean), ("pixel_std", given.std)):
            if len(numbers) != num_channels and choice == "given":
                raise ValueError(
                    f"data.{name} has {len(numbers)} number(s) for data.channels={num_channels}; give one a channel, "
                    "or set data.statistics=auto"
                )
        self.are_measured = choice == "auto"
        self._given, self._measure = given, measure

    @cached_property
    def pixels(self) -> PixelStatistics:
        """Mean and deviation of each channel, in 0..1."""
        return self._measure() if self.are_measured else self._given

    def describe(self, num_train_images: int) -> str:
        """Says what they are and how that came about."""
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in self.pixels)
        measured = f"measured on {min(num_train_images, MAX_IMAGES):,} of {num_train_images:,} training images"
        return f"mean {mean}, deviation {std}, {measured if self.are_measured else 'as given'}"


def cached_statistics(
    dataset: ImageDataset,
    read_whole: Callable[[ImageDataset], Iterable[Tensor]],
    *,
    folder: Path,
    num_channels: int,
    **settings: Any,
) -> PixelStatistics:
    """Returns what an earlier run measured on these images, or measures and keeps it.

    Args:
        dataset: The training images.
        read_whole: Reads images as batches, uncropped but of one size.
        folder: Where statistics are kept.
        num_channels: Of the images.
        settings: Plain values that change what is read.
    """
    path = cache_path(folder, images=dataset.fingerprint, **settings, limit=MAX_IMAGES)
    statistics = read_cached(path)
    if statistics is None or len(statistics.mean) != num_channels:
        statistics = measure_pixels(read_whole(dataset.subset(choose_images(len(dataset)))))
        save_cached(path, statistics)
    return statistics


def choose_images(num_images: int, limit: int = MAX_IMAGES) -> Int[Tensor, " n"]:
    """The images that are measured: all, or `limit` drawn by a key that no seed changes; in rising order."""
    return keyed_permutation(stream_key(0, "statistics"), num_images)[:limit].sort().values


def measure_pixels(
    batches: Iterable[UInt8[Tensor, "_b channels _height _width"] | Float32[Tensor, "_b channels _height _width"]],
) -> PixelStatistics:
    """Averages over all pixels of images of one size, on the scale 0..255 of a raw batch, in float64.

    Raises:
        ValueError: There is no image, or all pixels of a channel are equal, so that nothing can be divided by their
            deviation.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for images in batches:
        values = images.double() / 255.0
        count += values.shape[0] * values.shape[2] * values.shape[3]
        total = total + values.sum(dim=(0, 2, 3))
        squares = squares + values.square().sum(dim=(0, 2, 3))
    if not count:
        raise ValueError("there is no training image to measure; give data.pixel_mean and data.pixel_std")
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0.0).sqrt()
    constant = (std < 1e-6).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"channel {constant[0]} has one value in all training images measured; leave it out, or give "
            "data.pixel_mean and data.pixel_std with data.statistics=given"
        )
    return PixelStatistics(tuple(mean.tolist()), tuple(std.tolist()))


def cache_path(folder: Path, **what: Any) -> Path:
    """Where the statistics of `what`, plain values, are kept."""
    key = hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=12).hexdigest()
    return folder / "statistics" / f"{key}.json"


def read_cached(path: Path) -> PixelStatistics | None:
    """Reads what an earlier run measured; None where there is nothing to be read."""
    try:
        content = json.loads(path.read_text())
        return PixelStatistics(
            tuple(float(value) for value in content["mean"]), tuple(float(value) for value in content["std"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_cached(path: Path, statistics: PixelStatistics) -> None:
    """Keeps statistics for later runs, whole or not at all; where that is impossible a line of the log says so."""
    try:
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(statistics._asdict()) + "\n")
    except OSError as error:
        _log.warning(
            "cannot keep the images' statistics in %s (%s); each run measures them again", path, error.strerror
        )
