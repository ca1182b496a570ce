"""Data sets of the Hugging Face hub, by name or from a local folder."""

import io
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from unmask.data.datamodule import Split
from unmask.data.decoding import IMAGE_SUFFIXES, BadImageError, ImageDecoder
from unmask.data.divided import DividedImages
from unmask.data.samples import UNLABELLED, ImageCrop, ImageSamples, RawBatch, SampleKey

_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "category")  # where no column says it is one


class HubImages(ImageSamples):
    """Rows of a table of encoded images, decoded and cropped one by one in the loader's workers.

    Args:
        table: A `datasets.Dataset` whose image column is not decoded.
        image_column: Its name.
        labels, class_names: See `ImageSamples`.
        decoder: Reads an image.
        name: What messages call the table.
    """

    def __init__(
        self,
        table: Any,
        image_column: str,
        labels: Int[Tensor, " n"],
        class_names: Sequence[str],
        *,
        decoder: ImageDecoder,
        name: str,
    ) -> None:
        self.table = table
        self.image_column = image_column
        self.labels = labels
        self.class_names = tuple(class_names)
        self.decoder = decoder
        self.name = name

    def read(self, keys: Sequence[SampleKey], crop: ImageCrop) -> RawBatch:
        stored = self.table[[key.index for key in keys]][self.image_column]
        images = torch.stack(
            [crop(self._decode(image, key.index), key) for image, key in zip(stored, keys, strict=True)]
        )
        epoch, index = torch.tensor(keys).unbind(1)
        return RawBatch(images, self.labels[index], index, epoch)

    def stored(self, index: int) -> tuple[bytes, str]:
        image = self.table[index][self.image_column]
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        known = PurePosixPath(image["path"] or "").suffix.lower().lstrip(".")
        return content, known if known in IMAGE_SUFFIXES else str(Image.open(io.BytesIO(content)).format).lower()

    def subset(self, indices: Int[Tensor, " m"]) -> "HubImages":
        chosen = self.table.select(indices.tolist())
        labels = self.labels[indices]
        return HubImages(chosen, self.image_column, labels, self.class_names, decoder=self.decoder, name=self.name)

    def _decode(self, image: Mapping[str, Any] | None, row: int) -> Tensor:
        if image is None:
            raise BadImageError(f"row {row} of {self.name}", "has no image")
        if image["bytes"] is None:
            return self.decoder.read(image["path"])
        return self.decoder.decode(image["bytes"], f"{image['path'] or 'without name'} (row {row} of {self.name})")


class Hub(DividedImages):
    """A data set of the Hugging Face hub: `uoft-cs/cifar10`, or a local folder of Parquet files laid out like one.

    The image column is the one of type Image, the label column the one of type ClassLabel, or else of a usual name
    and whole numbers; both may be named. Splits called train, validation and test are used as they are. Needs the
    extra `hub`.

    Args:
        root: A name on the hub, or a folder.
        config_name: Which of several configurations.
        revision: Commit or tag on the hub.
        image_column, label_column: Names; None finds them. A data set without label column is unlabelled.
        shared: See `DividedImages`.

    Raises:
        ValueError: `datasets` is not installed, the data set cannot be found, or a column cannot be told.
    """

    def __init__(
        self,
        *,
        root: str,
        config_name: str | None = None,
        revision: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.root, self.config_name, self.revision = root, config_name, revision
        self.image_column, self.label_column = image_column, label_column

    def origin(self, split: Split) -> str | None:
        return f"{self.root}, split {self._names[split]}" if split in self._names else None

    def how_to_add(self, split: Split) -> str:
        return f"choose a data set with a split {split}"

    def read_split(self, split: Split) -> HubImages:
        datasets = import_module("datasets")
        table = self._tables[self._names[split]]
        image_column, label_column = self._image_column(table.features), self._label_column(table.features)
        labels, names = torch.full((len(table),), UNLABELLED), ()
        if label_column is not None:
            labels = torch.tensor([UNLABELLED if label is None else label for label in table[label_column]])
            feature = table.features[label_column]
            names = tuple(getattr(feature, "names", None) or map(str, range(int(labels.max()) + 1)))
            labels = labels.clamp(min=UNLABELLED)
        undecoded = table.cast_column(image_column, datasets.Image(decode=False)).select_columns([image_column])
        class_names = names if (labels >= 0).any() else ()
        return HubImages(
            undecoded, image_column, labels, class_names, decoder=self.decoder, name=str(self.origin(split))
        )

    @cached_property
    def _tables(self) -> Any:
        try:
            datasets = import_module("datasets")
        except ImportError as error:
            raise ValueError("data=hub reads with the package datasets; pip install 'unmask[hub]'") from error
        source = os.path.expanduser(self.root)  # noqa: PTH111 (a name on the hub is no path)
        try:
            return datasets.load_dataset(source, self.config_name, revision=self.revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"data.root={self.root} cannot be read as a data set of the hub: {reason}") from error

    @cached_property
    def _names(self) -> dict[Split, str]:
        """What the data set calls each of our splits."""
        found: dict[Split, str] = {}
        for split, names in _SPLIT_NAMES.items():
            present = [name for name in names if name in self._tables]
            if present:
                found[split] = present[0]
        if "train" not in found:
            raise ValueError(f"{self.root} has no split train; it has {', '.join(self._tables)}")
        return found

    def _image_column(self, features: Mapping[str, Any]) -> str:
        candidates = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        chosen = self.image_column if self.image_column is not None else candidates[0] if len(candidates) == 1 else None
        if chosen not in features:
            raise ValueError(
                f"{self.root}: the image column is not clear; set data.image_column to one of {', '.join(features)}"
            )
        return str(chosen)

    def _label_column(self, features: Mapping[str, Any]) -> str | None:
        if self.label_column is not None:
            if self.label_column not in features:
                raise ValueError(
                    f"{self.root} has no column {self.label_column!r}; set data.label_column to one of "
                    f"{', '.join(features)}"
                )
            return self.label_column
        declared = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
        usual = [
            name for name in _LABEL_NAMES if name in features and "int" in str(getattr(features[name], "dtype", ""))
        ]
        return next(iter(declared or usual), None)
