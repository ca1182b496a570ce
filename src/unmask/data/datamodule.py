"""What every data module has in common."""

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from unmask.data.augmentation.boxes import Boxes
from unmask.data.augmentation.crops import AugmentedCrop, CentreCrop, augmentation_keys
from unmask.data.augmentation.resizing import resize_boxes
from unmask.data.augmentation.transforms import Augmentation, resize_and_centre_crop
from unmask.data.bad_images import (
    IN_EVALUATION,
    IN_TRAINING,
    BadImageList,
    OnBadImage,
    RaiseOnBadImage,
    ReplaceBadImage,
)
from unmask.data.dataset import FILLER_EPOCH, BadImage, ImageDataset, LoaderCrop, LoaderDataset, RawBatch, SampleKey
from unmask.data.files.decoding import ImageDecoder
from unmask.data.files.splits import Split
from unmask.data.loader import DeferredDataLoader
from unmask.data.precomputed_crops import PrecomputedCrops
from unmask.data.sampler import KeyedBatchSampler, PartOfBatches
from unmask.data.splits import hold_out
from unmask.data.statistics import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_IMAGES,
    PixelStatistics,
    cache_path,
    choose_images,
    measure_pixels,
    read_cached,
    save_cached,
)
from unmask.data.worker_signals import leave_signals_to_main
from unmask.types import FILLER_INDEX, ImageBatch, Images

Statistics = Literal["given", "auto"]

_IMAGES_MEASURED_AT_ONCE = 64

