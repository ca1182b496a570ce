"""A run of several processes ends when one of them is gone."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed
from lightning import Callback, LightningModule, Trainer

from unmask.callbacks.first_process import FROZEN_SECONDS, POLL, TIME_TO_FAIL, StoppedFor, forget_first_process
from unmask.callbacks.run_status import read_status, write_status
from unmask.callbacks.stopping import EXIT_MACHINE, MachineFailed, launched_processes

_TIME_TO_BE_SEEN = 3.0  # seconds between a lost connection and the end of the process at its other side
_CONNECTION = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


class ProcessWatch(Callback):
    """Ends the first process when one that it launched is gone, where it might otherwise wait for ever.

    The launched ones watch the first from the start of their command on (`end_with_first_process`) until training is
    over. A connection that was closed is an error in whatever is exchanged next, as `lost_process` explains; a backend
    that does not notice (NCCL) waits instead. A process that was stopped (SIGSTOP) keeps its connections and would be
    waited for until the backend's timeout; after `frozen_seconds` it counts as gone. It is known by its state in /proc,
    not by what it computes, so a long validation or compilation is never taken for it. Where there is no /proc, or
    another launcher started the processes, the backend's timeout stays.

    Args:
        folder: The run's, whose `status.json` says what happened.
        frozen_seconds: Seconds for which a process may be stopped while this one is not, above 0.
        end: Ends this process with an exit code; for tests.

    Raises:
        ValueError: The seconds are not above 0.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        frozen_seconds: float = FROZEN_SECONDS,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        if not frozen_seconds > 0:
            raise ValueError(f"frozen_seconds must be above 0, got {frozen_seconds}")
        self.folder = Path(folder)
        self.frozen_seconds = frozen_seconds
        self._end = end
        self._is_over = threading.Event()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        others = launched_processes(trainer)
        if others:
            self._is_over.clear()
            threading.Thread(target=self._look_after, args=(others,), name="process-watch", daemon=True).start()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end_watch()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end_watch()

    def _end_watch(self) -> None:
        self._is_over.set()
        forget_first_process()

    def _look_after(self, others: Sequence[Any]) -> None:
        frozen = [StoppedFor(process.pid, self.frozen_seconds) for process in others]
        while not self._is_over.wait(POLL):
            ended = _failed(others) or _first_frozen(frozen)
            if ended is None:
                continue
            if self._is_over.wait(TIME_TO_FAIL):
                return  # the error of this process says it
            sentence, code = ended
            sys.stderr.write(f"error: {sentence}; the last checkpoint holds, go on by resume=auto\n")
            status = read_status(self.folder) or {}
            step, epoch = (int(str(status.get(name, 0))) for name in ("step", "epoch"))
            write_status(self.folder, "failed", step=step, epoch=epoch, reason=sentence)
            for process in others:
                process.kill()
            self._end(code)


def _first_frozen(processes: Sequence[StoppedFor]) -> tuple[str, int] | None:
    """The first process that is stopped for too long, in words, and the exit code to end with; all are asked."""
    found = [f"process {rank} of this run {each}" for rank, each in enumerate(processes, 1) if each.is_too_long()]
    return (found[0], EXIT_MACHINE) if found else None


def lost_process(trainer: Trainer, error: BaseException) -> MachineFailed | None:
    """Says which process of a run is gone where an error comes of a lost connection; None for other errors."""
    if trainer.world_size == 1 or not _is_lost_connection(error):
        return None
    limit = time.monotonic() + _TIME_TO_BE_SEEN
    others = launched_processes(trainer)
    while (ended := _failed(others)) is None and others and time.monotonic() < limit:
        time.sleep(POLL)
    for process in others:
        process.kill()
    if ended is None:
        return MachineFailed("the connection to another process of this run was lost; its own messages say why")
    failed = MachineFailed(ended[0])
    failed.exit_code, failed.can_go_on = ended[1], ended[1] == EXIT_MACHINE
    return failed


def _failed(processes: Sequence[Any]) -> tuple[str, int] | None:
    """The first of several `subprocess.Popen` that has failed, in words, and the exit code to end with."""
    for rank, process in enumerate(processes, 1):
        code = process.poll()
        if code is not None and code < 0:
            return f"process {rank} of this run was killed by {signal.Signals(-code).name}", EXIT_MACHINE
        if code:
            return f"process {rank} of this run ended with exit code {code}; its message stands above", code
    return None


def _is_lost_connection(error: BaseException) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CONNECTION)
