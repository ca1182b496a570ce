"""What every data module has in common."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from unmask.data.augmentation.boxes import Boxes
from unmask.data.augmentation.crops import AugmentedCrop, CentreCrop, augmentation_keys
from unmask.data.augmentation.resizing import Interpolation, resize_boxes
from unmask.data.augmentation.transforms import Augmentation, resize_and_centre_crop
from unmask.data.bad_images import IN_EVALUATION, BadImagePolicy, OnBadImage, RaiseOnBadImage
from unmask.data.dataset import FILLER_EPOCH, ImageDataset, LoaderDataset, RawBatch, SampleKey
from unmask.data.files.decoding import ImageDecoder
from unmask.data.files.splits import Split
from unmask.data.loader import DeferredDataLoader
from unmask.data.position import BatchShape, TrainingPosition, beginning
from unmask.data.precomputed_crops import PrecomputedCrops
from unmask.data.sampler import KeyedBatchSampler, PartOfBatches
from unmask.data.statistics import IMAGENET_MEAN, IMAGENET_STD, MAX_IMAGES, PixelStatistics, cached_statistics
from unmask.data.training_subset import TrainingSubset
from unmask.optim.accumulation import device_batch_size
from unmask.types import FILLER_INDEX, ImageBatch, Images

Statistics = Literal["given", "auto"]

_IMAGES_MEASURED_AT_ONCE = 64


class ImageDataModule(LightningDataModule, ABC):
    """Serves images as `ImageBatch`es; knows nothing of masks, methods or backbones.

    Small images are held in memory and augmented as whole batches on the device; files are decoded and cropped in
    workers and normalised on the device. Every random draw is keyed by (seed, epoch, sample).

    Args:
        image_size: Side, or (height, width), of the images served, in pixels.
        pixel_mean, pixel_std: Mean and standard deviation of each channel, in 0..1, that images are normalised with; by
            default of ImageNet.
        augmentation: Applied to training images.
        global_batch_size: Images an optimizer step takes over all devices and accumulated batches.
        num_workers: Decoding processes a device; unused for images in memory.
        seed: Key of the order and the augmentation.
        crop_pct: Side of the centre crop as a fraction of the resized image, in evaluation.
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
        if statistics not in get_args(Statistics):
            raise ValueError(f"data.statistics must be 'given' or 'auto', got {statistics!r}")
        for name, statistic in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            if len(statistic) != channels and statistics == "given":
                raise ValueError(
                    f"data.{name} has {len(statistic)} number(s) for data.channels={channels}; give one a channel, or "
                    "set data.statistics=auto"
                )
        if not 0.0 < crop_pct <= 1.0:
            raise ValueError(f"data.crop_pct must lie above 0 and at most 1, got {crop_pct}")
        if interpolation not in get_args(Interpolation):
            raise ValueError(f"data.interpolation must be 'bicubic' or 'bilinear', got {interpolation!r}")
        if global_batch_size < 1:
            raise ValueError(f"global_batch_size must be at least 1, got {global_batch_size}")
        if not worker_timeout >= 0:
            raise ValueError(f"data.worker_timeout must be a number of seconds, 0 for none, got {worker_timeout}")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_size = (height, width)
        self.statistics = statistics
        self._given = PixelStatistics(tuple(pixel_mean), tuple(pixel_std))
        self.cache = Path(cache_dir).expanduser()
        self.augmentation = augmentation
        self.global_batch_size = global_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.crop_pct = crop_pct
        self.interpolation = interpolation
        self.worker_timeout = worker_timeout
        self.bad_images = BadImagePolicy(on_bad_image, max_fraction=max_bad_fraction, seed=seed)
        self._splits: dict[Split, ImageDataset] = {}
        self._saved_shape: Mapping[str, int] | None = None  # of the batches of the run that is continued

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
        """Mean of each channel, in 0..1, the images are normalised with."""
        return self._pixel_statistics.mean

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Deviation likewise."""
        return self._pixel_statistics.std

    def describe_statistics(self) -> str:
        """Says what images are normalised with and how it came about."""
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in self._pixel_statistics)
        total = len(self.dataset("train"))
        measured = f"measured on {min(total, MAX_IMAGES):,} of {total:,} training images"
        return f"mean {mean}, deviation {std}, {measured if self.statistics == 'auto' else 'as given'}"

    @cached_property
    def _pixel_statistics(self) -> PixelStatistics:
        if self.statistics == "given":
            return self._given
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
        guarded = self.bad_images.guard(dataset, CentreCrop(size=self.image_size, crop_pct=1.0))
        for batch in self._load(guarded, PartOfBatches(len(dataset), _IMAGES_MEASURED_AT_ONCE, part=0, num_parts=1)):
            images: Tensor = batch.image
            yield resize_and_centre_crop(images, self.image_size, 1.0) if self.holds_images_in_memory else images

    @abstractmethod
    def load_split(self, split: Split) -> ImageDataset:
        """Reads a split; raises a ValueError that says what is missing where there is none."""

    def dataset(self, split: Split) -> ImageDataset:
        """The split, read once."""
        if split not in self._splits:
            self._splits[split] = self.load_split(split)
        return self._splits[split]

    def with_dataset(self, split: Split, dataset: ImageDataset) -> "ImageDataModule":
        """The same data with another data set of its kind as a split; this module stays as it is."""
        other = copy.copy(self)
        other._splits = self._splits | {split: dataset}
        return other

    def describe_splits(self) -> str:
        """Says how many images each split has."""
        return f"{len(self.dataset('train')):,} to train on, {len(self.dataset('val')):,} held out to validate"

    def limit_training(self, fraction: float, *, seed: int = 0) -> None:
        """Keeps a fraction of the training images for every later use of the split, see `TrainingSubset.limit`."""
        self._splits["train"] = self._training_subset.limit(fraction, seed=seed)

    def choose_training(self, positions: Int[Tensor, " m"] | None) -> None:
        """Keeps chosen training images for every later use, `limit_training` included, see `TrainingSubset.choose`."""
        self._splits["train"] = self._training_subset.choose(positions)

    @property
    def num_train_images(self) -> int:
        """Training images; a source that knows their number without reading them says so."""
        return len(self.dataset("train"))

    @cached_property
    def _training_subset(self) -> TrainingSubset:
        return TrainingSubset(self.dataset("train"))

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
        batch_size = self._device_batch_size()
        if len(dataset) < self.global_batch_size:
            raise ValueError(
                f"the training split has {len(dataset)} images, fewer than one batch of {self.global_batch_size}; "
                f"set global_batch_size={max(1, len(dataset) // 2)} or less"
            )
        crop = AugmentedCrop(augmentation=self.augmentation, size=self.image_size, seed=self.seed, fill=self.pixel_mean)
        guarded = (
            PrecomputedCrops(dataset, crop) if self.holds_images_in_memory else self.bad_images.guard(dataset, crop)
        )
        batches = KeyedBatchSampler(
            num_samples=len(dataset),
            device_batch_size=batch_size,
            rank=self._rank,
            world_size=self._world_size,
            seed=None if dataset.is_streamed else self.seed,  # a stream shuffles by itself
            drop_last=True,
            position=TrainingPosition(self.trainer, self._batch_shape, self._saved_shape),
            accumulated=self._accumulated,
        )
        return self._load(guarded, batches, is_training=True)

    def val_dataloader(self) -> DataLoader[RawBatch]:
        return self.evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[RawBatch]:
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: Split) -> DataLoader[RawBatch]:
        """Reads a split once, in stored order and without augmentation, each sample on one device alone."""
        dataset = self._evaluated(split)
        batches = KeyedBatchSampler(
            num_samples=len(dataset),
            device_batch_size=self._device_batch_size(),
            rank=self._rank,
            world_size=self._world_size,
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
        return {split: dataset.fingerprint for split, dataset in self._splits.items()}

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
        """Does what is left for the device: crops images held in memory, normalises, erases boxes in training.

        Without `augmented`, and where they were not read for training, images from memory are cropped at the centre.
        """
        images: Tensor = batch.image
        keys = augmentation_keys(self.seed, batch.epoch, batch.index) if augmented and self._needs_keys else None
        if augmented and batch.crop is not None:
            images = self._pixel_statistics.normalize_(self._crop(batch.image, batch.crop, keys))
        elif self.holds_images_in_memory:
            images = self.normalize(
                resize_and_centre_crop(images, self.image_size, self.crop_pct, interpolation=self.interpolation)
            )
        else:
            images = self.normalize(images)
        if keys is not None:
            images = self.augmentation.erase_batch(images, keys)
        return ImageBatch(images, batch.label, batch.index.masked_fill(batch.epoch == FILLER_EPOCH, FILLER_INDEX))

    @property
    def _needs_keys(self) -> bool:
        return self.augmentation.rand_augment is not None or self.augmentation.random_erasing_prob > 0

    def _crop(
        self,
        images: UInt8[Tensor, "b 3 old_height old_width"],
        crop: Int[Tensor, "b 5"],
        keys: Int[Tensor, " b"] | None,
    ) -> Float[Tensor, "b 3 height width"]:
        """Training crops of images from memory, in 0..255."""
        top, left, height, width, flipped = crop.unbind(1)
        boxes, interpolation = Boxes(top, left, height, width), self.augmentation.interpolation
        cropped = resize_boxes(images, boxes, self.image_size, interpolation, flipped == 1)
        return cropped if keys is None else self.augmentation.distort_batch(cropped, keys, self.pixel_mean)

    def normalize(self, images: Shaped[Tensor, "b channels height width"]) -> Images:
        """Normalises values of 0..255, see `PixelStatistics.normalize_`."""
        return self._pixel_statistics.normalize_(images.to(torch.float32, copy=True))

    def _evaluated(self, split: Split) -> RaiseOnBadImage:
        crop = CentreCrop(size=self.image_size, crop_pct=self.crop_pct, interpolation=self.interpolation)
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
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _accumulated(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    @property
    def _batch_shape(self) -> BatchShape:
        return BatchShape(self.global_batch_size // self._accumulated, len(self.dataset("train")))

    def _device_batch_size(self) -> int:
        return device_batch_size(self.global_batch_size, num_devices=self._world_size, accumulated=self._accumulated)
