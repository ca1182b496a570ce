"""Images that can only be read as a stream, one after the other."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Sampler

from unmask.data.dataset import UNLABELED, ImageCrop, ImageDataset, RawBatch, SampleKey, gather_images
from unmask.data.files.pixels import Pixels
from unmask.randomness import stream_key

Row = Mapping[str, Any]
_LARGEST_SEED = 2**63 - 1  # what numpy's generators take


class StreamedKey(SampleKey):
    """The key of a sample together with its row, which a worker could not look up."""

    row: Row


class StreamedDataset(ImageDataset):
    """A split that is read from its beginning in every epoch; a sample's index is its place in that epoch's order.

    Rows are read by the process that trains and handed to the loader's workers, which decode and crop them. So any
    number of workers see the same order, and several devices do too: each reads the whole stream, still encoded, and
    decodes its own samples. A resumed epoch reads again, and leaves out, what was done.

    Args:
        table: A `datasets.IterableDataset` whose image column is not decoded.
        image_column: Its name.
        label_column: Name of the column of class numbers; None: no labels.
        class_names: See `ImageDataset`.
        num_images: How many rows there are.
        shuffle_buffer: Rows the order is shuffled among; the files a table consists of are shuffled as well.
        decode: Reads a cell of the image column; `name` is what messages call it.
        name: What messages call the table.
    """

    is_streamed = True

    def __init__(
        self,
        table: Any,
        image_column: str,
        label_column: str | None,
        class_names: Sequence[str],
        *,
        num_images: int,
        shuffle_buffer: int,
        decode: Callable[[Any, str], Pixels],
        name: str,
    ) -> None:
        self.table = table
        self.image_column, self.label_column = image_column, label_column
        self.class_names = tuple(class_names)
        self.num_images = num_images
        self.shuffle_buffer = shuffle_buffer
        self.decode = decode
        self.name = name

    def __len__(self) -> int:
        return self.num_images

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"table": None}  # workers are handed the rows

    @property
    def is_labeled(self) -> bool:
        return bool(self.class_names)

    @property
    def labels(self) -> Int[Tensor, " n"]:  # type: ignore[override]  # a column elsewhere
        raise ValueError(
            f"{self.name} is streamed, so its labels are not known before it has been read; set data.streaming=false"
        )

    @cached_property
    def fingerprint(self) -> str:
        content = "\n".join([self.name, str(self.num_images), *self.class_names])
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def subset(self, indices: Int[Tensor, " m"]) -> "StreamedDataset":
        raise ValueError(f"{self.name} is streamed, so no part of it can be chosen; set data.streaming=false")

    def wrap_sampler(self, batches: Sampler[list[SampleKey]], *, seed: int | None) -> "StreamedBatches":
        return StreamedBatches(self, batches, seed=seed)

    def read(self, keys: Sequence[SampleKey], crop: ImageCrop) -> RawBatch:
        """Reads a batch; keys without rows are looked for from the beginning of the stored order."""
        if not all(isinstance(key, StreamedKey) for key in keys):
            keys = next(iter(StreamedBatches(self, [list(keys)], seed=None)))
        rows = [key.row for key in keys if isinstance(key, StreamedKey)]
        images = [
            crop(self.decode(row[self.image_column], f"row {key.index} of {self.name}"), key)
            for key, row in zip(keys, rows, strict=True)
        ]
        epoch, index = torch.tensor([tuple(key) for key in keys]).unbind(1)
        return RawBatch(gather_images(images), torch.tensor([self._label(row) for row in rows]), index, epoch)

    def rows(self, epoch: int, seed: int | None) -> Iterator[Row]:
        """Begins an epoch; without a seed in stored order."""
        if seed is None:
            return iter(self.table)
        key = stream_key(seed, "order", epoch) & _LARGEST_SEED
        return iter(self.table.shuffle(seed=key, buffer_size=self.shuffle_buffer))

    def miscounted(self, found: str) -> str:
        """Says that the number of images is another than was stated."""
        return f"{self.name} has {found} rows, not {self.num_images}; set data.num_images to what it has"

    def _label(self, row: Row) -> int:
        label = None if self.label_column is None else row[self.label_column]
        return UNLABELED if label is None else max(int(label), UNLABELED)


class StreamedBatches(Sampler[list[SampleKey]]):
    """Puts to each key of a sampler its row, reading the stream as far as that takes.

    Args:
        dataset: What is streamed.
        batches: Whose keys rise within an epoch; rows between them, which are other devices' or done, are left out.
        seed: Key of the order in each epoch; None keeps the stored order.
    """

    def __init__(self, dataset: StreamedDataset, batches: Iterable[list[SampleKey]], *, seed: int | None) -> None:
        self.dataset = dataset
        self.batches = batches
        self.seed = seed

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # samplers of batches have one

    def __iter__(self) -> Iterator[list[SampleKey]]:
        rows: Iterator[Row] = iter(())
        epoch, position = -1, 0
        for keys in self.batches:
            batch: list[SampleKey] = []
            for key in keys:
                if key.epoch != epoch or key.index < position:
                    rows, epoch, position = self.dataset.rows(key.epoch, self.seed), key.epoch, 0
                batch.append(self._with_row(key, next(itertools.islice(rows, key.index - position, None), None)))
                position = key.index + 1
            yield batch
        rest = len(self.dataset) - position
        left = sum(1 for _ in itertools.islice(rows, rest + 1))
        if left != rest:
            found = f"only {position + left}" if left < rest else f"more than {len(self.dataset)}"
            raise ValueError(self.dataset.miscounted(found))

    def _with_row(self, key: SampleKey, row: Row | None) -> StreamedKey:
        if row is None:
            raise ValueError(self.dataset.miscounted(f"at most {key.index}"))
        found = StreamedKey(*key)
        found.row = row
        return found
