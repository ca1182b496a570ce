"""Opening files of images without waiting for what is no file."""

import errno
import io
import os
import stat
from pathlib import Path


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a file to read its bytes; a named pipe, which would be waited for until something writes to it, is refused.

    Raises:
        OSError: The path cannot be opened, or is a named pipe, a socket or a device.
    """
    mode = Path(path).stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a folder is refused below, by its own name
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return Path(path).open("rb")