_log = logging.getLogger(__name__)


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
        on_bad_image: "raise": a training image that cannot be read stops the run; "skip": another is drawn in its place
            and the run's folder lists it. Evaluation always stops.
        max_bad_fraction: Of the training images that may be skipped; more stop the run.
        statistics: "given": `pixel_mean` and `pixel_std` as they are; "auto": measured on the training images, resized
            as for evaluation (`unmask.data.statistics`), and kept in `cache_dir` under their fingerprint.
        cache_dir: Where what takes long to find out is kept between runs.
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
    machine_settings: ClassVar[tuple[str, ...]] = ("cache_dir", "num_workers")  # no part of what was learned
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
        statistics: Statistics = "given",
        cache_dir: str = "~/.cache/unmask",
        on_bad_image: OnBadImage = "raise",
        max_bad_fraction: float = 0.001,
        channels: int = 3,
        pixel_scale: float | None = None,
        background: str = "white",
        exif: bool = True,
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
        if on_bad_image not in get_args(OnBadImage):
            raise ValueError(f"data.on_bad_image must be 'raise' or 'skip', got {on_bad_image!r}")
        if not 0.0 <= max_bad_fraction <= 1.0:
            raise ValueError(f"data.max_bad_fraction must be a share in 0..1, got {max_bad_fraction}")
        if global_batch_size < 1:
            raise ValueError(f"global_batch_size must be at least 1, got {global_batch_size}")
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
        self.on_bad_image = on_bad_image
        self.max_bad_fraction = max_bad_fraction
        self._bad_images: BadImageList | None = None
        self._splits: dict[Split, ImageDataset] = {}
        self._limited: ImageDataset | None = None  # what a share in use was taken of
        self._all_training: ImageDataset | None = None  # where images of it were chosen

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
        samples = self.dataset("train")
        path = cache_path(
            self.cache,
            images=samples.fingerprint,
            decoder=asdict(self.decoder),
            image_size=list(self.image_size),
            limit=MAX_IMAGES,
        )
        kept = read_cached(path)
        if kept is None or len(kept.mean) != self.decoder.channels:
            kept = measure_pixels(self._whole_images(samples.subset(choose_images(len(samples)))))
            save_cached(path, kept)
        return kept

    def _whole_images(self, samples: ImageDataset) -> Iterator[Tensor]:
        """Reads images as they are, but brought to `image_size`."""
        crop = CentreCrop(size=self.image_size, crop_pct=1.0)
        guarded = self._guarded(samples, crop)
        for batch in self._load(guarded, PartOfBatches(len(samples), _IMAGES_MEASURED_AT_ONCE, part=0, num_parts=1)):
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

    def with_dataset(self, split: Split, samples: ImageDataset) -> "ImageDataModule":
        """The same data with other samples of its kind in place of a split; this module stays as it is."""
        other = copy.copy(self)
        other._splits = self._splits | {split: samples}
        return other

    def limit_training(self, share: float, *, seed: int = 0) -> None:
        """Keeps a fraction of the training images, evenly over the classes, for every later use of the train split.

        Which ones is a function of the split, `share` and `seed`; calling it again starts from the whole split.

        Args:
            share: In (0, 1]; 1 keeps all.
            seed: Key of the choice.
        """
        whole = self._whole_training()
        if share < 1.0:
            _, kept = hold_out(whole.labels, max(1, round(share * len(whole))), seed=seed)
            whole = whole.subset(kept)
        self._splits["train"] = whole

    def choose_training(self, positions: Int[Tensor, " m"] | None) -> None:
        """Keeps the training images at `positions` for every later use, `limit_training` included.

        Args:
            positions: In the whole training split, in rising order; None brings all back.
        """
        if self._all_training is None:
            self._all_training = self._whole_training()
        self._limited = self._all_training if positions is None else self._all_training.subset(positions)
        self._splits["train"] = self._limited

    def _whole_training(self) -> ImageDataset:
        """What `limit_training` takes a fraction of."""
        if self._limited is None:
            self._limited = self.dataset("train")
        return self._limited

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
        samples = self.dataset("train")
        batch_size = self._device_batch_size()
        if len(samples) < self.global_batch_size:
            raise ValueError(
                f"the training split has {len(samples)} images, fewer than one batch of {self.global_batch_size}; "
                f"set global_batch_size={max(1, len(samples) // 2)} or less"
            )
        crop = AugmentedCrop(augmentation=self.augmentation, size=self.image_size, seed=self.seed, fill=self.pixel_mean)
        guarded = PrecomputedCrops(samples, crop) if self.holds_images_in_memory else self._guarded(samples, crop)
        return self._loader(guarded, batch_size, is_training=True)

    def val_dataloader(self) -> DataLoader[RawBatch]:
        return self.evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[RawBatch]:
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: Split) -> DataLoader[RawBatch]:
        """Reads a split once, in stored order and without augmentation, each sample on one device alone."""
        return self._loader(self._evaluated(split), self._device_batch_size(), is_training=False)

    def evaluation_part(self, split: Split, *, part: int, num_parts: int) -> Iterable[RawBatch]:
        """Reads every `num_parts`-th batch of a split from the `part`-th on, in stored order and without augmentation.

        Batches are of `global_batch_size` and the same whatever the number of parts, and all parts have equally many:
        where some run short, they begin again from the first, so a sample may be served twice.
        """
        samples = self._evaluated(split)
        return self._load(samples, PartOfBatches(len(samples), self.global_batch_size, part=part, num_parts=num_parts))

    def fingerprints(self) -> dict[str, str]:
        """Names the content of each split that has been read, as far as it has been limited."""
        return {split: samples.fingerprint for split, samples in self._splits.items()}

    def held_out_images(self, count: int) -> ImageBatch:
        """Reads up to `count` validation images, spread evenly over the split; always the same ones."""
        samples = self._evaluated("val")
        count = min(count, len(samples))
        keys = [SampleKey(0, position * len(samples) // count) for position in range(count)]
        return self.to_model_input(samples.__getitems__(keys), augmented=False)

    def on_after_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> ImageBatch:
        if batch.bad and self.trainer is not None:
            self._list_bad_images(Path(self.trainer.default_root_dir), batch.bad)
        return self.to_model_input(batch, augmented=self.trainer is not None and self.trainer.training)

    def to_model_input(self, batch: RawBatch, *, augmented: bool) -> ImageBatch:
        """Does what is left for the device: cuts images from memory, normalises, erases boxes in training.

        Without `augmented`, and where they were not read for training, images from memory are cropped at the centre.
        """
        images: Tensor = batch.image
        keys = augmentation_keys(self.seed, batch.epoch, batch.index)
        if augmented and batch.crop is not None:
            images = self._normalise_in_place(self._cut(batch.image, batch.crop, keys))
        elif self.holds_images_in_memory:
            images = self.normalise(resize_and_centre_crop(images, self.image_size, self.crop_pct))
        else:
            images = self.normalise(images)
        if augmented:
            images = self.augmentation.erase_batch(images, keys)
        return ImageBatch(images, batch.label, batch.index.masked_fill(batch.epoch == FILLER_EPOCH, FILLER_INDEX))

    def _cut(
        self,
        images: UInt8[Tensor, "b 3 old_height old_width"],
        crop: Int[Tensor, "b 5"],
        keys: Int[Tensor, " b"],
    ) -> Float[Tensor, "b 3 height width"]:
        """Training crops of images from memory, in 0..255."""
        top, left, height, width, flipped = crop.unbind(1)
        boxes, interpolation = Boxes(top, left, height, width), self.augmentation.interpolation
        cropped = resize_boxes(images, boxes, self.image_size, interpolation, flipped == 1)
        return self.augmentation.distort_batch(cropped, keys, self.pixel_mean)

    def normalise(self, images: Shaped[Tensor, "b channels height width"]) -> Images:
        """Divides values of 0..255 by 255, subtracts the mean and divides by the deviation."""
        return self._normalise_in_place(images.to(torch.float32, copy=True))

    def _normalise_in_place(self, images: Images) -> Images:
        """Each temporary costs a CPU as much as the arithmetic."""
        mean = torch.tensor(self.pixel_mean, device=images.device)[:, None, None]
        std = torch.tensor(self.pixel_std, device=images.device)[:, None, None]
        return images.mul_(1.0 / (255.0 * std)).sub_(mean / std)

    def _guarded(self, samples: ImageDataset, crop: LoaderCrop) -> LoaderDataset:
        if self.on_bad_image == "skip" and samples.is_streamed:
            raise ValueError(
                "data.on_bad_image=skip trains on another image in the place of a bad one, which a stream cannot look "
                "up; set data.streaming=false or data.on_bad_image=raise"
            )
        if self.on_bad_image == "skip":
            return ReplaceBadImage(samples, crop, seed=self.seed)
        return RaiseOnBadImage(samples, crop, advice=IN_TRAINING)

    def _evaluated(self, split: Split) -> RaiseOnBadImage:
        crop = CentreCrop(size=self.image_size, crop_pct=self.crop_pct)
        return RaiseOnBadImage(self.dataset(split), crop, advice=IN_EVALUATION)

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self._bad_images is not None:
            _log.warning(
                "%d of %d training images could not be read and were replaced; %s lists them",
                len(self._bad_images),
                self._bad_images.num_images,
                self._bad_images.path,
            )

    def _list_bad_images(self, folder: Path, bad: Sequence[BadImage]) -> None:
        if self._bad_images is None:
            count = len(self.dataset("train"))
            self._bad_images = BadImageList(folder, num_images=count, max_fraction=self.max_bad_fraction)
        self._bad_images.add(bad)

    def _loader(self, samples: LoaderDataset, batch_size: int, *, is_training: bool) -> DataLoader[RawBatch]:
        batches = KeyedBatchSampler(
            num_samples=len(samples),
            device_batch_size=batch_size,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self._world_size,
            seed=self.seed if is_training and not samples.dataset.is_streamed else None,
            drop_last=is_training,
            position=self._training_position if is_training else _beginning,
            accumulated=self._accumulated if is_training else 1,
        )
        return self._load(samples, batches, is_training=is_training)

    def _load(
        self, samples: LoaderDataset, batches: Sampler[list[SampleKey]], *, is_training: bool = False
    ) -> DataLoader[RawBatch]:
        num_workers = 0 if self.holds_images_in_memory else self.num_workers
        return DeferredDataLoader(
            samples,
            batch_sampler=samples.dataset.wrap_sampler(batches, seed=self.seed if is_training else None),
            collate_fn=_as_fetched,
            num_workers=num_workers,
            persistent_workers=is_training and num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=leave_signals_to_main,
        )

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _accumulated(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def _device_batch_size(self) -> int:
        accumulated = self._accumulated
        parts = self._world_size * accumulated
        batch_size, rest = divmod(self.global_batch_size, parts)
        if rest or not batch_size:
            nearest = max(1, round(self.global_batch_size / parts)) * parts
            raise ValueError(
                f"global_batch_size={self.global_batch_size} does not divide by {self._world_size} devices x "
                f"{accumulated} accumulated batches; use {nearest}"
            )
        return batch_size

    def _training_position(self) -> tuple[int, int]:
        """The epoch about to begin and the batches of it done before an interruption, as the trainer counts them."""
        if self.trainer is None:
            return 0, 0
        loop: Any = self.trainer.fit_loop
        return loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.processed


def _beginning() -> tuple[int, int]:
    return 0, 0


def _as_fetched(batch: Any) -> Any:
    return batch
