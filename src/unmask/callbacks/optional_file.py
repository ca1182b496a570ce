"""Files that a run goes on without."""

import logging
from collections.abc import Callable
from pathlib import Path

from unmask.atomic_write import atomic_write

_log = logging.getLogger("unmask")


def write_optional(path: Path, write: Callable[[Path], object]) -> None:
    """`atomic_write` for what is nice to have: where the system does not let it be written, a line warns.

    A full, read-only or vanished disk then costs the file, not the run; what was at `path` stays.

    Args:
        path: The file; its folder is made where it is missing.
        write: Writes to the place it is given.
    """
    try:
        with atomic_write(path) as partial:
            write(partial)
    except OSError as error:
        _log.warning(f"{path} could not be written ({error.strerror or error}); the run goes on without it")
