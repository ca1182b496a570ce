"""Files that are whole or not there."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = ".partial"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Hands out a name beside `path` to write to, of the same ending, which takes its place once all is on the disk.

    If writing fails or is interrupted, what was at `path` stays. The folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{_PARTIAL}{path.suffix}")
    try:
        yield partial
        flush_to_disk(partial)
        partial.replace(path)
        flush_to_disk(path.parent)
    finally:
        with contextlib.suppress(OSError):  # which would hide why writing failed
            partial.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(folder: Path) -> list[Path]:
    """Removes what processes that were killed while writing left in a folder; no process may be writing there now."""
    left = sorted(folder.glob(f".*{_PARTIAL}.*"))
    for partial in left:
        partial.unlink(missing_ok=True)
    return left
