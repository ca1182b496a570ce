"""What every data module has in common."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, get_args

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from unmask.data.augmentation.crops import AugmentedCrop, CenterCrop
from unmask.data.augmentation.resizing import Interpolation
from unmask.data.augmentation.transforms import Augmentation, resize_and_center_crop
from unmask.data.bad_images import IN_EVALUATION, BadImagePolicy, OnBadImage, RaiseOnBadImage
from unmask.data.dataset import ImageDataset, LoaderDataset, RawBatch, SampleKey
from unmask.data.files.decoding import BadImageError, ImageDecoder
from unmask.data.files.splits import Split
from unmask.data.headers import open_with_header
from unmask.data.loaded_splits import LoadedSplits
from unmask.data.loader import DeferredDataLoader
from unmask.data.model_input import ModelInput
from unmask.data.position import BatchShape, DevicePlace, TrainingPosition, beginning
from unmask.data.precomputed_crops import PrecomputedCrops
from unmask.data.sampler import KeyedBatchSampler, PartOfBatches
from unmask.data.statistics import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PixelStatistics,
    Statistics,
    TrainingStatistics,
    cached_statistics,
)
from unmask.types import ImageBatch

_IMAGES_MEASURED_AT_ONCE = 64
_HEADERS_READ = 64


class ImageDataModule(LightningDataModule, ABC):
    """Serves images as `ImageBatch`es; knows nothing of masks, methods or backbones.

    Small images are held in memory and augmented as whole batches on the device; files are decoded and cropped in
    workers and normalized on the device. Every random draw is keyed by (seed, epoch, sample).

    Args:
        image_size: Side, or (height, width), of the images served, in pixels.
        pixel_mean, pixel_std: Mean and standard deviation of each channel, in 0..1, that images are normalized with; by
            default of ImageNet.
        augmentation: Applied to training images.
        global_batch_size: Images an optimizer step takes over all devices and accumulated batches.
        num_workers: Decoding processes a device; unused for images in memory.
        seed: Key of the order and the augmentation.
        crop_pct: Side of the center crop as a fraction of the resized image, in evaluation.
        interpolation: "bicubic" or "bilinear": how images are resized for that, with antialiasing; training's is the
            augmentation's.
        on_bad_image: "raise": a training image that cannot be read stops the run; "skip": another one takes its place
            and the run's folder lists it. Evaluation always stops.
        max_bad_fraction: Of the training images that may be skipped; more stop the run.
        statistics: "given": `pixel_mean` and `pixel_std` as they are; "auto": measured on the training images, resized
            as for evaluation (`unmask.data.statistics`), and kept in `cache_dir` under their fingerprint.
        cache_dir: Where what takes long to find out is kept between runs.
        worker_timeout: Seconds after which a worker that returns no batch counts as hanging and ends the run with the
            images the workers were reading; 0 waits for ever.
        channels, pixel_scale, background, exif: How files are read, see `ImageDecoder`; images in memory are RGB.

    Raises:
        ValueError: A value is out of range; when loaders are built, the batch does not divide among the devices or
            is larger than the data set.
    """

    place_settings: ClassVar[tuple[str, ...]] = (
        "root",
        "train",
        "val",
        "test",
        "slug",
    )  # where images lie, if it has them
    machine_settings: ClassVar[tuple[str, ...]] = (
        "cache_dir",
        "num_workers",
        "worker_timeout",
    )  # nothing was learned by
    holds_images_in_memory: ClassVar[bool]  # then batches arrive uncropped: whole batches are faster to crop

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
        augmentation: Augmentation,
        global_batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        crop_pct: float = 1.0,
        interpolation: str = "bicubic",
        statistics: Statistics = "given",
        cache_dir: str = "~/.cache/unmask",
        on_bad_image: OnBadImage = "raise",
        max_bad_fraction: float = 0.001,
        channels: int = 3,
        pixel_scale: float | None = None,
        background: str = "white",
        exif: bool = True,
        worker_timeout: float = 600.0,
    ) -> None:
        super().__init__()
        self.decoder = ImageDecoder(channels=channels, pixel_scale=pixel_scale, background=background, exif=exif)
        if channels != 3 and self.holds_images_in_memory:
            raise ValueError(f"{type(self).__name__} has RGB images; leave data.channels at 3, got {channels}")
        given = PixelStatistics(tuple(pixel_mean), tuple(pixel_std))
        self.statistics = TrainingStatistics(statistics, given, num_channels=channels, measure=self._measure_pixels)
        if not 0.0 < crop_pct <= 1.0:
            raise ValueError(f"data.crop_pct must lie above 0 and at most 1, got {crop_pct}")
        if interpolation not in get_args(Interpolation):
            raise ValueError(f"data.interpolation must be 'bicubic' or 'bilinear', got {interpolation!r}")
        if global_batch_size < 1:
            raise ValueError(f"global_batch_size must be at least 1, got {global_batch_size}")
        if not worker_timeout >= 0:
            raise ValueError(f"data.worker_timeout must be a number of seconds, 0 for none, got {worker_timeout}")
        self.set_image_size(image_size)
        self.cache = Path(cache_dir).expanduser()
        self.augmentation = augmentation
        self.global_batch_size = global_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.crop_pct = crop_pct
        self.interpolation = interpolation
        self.worker_timeout = worker_timeout
        self.bad_images = BadImagePolicy(on_bad_image, max_fraction=max_bad_fraction, seed=seed)
        self.loaded_splits = LoadedSplits(self.load_split)
        self._saved_shape: Mapping[str, int] | None = None  # of the batches of the run that is continued

    def set_image_size(self, image_size: int | Sequence[int]) -> None:
        """Serves images of another size from now on: a side, or (height, width), in pixels."""
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_size = (height, width)

    def settings_without_effect(self) -> dict[str, str]:
        """Names the arguments that the others make idle, each with the reason."""
        if self.holds_images_in_memory:
            reason = f"{type(self).__name__} decodes no image files"
            return dict.fromkeys(("pixel_scale", "background", "exif", "on_bad_image", "max_bad_fraction"), reason)
        if self.bad_images.on_bad_image == "raise":
            return {"max_bad_fraction": "data.on_bad_image=raise stops at the first bad image"}
        return {}

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """Mean of each channel, in 0..1, the images are normalized with."""
        return self.statistics.pixels.mean

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Deviation likewise."""
        return self.statistics.pixels.std

    def _measure_pixels(self) -> PixelStatistics:
        return cached_statistics(
            self.dataset("train"),
            self._read_whole,
            folder=self.cache,
            num_channels=self.decoder.channels,
            decoder=asdict(self.decoder),
            image_size=list(self.image_size),
        )

    def _read_whole(self, dataset: ImageDataset) -> Iterator[Tensor]:
        """Reads images uncropped, resized to `image_size`."""
        guarded = self.bad_images.guard(dataset, CenterCrop(size=self.image_size, crop_pct=1.0))
        for batch in self._load(guarded, PartOfBatches(len(dataset), _IMAGES_MEASURED_AT_ONCE, part=0, num_parts=1)):
            images: Tensor = batch.image
            yield resize_and_center_crop(images, self.image_size, 1.0) if self.holds_images_in_memory else images

    @abstractmethod
    def load_split(self, split: Split) -> ImageDataset:
        """Reads a split; raises a ValueError that says what is missing where there is none."""

    def dataset(self, split: Split) -> ImageDataset:
        """The split, read once."""
        return self.loaded_splits[split]

    def with_dataset(self, split: Split, dataset: ImageDataset) -> "ImageDataModule":
        """The same data with another data set of its kind as a split; this module stays as it is."""
        other = copy.copy(self)
        other.loaded_splits = self.loaded_splits.with_dataset(split, dataset)
        return other

    def describe_splits(self) -> str:
        """Says how many images each split has."""
        return f"{len(self.dataset('train')):,} to train on, {len(self.dataset('val')):,} held out to validate"

    @property
    def num_train_images(self) -> int:
        """Training images; a source that knows their number without reading them says so."""
        return len(self.dataset("train"))

    def median_side(self) -> int | None:
        """Reads the headers of some training images, spread evenly over the split.

        Returns:
            The median of their shorter sides, in pixels; None where images have no files of their own or none of these
            can be read.
        """
        dataset = self.dataset("train")
        count = min(len(dataset), _HEADERS_READ)
        sides = [self._shorter_side(dataset, number * len(dataset) // count) for number in range(count)]
        known = sorted(side for side in sides if side is not None)
        return known[len(known) // 2] if known else None

    def _shorter_side(self, dataset: ImageDataset, index: int) -> int | None:
        try:
            with open_with_header(dataset, index, self.decoder) as opened:
                return None if opened is None else min(opened.header.height, opened.header.width)
        except BadImageError:  # training says what is wrong with it
            return None

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset("train").class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def train_dataloader(self) -> DataLoader[RawBatch]:
        if len(self.pixel_mean) != 3 and self.augmentation.rand_augment is not None:
            raise ValueError(
                f"augmentation.rand_augment distorts RGB pictures, and data.channels is {len(self.pixel_mean)}; "
                "add augmentation.rand_augment=null"
            )
        dataset = self.dataset("train")
        place = DevicePlace.of(self.trainer)
        if len(dataset) < self.global_batch_size:
            raise ValueError(
                f"the training split has {len(dataset)} images, fewer than one batch of {self.global_batch_size}; "
                f"set {place.settings_for(len(dataset))}"
            )
        batch_size = place.batch_size(self.global_batch_size)
        crop = AugmentedCrop(augmentation=self.augmentation, size=self.image_size, seed=self.seed, fill=self.pixel_mean)
        guarded = (
            PrecomputedCrops(dataset, crop) if self.holds_images_in_memory else self.bad_images.guard(dataset, crop)
        )
        batches = KeyedBatchSampler(
            num_samples=len(dataset),
            device_batch_size=batch_size,
            rank=place.rank,
            world_size=place.world_size,
            seed=None if dataset.is_streamed else self.seed,  # a stream shuffles by itself
            drop_last=True,
            position=TrainingPosition(self.trainer, self._batch_shape, self._saved_shape),
            accumulated=place.accumulated,
        )
        return self._load(guarded, batches, is_training=True)

    def val_dataloader(self) -> DataLoader[RawBatch]:
        return self.evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[RawBatch]:
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: Split) -> DataLoader[RawBatch]:
        """Reads a split once, in stored order and without augmentation, each sample on one device alone."""
        dataset, place = self._evaluated(split), DevicePlace.of(self.trainer)
        batches = KeyedBatchSampler(
            num_samples=len(dataset),
            device_batch_size=place.batch_size(self.global_batch_size),
            rank=place.rank,
            world_size=place.world_size,
            seed=None,
            drop_last=False,
            position=beginning,
        )
        return self._load(dataset, batches)

    def evaluation_part(self, split: Split, *, part: int, num_parts: int) -> Iterable[RawBatch]:
        """Reads every `num_parts`-th batch of a split from the `part`-th on, in stored order and without augmentation.

        Batches are of `global_batch_size` and the same whatever the number of parts, and all parts have equally many:
        where some run short, they begin again from the first, so a sample may be served twice.
        """
        dataset = self._evaluated(split)
        return self._load(dataset, PartOfBatches(len(dataset), self.global_batch_size, part=part, num_parts=num_parts))

    def fingerprints(self) -> dict[str, str]:
        """Names the content of each split that has been read, as far as it has been limited."""
        return self.loaded_splits.fingerprints()

    def held_out_images(self, count: int) -> ImageBatch:
        """Reads up to `count` validation images, spread evenly over the split; always the same ones."""
        dataset = self._evaluated("val")
        count = min(count, len(dataset))
        keys = [SampleKey(0, position * len(dataset) // count) for position in range(count)]
        return self.to_model_input(dataset.__getitems__(keys), augmented=False)

    def on_after_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> ImageBatch:
        if batch.bad and self.trainer is not None:
            folder = Path(self.trainer.default_root_dir)
            self.bad_images.record(batch.bad, folder=folder, num_images=len(self.dataset("train")))
        return self.to_model_input(batch, augmented=self.trainer is not None and self.trainer.training)

    def to_model_input(self, batch: RawBatch, *, augmented: bool) -> ImageBatch:
        """Does what is left for the device, see `ModelInput`."""
        transform = ModelInput(
            image_size=self.image_size,
            crop_pct=self.crop_pct,
            interpolation=self.interpolation,
            augmentation=self.augmentation,
            seed=self.seed,
            statistics=self.statistics.pixels,
            are_in_memory=self.holds_images_in_memory,
        )
        return transform(batch, augmented=augmented)

    def _evaluated(self, split: Split) -> RaiseOnBadImage:
        crop = CenterCrop(size=self.image_size, crop_pct=self.crop_pct, interpolation=self.interpolation)
        return RaiseOnBadImage(self.dataset(split), crop, advice=IN_EVALUATION)

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint's number of batches refers to."""
        return self._batch_shape._asdict()

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        self._saved_shape = state_dict

    def teardown(self, stage: str) -> None:
        if stage == "fit":
            self.bad_images.summarize()

    def _load(
        self, dataset: LoaderDataset, batches: Sampler[list[SampleKey]], *, is_training: bool = False
    ) -> DeferredDataLoader:
        return DeferredDataLoader(
            dataset,
            dataset.dataset.wrap_sampler(batches, seed=self.seed if is_training else None),
            num_workers=0 if self.holds_images_in_memory else self.num_workers,
            timeout=self.worker_timeout,
            persistent_workers=is_training,
        )

    @property
    def _batch_shape(self) -> BatchShape:
        accumulated = DevicePlace.of(self.trainer).accumulated
        return BatchShape(self.global_batch_size // accumulated, len(self.dataset("train")))
