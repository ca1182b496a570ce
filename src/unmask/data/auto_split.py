"""Sources whose missing splits are held out by rule."""

import logging
from abc import abstractmethod
from functools import cached_property
from typing import Any

from unmask.data.datamodule import ImageDataModule
from unmask.data.dataset import ImageDataset
from unmask.data.files.splits import Split
from unmask.data.splits import hold_out

_log = logging.getLogger(__name__)


class AutoSplitDataModule(ImageDataModule):
    """Images read one by one; the splits that the source does not have are held out from its training images.

    What is held out is spread evenly over the classes and depends on the images' order and `split_seed` alone, so that
    runs of any seed, and their evaluation, agree on it. No test image is ever in another split.

    Args:
        val_fraction, test_fraction: Fraction of the training images, in [0, 1), held out where the source has no such
            split, at least one image; 0 holds none out. A whole number from 1 on is a number of images. Ours: 0.1 each.
        split_seed: Key of what is held out.
        crop_pct, shared: See `ImageDataModule`; by default 224 px out of 256, as of timm.

    Raises:
        ValueError: A fraction is out of range; when a split is read, there is none, or too few images to make one.
    """

    holds_images_in_memory = False

    def __init__(
        self,
        *,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        crop_pct: float = 0.875,
        **shared: Any,
    ) -> None:
        super().__init__(crop_pct=crop_pct, **shared)
        fractions = [fraction for fraction in (val_fraction, test_fraction) if fraction < 1.0]
        counts = [fraction for fraction in (val_fraction, test_fraction) if fraction >= 1.0]
        if (
            min(val_fraction, test_fraction) < 0.0
            or sum(fractions) >= 1.0
            or any(count != int(count) for count in counts)
        ):
            raise ValueError(
                "data.val_fraction and data.test_fraction must be fractions of the training images that leave some to "
                f"train on, or whole numbers of images, got {val_fraction} and {test_fraction}"
            )
        self.fractions: dict[Split, float] = {"test": test_fraction, "val": val_fraction}
        self.split_seed = split_seed

    def settings_without_effect(self) -> dict[str, str]:
        """Nothing is held out for a split that the source has itself."""
        splits: tuple[Split, ...] = ("val", "test")
        own = {split: origin for split in splits if (origin := self.origin(split)) is not None}
        idle = {f"{split}_fraction": f"the {split} split is read from {origin}" for split, origin in own.items()}
        if len(own) == len(splits):
            idle["split_seed"] = "every split comes from the source"
        return super().settings_without_effect() | idle

    @abstractmethod
    def origin(self, split: Split) -> str | None:
        """Names where a split of the source's own lies; None if the source has none. Always a name for "train"."""

    @abstractmethod
    def read_split(self, split: Split) -> ImageDataset:
        """Reads a split of the source's own, whole."""

    def load_split(self, split: Split) -> ImageDataset:
        origin = self.origin(split)
        dataset = self.read_split(split) if origin is not None and split != "train" else self._divide(split)
        classes = f"{len(dataset.class_names)} classes" if dataset.is_labeled else "no labels"
        place = origin if origin is not None else f"{self.origin('train')}, held out"
        _log.info("%s split: %d images, %s, from %s", split, len(dataset), classes, place)
        return dataset

    def describe_splits(self) -> str:
        """Says as well how many images were set aside for a test that the user may know nothing of."""
        is_set_aside = self.origin("test") is None and self.fractions["test"] > 0
        test = f", {len(self.dataset('test')):,} of them set aside to test (eval.py)" if is_set_aside else ""
        return f"{super().describe_splits()}{test}"

    @cached_property
    def training_images(self) -> ImageDataset:
        """All of them, before anything is held out."""
        return self.read_split("train")

    def _divide(self, split: Split) -> ImageDataset:
        everything = self.training_images
        missing = {
            name: fraction for name, fraction in self.fractions.items() if fraction > 0.0 and self.origin(name) is None
        }
        total = len(everything)
        counts = {
            name: int(max(1, round(fraction * total) if fraction < 1 else fraction))
            for name, fraction in missing.items()
        }
        if sum(counts.values()) >= len(everything):
            raise ValueError(
                f"{self.origin('train')} has too few images ({len(everything)}) to hold out "
                f"{' and '.join(f'{count} for {name}' for name, count in counts.items())}; "
                f"set {' and '.join(f'data.{name}_fraction=0' for name in counts)}, or add images"
            )
        parts: dict[Split, ImageDataset] = {"train": everything}
        for name, count in counts.items():  # test first, so that it does not depend on val_fraction
            kept, held_out = hold_out(parts["train"].labels, count, seed=self.split_seed)
            parts[name] = parts["train"].subset(held_out)
            parts["train"] = parts["train"].subset(kept)
        if split not in parts:
            raise ValueError(
                f"{self.origin('train')} has no {split} split beside it and data.{split}_fraction=0; "
                f"set a fraction above 0, or {self.how_to_add(split)}"
            )
        return parts[split]

    @abstractmethod
    def how_to_add(self, split: Split) -> str:
        """Says how a user gives the source a split of its own."""
