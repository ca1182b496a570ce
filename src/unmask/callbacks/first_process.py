"""The other processes of a run end with the first one, from their first moment on.

Kept light: a command calls it before it imports torch, which takes seconds in which the first process may be gone.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIRST_PROCESS = "UNMASK_FIRST_PROCESS"  # environment variable of those that it starts: its process number
FROZEN_SECONDS = 180.0  # a pause at the keyboard (Ctrl-Z) stops all processes, which then count no time
POLL = 0.25  # seconds
TIME_TO_FAIL = 1.5  # seconds that a process has for an error of its own; Lightning kills it after at most 5
_STOPPED = "T"  # state of a process in /proc: by SIGSTOP or SIGTSTP; one that a debugger holds is in another

_is_over = threading.Event()


def end_with_first_process(*, exit_code: int, end: Callable[[int], Any] = os._exit) -> None:
    """Watches the process that has started this one for another device or machine of a run; else names this one first.

    Started by Lightning, this process ends with a sentence when the first one of the machine is gone, or is stopped
    (SIGSTOP) for `FROZEN_SECONDS` while this one is not. Started by torchrun, it asks itself to stop when torchrun is
    gone, which saves: torchrun itself looks after the first one. Under SLURM, SLURM does.

    Args:
        exit_code: Of this process where the first is gone.
        end: Ends this process with an exit code; for tests.
    """
    _is_over.clear()
    parent = os.getppid()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _start(lambda: _stop_with_launcher(parent))
    elif FIRST_PROCESS in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        first = int(os.environ[FIRST_PROCESS])
        _start(lambda: _end_with(first, exit_code, end))
    else:
        os.environ[FIRST_PROCESS] = str(os.getpid())


def forget_first_process() -> None:
    """Ends the watch: the work that the processes share is done, and they end one by one."""
    _is_over.set()


class StoppedFor:
    """Counts for how long a process has been stopped; time in which this one did not run either does not count."""

    def __init__(self, pid: int, limit: float) -> None:
        self.pid = pid
        self.limit = limit
        self._num_polls = 0

    def __str__(self) -> str:
        return f"has been stopped (SIGSTOP) for {self.limit:g} s"

    def is_too_long(self) -> bool:
        """To be asked once a poll."""
        self._num_polls = self._num_polls + 1 if _state(self.pid) == _STOPPED else 0
        return self._num_polls * POLL >= self.limit


def _start(watch: Callable[[], None]) -> None:
    threading.Thread(target=watch, name="first-process-watch", daemon=True).start()


def _end_with(first: int, exit_code: int, end: Callable[[int], Any]) -> None:
    stopped = StoppedFor(first, FROZEN_SECONDS)
    while not _is_over.wait(POLL):
        if stopped.is_too_long():
            reason = str(stopped)
        elif os.getppid() != first and not _is_over.wait(TIME_TO_FAIL):
            reason = "is gone"
        else:
            continue
        sys.stderr.write(f"error: the first process of this run {reason}; this one ends\n")
        sys.stderr.flush()
        end(exit_code)
        return


def _stop_with_launcher(launcher: int) -> None:
    while not _is_over.wait(POLL):
        if os.getppid() != launcher:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _state(pid: int) -> str:
    """The letter of a process's state; empty where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # gone meanwhile, or another system
        return ""
