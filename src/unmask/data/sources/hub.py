"""Data sets of the Hugging Face hub, by name or from a local folder."""

import io
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec  # type: ignore[import-untyped]
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from unmask.data.auto_split import AutoSplitDataModule
from unmask.data.dataset import UNLABELED, ImageCrop, ImageDataset, RawBatch, SampleKey, gather_images, key_columns
from unmask.data.files.decoding import IMAGE_SUFFIXES, BadImageError, ImageDecoder
from unmask.data.files.opening import open_file
from unmask.data.files.pixels import Pixels
from unmask.data.files.splits import SPLIT_NAMES, Split
from unmask.data.sources.streamed import StreamedDataset

_log = logging.getLogger(__name__)

_LABEL_NAMES = ("label", "labels", "fine_label", "class", "category")  # where no column says it is one


class OwnFiles:
    """Opens the image files that a table's rows name, as far as they belong to the data set itself.

    A row could name any file of this machine, or any URL.

    Args:
        root: As of `Hub`.
    """

    def __init__(self, root: str) -> None:
        folder = Path(root).expanduser()
        self.is_local = folder.exists()
        self.root = root
        self.folder = folder.resolve()

    def read(self, path: str, row: str) -> bytes:
        """Reads a file.

        Raises:
            BadImageError: It lies outside the data set, or cannot be read.
        """
        place = path.rpartition("::")[2]  # of the archive, where `path` names a member of one
        if not self._is_own(place) or any(not link.startswith("zip://") for link in path.split("::")[:-1]):
            raise BadImageError(row, f"names {path[:200]!r}, which is no file of {self.root}")
        try:
            if "://" not in path:
                with open_file(Path(self.folder, path)) as own:
                    return own.read()
            with fsspec.open(path, "rb") as file:
                content: bytes = file.read()
                return content
        except OSError as error:
            raise BadImageError(row, f"names {path[:200]!r}, which cannot be read ({error})") from error

    def _is_own(self, place: str) -> bool:
        if "://" in place:
            own = (f"hf://datasets/{self.root}@", f"https://huggingface.co/datasets/{self.root}/")
            return not self.is_local and place.startswith(own) and ".." not in place
        folders = [self.folder] if self.is_local else _cache_folders()
        return any(Path(self.folder, place).resolve().is_relative_to(folder) for folder in folders)


def _cache_folders() -> list[Path]:
    """Where `datasets` keeps what it has downloaded."""
    datasets, hub = import_module("datasets").config, import_module("huggingface_hub").constants
    return [Path(datasets.HF_DATASETS_CACHE).resolve(), Path(hub.HF_HUB_CACHE).resolve()]


