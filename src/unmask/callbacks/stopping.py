"""Runs that end early, and how they are asked to."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

from lightning import Trainer

EXIT_NUMBERS, EXIT_MACHINE, EXIT_PRUNED, EXIT_PREEMPTED, EXIT_AT_ONCE = 3, 4, 6, 75, 130
_SAME_REQUEST = 1.0  # seconds: launchers forward what a terminal has sent already
_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")  # by name: Windows lacks some


class RunStopped(Exception):  # noqa: N818  (no error: what was asked for)
    """Ends a run early for a reason that is no defect of the program, on all processes at the same step.

    Attributes:
        state: As `status.json` says it.
        exit_code: Of the process that speaks for the run.
        can_go_on: Whether nothing but time or the machine stands against continuing from the last checkpoint.
    """

    state = "failed"
    exit_code = 1
    can_go_on = False


class Preempted(RunStopped):
    """The run was asked to stop and has saved."""

    state = "preempted"
    exit_code = EXIT_PREEMPTED
    can_go_on = True


class MachineFailed(RunStopped):
    """Nothing could be saved for too long, or another process of the run is gone."""

    exit_code = EXIT_MACHINE
    can_go_on = True


class NumbersFailed(RunStopped):
    """A loss, a gradient or a weight is not finite."""

    exit_code = EXIT_NUMBERS


class StopSignals:
    """Turns SIGTERM, SIGINT (Ctrl-C), SIGUSR1, SIGUSR2 and SIGHUP into a flag that is read between optimizer steps.

    Another signal, more than a second after the first, ends the process and its children at once.

    Attributes:
        received: The first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._children: Callable[[], Collection[int]] = tuple

    def install(self, children: Callable[[], Collection[int]]) -> None:
        """Takes the signals over, from whoever has them; a second call takes them back from who came in between.

        Args:
            children: Tells the processes that have to end with this one.
        """
        self._children = children
        if threading.current_thread() is not threading.main_thread():
            return  # where Python allows no handlers
        for name in _SIGNALS:
            if (number := getattr(signal, name, None)) is not None:
                before = signal.signal(number, self._note)
                self._before.setdefault(number, before)

    def restore(self) -> None:
        """Gives the signals back."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, before)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), now
        elif now - self._received_at > _SAME_REQUEST:
            self._end_at_once()

    def _end_at_once(self) -> None:
        os.write(2, b"stopped at once by a second signal; the last checkpoint holds\n")
        workers = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
        for child in [*self._children(), *workers]:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        os._exit(EXIT_AT_ONCE)


def launched_processes(trainer: Trainer) -> list[Any]:
    """The processes of other devices which Lightning started from this one, as `subprocess.Popen`."""
    return list(getattr(trainer.strategy.launcher, "procs", ()))
