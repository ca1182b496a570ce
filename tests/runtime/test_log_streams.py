"""Messages over disks that fill up and terminals that close."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


class _Stream(io.StringIO):
    """Refuses while it is full."""

    is_full = False

    def flush(self) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("unmask")
    before = list(logger.handlers)
    logger.handlers.clear()
    logger.propagate = False
    yield logger
    logger.propagate = True
    logger.handlers[:] = before


def test_a_full_terminal_costs_no_traceback(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    from unmask.runtime.log_streams import Console

    stream = _Stream()
    logger.addHandler(Console(stream))
    stream.is_full = True
    logger.warning("lost")
    stream.is_full = False
    logger.warning("kept")
    assert stream.getvalue().endswith("kept\n")
    assert capsys.readouterr().err == ""


def test_a_log_file_that_is_full_says_so_once_elsewhere(
    logger: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unmask.runtime.log_streams import Console, LogFile

    shown = _Stream()
    file = LogFile(tmp_path / "run.log", delay=True)
    logger.addHandler(file)
    logger.addHandler(Console(shown))
    logger.warning("first")
    assert (tmp_path / "run.log").read_text() == "first\n"
    whole, file.stream = file.stream, _Stream()
    file.stream.is_full = True
    for _ in range(3):
        logger.warning("again")
    said = [line for line in shown.getvalue().splitlines() if "could not be written" in line]
    assert said == [
        f"{tmp_path}/run.log could not be written (No space left on device): messages are missing in it until it can be"
    ]
    assert capsys.readouterr().err == ""
    whole.close()


def test_a_message_that_cannot_be_put_together_is_shown_as_pythons_own(capsys: pytest.CaptureFixture[str]) -> None:
    from unmask.runtime.log_streams import Console

    record = logging.LogRecord("unmask", logging.WARNING, "file.py", 1, "%d images", ("many",), None)
    Console(_Stream()).handle(record)
    assert "--- Logging error ---" in capsys.readouterr().err


CLOSED = """
import logging, os, sys
from unmask.runtime.log_streams import Console, tell
log = logging.getLogger("unmask")
log.setLevel("INFO")
log.addHandler(Console(sys.stdout))
log.info("ready")
sys.stdin.readline()
log.info("lost")
tell("lost as well")
sys.exit(75)
"""


def test_a_terminal_that_is_closed_changes_no_exit_code() -> None:
    """As where a connection to another machine breaks, with SIGHUP: the run saves and leaves with a code of its own."""
    terminal, own = os.openpty()
    process = subprocess.Popen([sys.executable, "-c", CLOSED], stdin=subprocess.PIPE, stdout=own, stderr=own)
    try:
        os.close(own)
        assert os.read(terminal, 5) == b"ready"
        os.close(terminal)
        process.communicate(b"go on\n", timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75
