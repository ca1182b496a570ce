"""What becomes of images that cannot be read: the run stops, or another is trained on in their place."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from unmask.data.dataset import BadImage, ImageDataset, LoaderCrop, LoaderDataset, RawBatch, SampleKey
from unmask.data.files.decoding import BadImageError
from unmask.randomness import keyed_uniform, sample_keys

OnBadImage = Literal["raise", "skip"]

BAD_IMAGES_NAME = "bad_images.txt"
"""The file in a run's folder that lists them: path, reason and epoch, separated by tabs."""

IN_TRAINING = "mend or remove it, or set data.on_bad_image=skip; python -m unmask.inspect looks for others"
IN_EVALUATION = "mend or remove it: in evaluation no image is replaced"

_MAX_REPLACEMENTS = 10  # that may be bad themselves
_NUM_NAMED = 3  # in the log; the file has them all

_log = logging.getLogger(__name__)


class RaiseOnBadImage(LoaderDataset):
    """Samples of which a bad one ends the reading; `advice` says what to do about it."""

    def __init__(self, samples: ImageDataset, crop: LoaderCrop, *, advice: str) -> None:
        super().__init__(samples, crop)
        self.advice = advice

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        try:
            return super().__getitems__(keys)
        except BadImageError as error:
            raise BadImageError(f"{error}; {self.advice}") from None


class ReplaceBadImage(LoaderDataset):
    """Samples of which a bad one is replaced by another of the split, drawn by (seed, epoch, sample).

    So the images of an epoch depend neither on workers nor on devices. A replacement may be bad too; after ten bad ones
    in a row the reading ends. Batches say which images were bad (`RawBatch.bad`).
    """

    def __init__(self, samples: ImageDataset, crop: LoaderCrop, *, seed: int) -> None:
        super().__init__(samples, crop)
        self.seed = seed
        self._errors: dict[int, BadImageError] = {}  # of samples known to be bad: each worker learns them once

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        skipped: list[BadImage] = []
        chosen = [self._first_sound(key, skipped) for key in keys]
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
            chosen = self._first_sound(key, known)
            try:
                batch = super().__getitems__([chosen])
            except BadImageError as error:
                self._errors[chosen.index] = error
            else:
                skipped += known
                return batch

    def _first_sound(self, key: SampleKey, skipped: list[BadImage]) -> SampleKey:
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(line)

    def _read_names(self) -> set[str]:
        lines = self.path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        return {line.split("\t")[0] for line in lines if line}

    def _announce(self, image: BadImage) -> None:
        if len(self) <= _NUM_NAMED:
            _log.warning("bad image %s: %s; another is trained on in its place", image.name, image.reason)
        elif len(self) == _NUM_NAMED + 1:
            _log.warning("more bad images are listed in %s", self.path)

    def _require_few(self, image: BadImage) -> None:
        if len(self) > self.max_fraction * self.num_images:
            share = f"{len(self) / self.num_images:.2%}"
            raise BadImageError(
                f"{len(self)} of {self.num_images:,} training images are bad ({share}), more than "
                f"data.max_bad_fraction={self.max_fraction:g} allows, the last {image.name}: {image.reason}; "
                f"{self.path} lists them; mend or remove them, or raise data.max_bad_fraction"
            )
