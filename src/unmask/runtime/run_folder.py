"""A run has its folder to itself."""

import contextlib
import json
import logging
import os
import shlex
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from unmask.atomic_write import atomic_write, remove_partial
from unmask.callbacks.durable_checkpoint import LAST_NAME
from unmask.callbacks.feature_pictures import FEATURES_FOLDER, NEIGHBORS_FOLDER
from unmask.callbacks.run_status import STATUS_NAME, read_status
from unmask.runtime.started_processes import is_first_process
from unmask.runtime.typed import typed

LOCK_NAME, HOLDER_NAME = "run.lock", "running.json"
REPORT_NAME = "report.json"  # of an evaluation
_LOG_OF_RUN, _LOG_OF_EVALUATION = "run.log", "eval.log"  # as conf/run.yaml and conf/eval.yaml name their jobs
_FOLDERS = ("checkpoints", "nonfinite", "csv", "panels", FEATURES_FOLDER, NEIGHBORS_FOLDER)  # files are replaced whole
_NO_RESULTS = {  # of a run that was refused before its first checkpoint
    *(".hydra", LOCK_NAME, HOLDER_NAME, _LOG_OF_RUN, _LOG_OF_EVALUATION, STATUS_NAME, "tensorboard"),
    *(name for name in _FOLDERS if name not in ("checkpoints", "nonfinite")),
}
_WRITTEN_TO = ("*", ".hydra/*", "csv/*")  # else files are replaced whole, or new


@contextmanager
def locked(run_dir: Path, *, setting: str = "hydra.run.dir") -> Iterator[None]:
    """Keeps other runs out of a folder, and removes what a killed one left half written in it.

    The system gives the lock back when the process ends, however it does. Of the processes of one run the first alone
    holds it.

    Args:
        run_dir: The folder of a run or of a sweep.
        setting: The key that chooses it.

    Raises:
        ValueError: Another run holds it, or a file in it is a link that leads out of it.
    """
    if not is_first_process():
        yield
        return
    require_own_files(run_dir)
    lock = FileLock(run_dir / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{run_dir} is in use by {_holder(run_dir)}; wait for its end, or choose another folder by {setting}=DIR"
        ) from None
    try:
        _write_holder(run_dir)
        for folder in (run_dir, *(run_dir / name for name in _FOLDERS)):
            remove_partial(folder)
        yield
    finally:
        with contextlib.suppress(OSError):  # which would hide how the run has ended; the lock alone decides
            (run_dir / HOLDER_NAME).unlink(missing_ok=True)
        lock.release()


def require_own_files(run_dir: Path) -> None:
    """Refuses links that lead out of the folder of a run, which itself may be one.

    A run's folder may come from someone else: a link called `run.log` would let the run write to any file, one called
    `checkpoints` into the folder of another run.

    Raises:
        ValueError: Names the link.
    """
    root = run_dir.resolve()
    for path in (entry for part in _WRITTEN_TO for entry in sorted(run_dir.glob(part))):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise ValueError(
                f"{path} is a link to {path.readlink()}, outside the folder of the run, which would write to it; "
                "remove the link, or let the whole folder of the run be one"
            )


def require_unmeasured(folder: Path, *, command: Sequence[str]) -> None:
    """Refuses a folder to an evaluation that would replace what another command left in it.

    An evaluation that was killed is refused as well where it has trained something: what it trained and read stays.
    Of the processes of one evaluation the first alone looks, before it writes there itself.

    Args:
        folder: As the user has named it.
        command: The words of this command but the one that names the folder, for the advice.

    Raises:
        ValueError: It holds a training run, the report of an evaluation, or one without its end.
    """
    if not is_first_process():
        return
    is_evaluation = (folder / _LOG_OF_EVALUATION).exists()
    of_a_run = [f"checkpoints/{LAST_NAME}", *([] if is_evaluation else [_LOG_OF_RUN])]
    if any((folder / name).exists() for name in of_a_run):
        raise _would_replace(folder, "a training run, whose settings and readings")
    require_no_report(folder)
    trained = [path for path in sorted(folder.glob("checkpoints/*/*.ckpt")) if not path.name.startswith(".")]
    begun = [*trained, *(path for path in [folder / "csv/metrics.csv"] if path.exists())]
    if begun:
        again = shlex.join([*command, typed("hydra.run.dir", _unused_beside(folder))])
        raise ValueError(
            f"{folder} holds an evaluation that did not come to its end, which cannot be continued, and this one would "
            f"replace its {begun[0].relative_to(folder)}; make it again in another folder: {again}"
        )


