"""How images that cannot be read are handled: the run stops, or another image is used in their place."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch

from unmask.data.dataset import BadImage, ImageDataset, LoaderCrop, LoaderDataset, RawBatch, SampleKey
from unmask.data.files.decoding import BadImageError
from unmask.randomness import keyed_uniform, sample_keys

OnBadImage = Literal["raise", "skip"]

BAD_IMAGES_NAME = "bad_images.txt"
"""The file in a run's folder that lists them: path, reason and epoch, separated by tabs."""

IN_TRAINING = "repair or remove the file, or set data.on_bad_image=skip; python -m unmask.inspect finds others"
IN_EVALUATION = "repair or remove the file: evaluation never replaces images"

_MAX_REPLACEMENTS = 10  # that may be bad themselves
_NUM_NAMED = 3  # in the log; the file has them all

_log = logging.getLogger(__name__)


class RaiseOnBadImage(LoaderDataset):
    """Raises on the first image that cannot be read; `advice` says what to do about it."""

    def __init__(self, dataset: ImageDataset, crop: LoaderCrop, *, advice: str) -> None:
        super().__init__(dataset, crop)
        self.advice = advice

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        try:
            return super().__getitems__(keys)
        except BadImageError as error:
            raise BadImageError(f"{error}; {self.advice}") from None


class ReplaceBadImage(LoaderDataset):
    """Replaces an image that cannot be read by another of the split, drawn by (seed, epoch, sample).

    The images of an epoch therefore depend neither on workers nor on devices. A replacement may be bad too; after ten
    bad ones in a row an error is raised. Batches say which images were bad (`RawBatch.bad`).
    """

    def __init__(self, dataset: ImageDataset, crop: LoaderCrop, *, seed: int) -> None:
        super().__init__(dataset, crop)
        self.seed = seed
        self._errors: dict[int, BadImageError] = {}  # of samples known to be bad: each worker learns them once

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        skipped: list[BadImage] = []
        chosen = [self._first_readable(key, skipped) for key in keys]
        try:
            batch = super().__getitems__(chosen)
        except BadImageError:
            skipped.clear()
            parts = [self._read_one(key, skipped) for key in keys]
            image, label, index, epoch = (torch.cat(column) for column in list(zip(*parts, strict=True))[:4])
            batch = RawBatch(image, label, index, epoch)
        return batch._replace(bad=tuple(skipped))

    def _read_one(self, key: SampleKey, skipped: list[BadImage]) -> RawBatch:
        while True:
            known: list[BadImage] = []
            chosen = self._first_readable(key, known)
            try:
                batch = super().__getitems__([chosen])
            except BadImageError as error:
                # Anew: the one raised holds the frames it came through, and with them the batches they were making.
                self._errors[chosen.index] = BadImageError(error.name, error.reason)
            else:
                skipped += known
                return batch

    def _first_readable(self, key: SampleKey, skipped: list[BadImage]) -> SampleKey:
        """The sample, or the first in its place, that is not known to be bad; notes those that are."""
        for candidate in self._candidates(key):
            if candidate.index not in self._errors:
                return candidate
            error = self._errors[candidate.index]
            skipped.append(BadImage(key.epoch, error.name, error.reason))
        raise BadImageError(f"{self._errors[key.index]}; so were the {_MAX_REPLACEMENTS} images drawn in its place")

    def _candidates(self, key: SampleKey) -> Iterator[SampleKey]:
        yield key
        keys = sample_keys(self.seed, "replacement", key.epoch, torch.tensor([key.index]))
        for draw in keyed_uniform(keys, _MAX_REPLACEMENTS)[0].double().mul(len(self.dataset)).long().tolist():
            yield SampleKey(key.epoch, draw)


