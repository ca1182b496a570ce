"""Signals to loader workers that ask a run to stop, and the one that says a worker has died."""

import multiprocessing
import multiprocessing.util
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? (\d+)")
_IGNORED = ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")  # by name: Windows lacks some


def leave_signals_to_main() -> None:
    """Lets a worker go on when a signal reaches all processes of a run at once, as Ctrl-C and SLURM send it.

    The main process still needs batches to finish the optimizer step it saves after. Of SIGTERM only the first is
    ignored, since the loader itself ends workers by it that do not end by themselves.
    """
    for name in _IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_next_time)


def _end_next_time(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, _end_now)


def _end_now(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)


def end_workers_at_exit() -> None:
    """Kills the workers of this process when it exits, however it does.

    Python would end them by one SIGTERM, which they ignore, and wait for them for ever.
    """
    multiprocessing.util.Finalize(None, _kill_workers, exitpriority=0)  # before Python's own SIGTERM


def dead_worker(error: BaseException) -> int | None:
    """The process number of the worker whose death torch reports by this error; None for other errors."""
    found = _DEAD_WORKER.search(str(error))
    return None if found is None else int(found[1])


class WorkerDeaths:
    """Reports the death of a worker where a loader is asked for a batch.

    torch raises an error wherever the process happens to stand when a worker ends (SIGCHLD), which may be within an
    optimizer step or while a checkpoint is written.
    """

    def __init__(self) -> None:
        self._raise_as_torch_does: Any = None
        self._noted: RuntimeError | None = None
        self._is_reading = False

    @contextmanager
    def raised_here(self, *, matters: Callable[[int], bool]) -> Iterator[None]:
        """Within it the deaths of workers are raised, one before it too.

        Args:
            matters: Whether a loader in use still has the worker of this number.

        Raises:
            RuntimeError: torch's own, which says how the worker ended.
        """
        self._take_over()  # torch sets its handler with the first loader that has workers
        self._is_reading = True
        try:
            if self._noted is not None and matters(dead_worker(self._noted) or 0):
                raise self._noted
            yield
        finally:
            self._is_reading = False
            self._noted = None

    def _take_over(self) -> None:
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self._note:
            self._raise_as_torch_does = handler
            signal.signal(signal.SIGCHLD, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        try:
            self._raise_as_torch_does(number, frame)
        except RuntimeError as error:
            self._noted = error  # Python drops what is raised within destructors and the like
            if self._is_reading:
                raise


class BatchDeadline:
    """Kills workers that return no batch in time, so that waiting for them ends.

    torch's own `timeout` does not end it where a worker is frozen: it waits in a socket for the worker to hand over
    the memory of a batch.

    Args:
        seconds: That a batch may take; 0 waits for ever.
        pids: Tells the process numbers of the workers.
        note: Called before they are killed.
    """

    def __init__(self, seconds: float, *, pids: Callable[[], Collection[int]], note: Callable[[], None]) -> None:
        self.seconds = seconds
        self._pids, self._note = pids, note
        self._since: float | None = None  # when the batch was asked for
        self._is_over = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="batch-deadline", daemon=True).start()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it a batch is waited for."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def end(self) -> None:
        """Ends the watch."""
        self._is_over.set()

    def _watch(self) -> None:
        while not self._is_over.wait(min(1.0, self.seconds / 4)):
            since = self._since
            if since is not None and time.monotonic() - since > self.seconds:
                self._note()
                for pid in self._pids():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return


def _kill_workers() -> None:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # by which torch would report them as failed
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
