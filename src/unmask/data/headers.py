"""What the files of a data set's images say of them before any pixel is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from unmask.data.dataset import ImageDataset
from unmask.data.files.decoding import BadImageError, ImageDecoder, ImageHeader
from unmask.data.files.pixels import OpenFile


class FileWithHeader(NamedTuple):
    """An open file and what its header says."""

    file: OpenFile
    header: ImageHeader


@contextmanager
def open_with_header(dataset: ImageDataset, index: int, decoder: ImageDecoder) -> Iterator[FileWithHeader | None]:
    """Opens the file of an image and reads its header; None where the image has no file of its own.

    Raises:
        BadImageError: The file cannot be opened or read, also inside the `with`, or its header is enough to refuse it.
    """
    try:
        file = dataset.open(index)
        if file is None:
            yield None
            return
        with file:
            yield FileWithHeader(file, decoder.read_header(file, dataset.name_of(index)))
    except OSError as error:
        raise BadImageError(dataset.name_of(index), f"cannot be read ({error.strerror})") from error
