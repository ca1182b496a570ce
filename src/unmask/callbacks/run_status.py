"""What became of a run, for programs that watch it."""

import json
import os
import socket
import time
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from unmask.atomic_write import atomic_write
from unmask.callbacks.stopping import RunStopped

STATUS_NAME = "status.json"


class RunStatus(Callback):
    """Keeps `status.json` in the run's folder: `state`, `step`, `epoch`, `reason`, `pid`, `host` and `time`.

    The state is `running` from the first step on (step and epoch as of the last whole epoch), `preempted` after a
    request to stop, `failed` after anything else. `complete` is written by the command, when all is done.

    Args:
        folder: The run's.
    """

    def __init__(self, *, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, "running")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, "running")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        state = exception.state if isinstance(exception, RunStopped) else "failed"
        lines = str(exception).strip().splitlines() or [type(exception).__name__]
        self._write(trainer, state, reason=lines[-1])

    def _write(self, trainer: Trainer, state: str, reason: str | None = None) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_status(self.folder, state, step=trainer.global_step, epoch=trainer.current_epoch, reason=reason)


def write_status(folder: Path, state: str, *, step: int, epoch: int, reason: str | None = None) -> None:
    """Replaces `status.json`; a full disk leaves the one before."""
    content = {
        "state": state,
        "step": step,
        "epoch": epoch,
        "reason": reason,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    try:
        with atomic_write(folder / STATUS_NAME) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError:
        return


def read_status(folder: Path) -> dict[str, object] | None:
    """Reads `status.json`; None where there is none, or no whole one."""
    try:
        content = json.loads((folder / STATUS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