class BadImagePolicy:
    """What training does about images that cannot be read.

    Args:
        on_bad_image: "raise" stops the run; "skip" uses another image and lists the bad one.
        max_fraction: Fraction of the training images that may be bad with "skip", in 0..1; more stop the run.
        seed: Key of the replacements.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(self, on_bad_image: OnBadImage, *, max_fraction: float, seed: int) -> None:
        if on_bad_image not in get_args(OnBadImage):
            raise ValueError(f"data.on_bad_image must be 'raise' or 'skip', got {on_bad_image!r}")
        if not 0.0 <= max_fraction <= 1.0:
            raise ValueError(f"data.max_bad_fraction must be a fraction in 0..1, got {max_fraction}")
        self.on_bad_image = on_bad_image
        self.max_fraction = max_fraction
        self.seed = seed
        self._list: BadImageList | None = None

    def guard(self, dataset: ImageDataset, crop: LoaderCrop) -> LoaderDataset:
        """Puts the policy between a data set and its loader.

        Raises:
            ValueError: A stream cannot look up another image.
        """
        if self.on_bad_image == "raise":
            return RaiseOnBadImage(dataset, crop, advice=IN_TRAINING)
        if dataset.is_streamed:
            raise ValueError(
                "data.on_bad_image=skip uses another image in the place of a bad one, which a stream cannot look up; "
                "set data.streaming=false or data.on_bad_image=raise"
            )
        return ReplaceBadImage(dataset, crop, seed=self.seed)

    def record(self, bad: Sequence[BadImage], *, folder: Path, num_images: int) -> None:
        """Lists images that were replaced in the run's folder.

        Raises:
            BadImageError: They are too many now.
        """
        if self._list is None:
            self._list = BadImageList(folder, num_images=num_images, max_fraction=self.max_fraction)
        self._list.add(bad)

    def summarize(self) -> None:
        """Logs how many images of the run were bad, if any."""
        if self._list is not None:
            _log.warning(
                "%d of %d training images could not be read and were replaced; %s lists them",
                len(self._list),
                self._list.num_images,
                self._list.path,
            )


class BadImageList:
    """Lists the bad images of a run in a file and ends the run when they are too many.

    Processes of one run share the file, and so does a resumed run with its earlier part: what counts is how many
    different images it names.

    Args:
        folder: Of the run.
        num_images: In the training split.
        max_fraction: Of them that may be bad.
    """

    def __init__(self, folder: Path, *, num_images: int, max_fraction: float) -> None:
        self.path = folder / BAD_IMAGES_NAME
        self.num_images = num_images
        self.max_fraction = max_fraction
        self._listed: set[tuple[str, int]] = set()
        self._names: set[str] = set()
        self._has_failed = False

    def __len__(self) -> int:
        return len(self._names)

    def add(self, bad: Sequence[BadImage]) -> None:
        """Lists images.

        Raises:
            BadImageError: They are too many now.
        """
        for image in bad:
            name = image.name.translate({ord(mark): " " for mark in "\t\r\n"})
            if (name, image.epoch) not in self._listed:
                self._listed.add((name, image.epoch))
                self._append(f"{name}\t{' '.join(image.reason.split())}\t{image.epoch}\n")
            if name not in self._names:
                self._names |= {name, *self._read_names()}
                self._announce(image)
                self._require_few(image)

    def _append(self, line: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(line)
        except OSError as error:
            if not self._has_failed:
                _log.error("%s could not be written (%s); bad images are only counted", self.path, error.strerror)
            self._has_failed = True

    def _read_names(self) -> set[str]:
        try:
            lines = self.path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        except OSError:
            return set()  # this process counts its own
        return {line.split("\t")[0] for line in lines if line}

    def _announce(self, image: BadImage) -> None:
        if len(self) <= _NUM_NAMED:
            _log.warning("bad image %s: %s; replaced by another image", image.name, image.reason)
        elif len(self) == _NUM_NAMED + 1:
            _log.warning("more bad images are listed in %s", self.path)

    def _require_few(self, image: BadImage) -> None:
        if len(self) > self.max_fraction * self.num_images:
            percentage = f"{len(self) / self.num_images:.2%}"
            raise BadImageError(
                f"{len(self)} of {self.num_images:,} training images are bad ({percentage}), more than "
                f"data.max_bad_fraction={self.max_fraction:g} allows, the last {image.name}: {image.reason}; "
                f"{self.path} lists them; repair or remove them, or raise data.max_bad_fraction"
            )