def require_no_report(folder: Path) -> None:
    """Raises a ValueError where an evaluation would replace the report of another."""
    if is_first_process() and (folder / REPORT_NAME).exists():
        raise _would_replace(folder, "the report of an evaluation, which")


def _would_replace(folder: Path, what: str) -> ValueError:
    return ValueError(
        f"{folder} holds {what} this evaluation would replace; choose another folder by hydra.run.dir=DIR, or leave it "
        "out"
    )


class FolderBefore(Callback):
    """Remembers what the folder of a run was: Hydra makes it and writes to it before anything can refuse the run."""

    _settings: ClassVar[dict[Path, bytes]] = {}  # what `.hydra` held
    _missing: ClassVar[list[Path]] = []  # the folder and those above it that did not exist, the innermost first
    _was_empty: ClassVar[bool] = False

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._forget()
        hydra = HydraConfig.instance()
        before = hydra.cfg
        hydra.set_config(config)  # as Hydra itself does next: the folder is named by what was chosen
        try:
            folder = Path(config.hydra.run.dir).absolute()
        except (OmegaConfBaseException, ValueError):  # Hydra meets it next, and here would only warn of it
            return
        finally:
            hydra.cfg = before
        self._missing.extend(path for path in (folder, *folder.parents) if not path.exists())
        if not self._missing:
            type(self)._was_empty = folder.is_dir() and next(folder.iterdir(), None) is None
            self._settings.update({path: path.read_bytes() for path in sorted((folder / ".hydra").glob("*.yaml"))})

    @classmethod
    def bring_back(cls, run_dir: Path) -> None:
        """Makes the folder of a run that was refused what it was.

        One that did not exist is removed, with the folders made above it, unless another run uses it by now, or it
        holds a checkpoint, a list of bad images or what no run writes. In others the settings are put back, unless this
        process has trained and they are those of its run.
        """
        if not is_first_process():
            return
        has_trained = (read_status(run_dir) or {}).get("pid") == os.getpid()
        is_new = run_dir.absolute() in cls._missing
        if (is_new or cls._was_empty) and _holds_no_result(run_dir):
            with contextlib.suppress(Timeout, OSError), FileLock(run_dir / LOCK_NAME).acquire(timeout=0):
                _remove_content(run_dir)
            for folder in cls._missing:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()
        elif not has_trained:
            for path, content in cls._settings.items():
                with atomic_write(path) as partial:
                    partial.write_bytes(content)
        cls._forget()

    @classmethod
    def _forget(cls) -> None:
        cls._settings.clear()
        cls._missing.clear()
        cls._was_empty = False


def _holds_no_result(run_dir: Path) -> bool:
    """Whether all that lies in a folder can be made again by the run that was refused there."""
    return all(entry.name in _NO_RESULTS for entry in run_dir.iterdir())


def _remove_content(run_dir: Path) -> None:
    logging.shutdown()  # closes the log
    for entry in run_dir.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _unused_beside(folder: Path) -> Path:
    """The first of `folder-2`, `folder-3`, ... that does not exist."""
    named = folder if folder.name else folder.absolute()
    return next(path for number in count(2) if not (path := named.with_name(f"{named.name}-{number}")).exists())


def _write_holder(run_dir: Path) -> None:
    content = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with atomic_write(run_dir / HOLDER_NAME) as partial:
        partial.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _holder(run_dir: Path) -> str:
    try:
        holder = json.loads((run_dir / HOLDER_NAME).read_text(encoding="utf-8"))
        return f"a run of process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
        return "another run"