class HubDataset(ImageDataset):
    """Rows of a table of encoded images, decoded and cropped one by one in the loader's workers.

    Args:
        table: A `datasets.Dataset` whose image column is not decoded.
        image_column: Its name.
        labels, class_names: See `ImageDataset`.
        decoder: Reads an image.
        files: Opens those that a row names.
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
        files: OwnFiles,
        name: str,
    ) -> None:
        self.table = table
        self.image_column = image_column
        self.labels = labels
        self.class_names = tuple(class_names)
        self.decoder = decoder
        self.files = files
        self.name = name

    def read(self, keys: Sequence[SampleKey], crop: ImageCrop) -> RawBatch:
        cells = self.table[[key.index for key in keys]][self.image_column]
        images = gather_images(
            [
                crop(decode_cell(self.decoder, self.files, cell, f"row {key.index} of {self.name}"), key)
                for cell, key in zip(cells, keys, strict=True)
            ]
        )
        epoch, index = key_columns(keys)
        return RawBatch(images, self.labels[index], index, epoch)

    def stored(self, index: int) -> tuple[bytes, str]:
        image = self.table[index][self.image_column]
        content = image["bytes"] if image["bytes"] is not None else self.files.read(image["path"], self.name_of(index))
        known = PurePosixPath(image["path"] or "").suffix.lower().lstrip(".")
        return content, known if known in IMAGE_SUFFIXES else str(Image.open(io.BytesIO(content)).format).lower()

    def name_of(self, index: int) -> str:
        return f"row {index} of {self.name}"

    def subset(self, indices: Int[Tensor, " m"]) -> "HubDataset":
        chosen = self.table.select(indices.tolist())
        labels = self.labels[indices]
        return HubDataset(
            chosen, self.image_column, labels, self.class_names, decoder=self.decoder, files=self.files, name=self.name
        )


def decode_cell(decoder: ImageDecoder, files: OwnFiles, cell: Mapping[str, Any] | None, row: str) -> Pixels:
    """Decodes what an image column holds: the bytes of a file, or where it lies."""
    if cell is None:
        raise BadImageError(row, "has no image")
    content, path = cell["bytes"], cell["path"]
    if content is None and path is None:
        raise BadImageError(row, "has no image")
    content = files.read(path, row) if content is None else content
    return decoder.decode(content, f"{path or 'without name'} ({row})")


class Hub(AutoSplitDataModule):
    """A data set of the Hugging Face hub: `uoft-cs/cifar10`, or a local folder of Parquet files laid out like one.

    The image column is the one of type Image, the label column the one of type ClassLabel, or else of a usual name
    and whole numbers; both may be named. Splits called train, validation and test are used as they are. Needs the
    extra `hub`.

    Streaming reads rows as they come, without a copy of the data set on disk (`StreamedDataset`). What that cannot give
    is refused: splits held out of the training images, parts of a split, and replacements of bad images.

    Args:
        root: A name on the hub, or a folder.
        config_name: Which of several configurations.
        revision: Commit or tag on the hub.
        image_column, label_column: Names; None finds them. A data set without label column is unlabeled.
        train, val, test: What the data set calls the splits; None finds usual names.
        streaming: Read as a stream; every epoch and device reads the whole data set once.
        num_images: Of each split, by the data set's own names, where a streamed data set does not say so itself.
        shuffle_buffer: Encoded images in memory that a streamed order is shuffled among.
        shared: See `AutoSplitDataModule`.

    Raises:
        ValueError: `datasets` is not installed, the data set cannot be found, a column or the number of images cannot
            be told, or a setting does not go with streaming.
    """

    def __init__(
        self,
        *,
        root: str,
        config_name: str | None = None,
        revision: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        streaming: bool = False,
        num_images: Mapping[str, int] | None = None,
        shuffle_buffer: int = 1000,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if streaming:
            self._require_streamable(shuffle_buffer)
        self.named: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.streaming = streaming
        self.num_images = dict(num_images or {})
        self.shuffle_buffer = shuffle_buffer
        self.root, self.config_name, self.revision = root, config_name, revision
        self.image_column, self.label_column = image_column, label_column

    def origin(self, split: Split) -> str | None:
        return f"{self.root}, split {self._names[split]}" if split in self._names else None

    def how_to_add(self, split: Split) -> str:
        return f"name one of its splits ({', '.join(self._tables)}) by data.{split}=NAME"

    def load_split(self, split: Split) -> ImageDataset:
        if self.streaming and self.origin(split) is None:
            raise ValueError(
                f"{self.root} has no {split} split, and none can be held out of images that are read as a stream; "
                f"set data.streaming=false, or {self.how_to_add(split)}"
            )
        if split == "val" and self._names.get("val", "") == self._names.get("test"):
            _log.warning("data.val and data.test are one split: what is chosen on val is chosen on the test images")
        return super().load_split(split)

    def read_split(self, split: Split) -> HubDataset | StreamedDataset:
        datasets = import_module("datasets")
        table = self._tables[self._names[split]]
        image_column, label_column = self._image_column(table.features), self._label_column(table.features)
        columns = [column for column in (image_column, label_column) if column is not None]
        undecoded = table.cast_column(image_column, datasets.Image(decode=False)).select_columns(columns)
        declared = getattr(table.features[label_column], "names", None) if label_column is not None else None
        name = str(self.origin(split))
        if self.streaming:
            return StreamedDataset(
                undecoded,
                image_column,
                label_column if declared else None,
                declared or (),
                num_images=self._count(split, table),
                shuffle_buffer=self.shuffle_buffer,
                decode=partial(decode_cell, self.decoder, OwnFiles(self.root)),
                name=name,
            )
        labels = torch.full((len(table),), UNLABELED)
        if label_column is not None:
            labels = torch.tensor([UNLABELED if label is None else label for label in table[label_column]])
            labels = labels.clamp(min=UNLABELED)
        names = declared or tuple(map(str, range(int(labels.max()) + 1)))
        class_names = names if (labels >= 0).any() else ()
        return HubDataset(
            undecoded, image_column, labels, class_names, decoder=self.decoder, files=OwnFiles(self.root), name=name
        )

    def _require_streamable(self, shuffle_buffer: int) -> None:
        self.fractions = {}  # nothing is held out
        if self.bad_images.on_bad_image == "skip":
            raise ValueError(
                "data.on_bad_image=skip uses another image in place of a bad one, which data.streaming=true cannot; "
                "set one of them to its default"
            )
        if shuffle_buffer < 1:
            raise ValueError(f"data.shuffle_buffer must be at least 1 image, got {shuffle_buffer}")

    def _count(self, split: Split, table: Any) -> int:
        name = self._names[split]
        described = (table.info.splits or {}).get(name)
        count = self.num_images.get(name, getattr(described, "num_examples", None))
        if not count:
            raise ValueError(
                f"{self.origin(split)} does not say how many images it has, which the length of an epoch depends on; "
                f"set data.num_images={{{name}:NUMBER}}"
            )
        return int(count)

    @cached_property
    def _tables(self) -> Any:
        try:
            datasets = import_module("datasets")
        except ImportError as error:
            raise ValueError("data=hub reads with the package datasets; pip install 'unmask[hub]'") from error
        folder = Path(self.root).expanduser()
        # In full, since datasets takes a folder called `parquet` or `csv` for the format of that name.
        source = str(folder.absolute()) if folder.exists() else self.root
        try:
            return datasets.load_dataset(source, self.config_name, revision=self.revision, streaming=self.streaming)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"data.root={self.root} cannot be read as a data set of the hub: {reason}") from error

    @cached_property
    def _names(self) -> dict[Split, str]:
        """What the data set calls each of our splits."""
        found: dict[Split, str] = {}
        for split, usual in SPLIT_NAMES.items():
            chosen = self.named[split]
            if chosen is not None and chosen not in self._tables:
                raise ValueError(
                    f"{self.root} has no split {chosen}; set data.{split} to one of {', '.join(self._tables)}"
                )
            present = [name for name in ([chosen] if chosen is not None else usual) if name in self._tables]
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
                f"{self.root}: the image column cannot be determined; set data.image_column to one of "
                f"{', '.join(features)}"
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
