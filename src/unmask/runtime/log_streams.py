"""Where a run's messages go, over disks that fill up and terminals that close."""

import errno
import logging
import os
import sys
from pathlib import Path
from typing import TextIO

_CLOSED = (errno.EIO, errno.EPIPE)  # of a terminal, of a pipe


class _Lasting(logging.Handler):
    """Loses messages that cannot be written, where Python prints a traceback for each."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (Python's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        if not self._has_failed:
            self._has_failed = True
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        """Says once that messages are lost."""


class LogFile(_Lasting, logging.FileHandler):
    """A log file."""

    def _tell(self, error: OSError) -> None:
        logging.getLogger("unmask").error(
            f"{self.baseFilename} could not be written ({error.strerror or error}): messages are missing in it until "
            "it can be"
        )


class Console(_Lasting, logging.StreamHandler):  # type: ignore[type-arg]
    """The terminal, or the file or pipe in its place, which may be closed or full: the log file has the same lines."""

    def _tell(self, error: OSError) -> None:
        if error.errno in _CLOSED and self.stream is sys.stdout:
            sys.stdout = _nowhere()


def tell(text: str) -> None:
    """Writes to the terminal, which may be closed by now."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        sys.stderr = _nowhere()


def _nowhere() -> TextIO:
    """In the place of a stream of which Python would make another exit code as it writes the rest."""
    return Path(os.devnull).open("w", encoding="utf-8")
