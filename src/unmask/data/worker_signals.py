"""How loader workers take the signals that ask a run to stop."""

import multiprocessing
import multiprocessing.util
import os
import signal
from types import FrameType

_IGNORED = ("SIGINT", "SIGUSR1", "SIGHUP")  # by name: Windows lacks some


def leave_signals_to_main(_worker: int) -> None:
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


def _kill_workers() -> None:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # by which torch would report them as failed
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
