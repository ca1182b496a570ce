"""Checkpoints that survive whatever happens while they are written."""

import errno
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from unmask.atomic_write import atomic_write
from unmask.callbacks.stopping import MachineFailed, NumbersFailed, RunStopped

LAST_NAME, PREVIOUS_NAME = "last.ckpt", "last-previous.ckpt"
MOST_FAILURES = 3  # saves in a row that came to nothing
_OUR_OWN = 0  # in place of a number of the system
_NO_ROOM = (_OUR_OWN, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MIB = 2**20
_WHAT_IS_TRAINED = ("state_dict", "optimizer_states")

_log = logging.getLogger("unmask")


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes and verifies it, and only then lets it take the place.

    Lightning's own writes to the folder of temporary files, which is often on another disk, and copies from there, so
    that a run killed meanwhile leaves a torn file. The `last.ckpt` that is replaced stays as `last-previous.ckpt`.

    A save that fails, for a full disk above all, leaves the files as they were and the run going on, and no older file
    is removed until another save succeeds; weights that are not finite are not written. Read is without running code.

    Attributes:
        reason_to_stop: Set after three failed saves in a row, or when weights are not finite: what ends the run, which
            the process that writes shares with the others at the next step.
    """

    def __init__(self) -> None:
        self.reason_to_stop: RunStopped | None = None
        self._failed_at: list[int] = []  # optimizer steps

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        path, step = Path(path), int(checkpoint.get("global_step", 0))
        bad = next((name for name, tensor in _trained_tensors(checkpoint) if not _is_finite(tensor)), None)
        if bad is not None:
            text = (
                f"{path} is not written at step {step}: {bad} contains numbers that are not finite; an earlier file "
                "is unchanged"
            )
            self.reason_to_stop = NumbersFailed(text)
            _log.error(text)
            return
        try:
            _write(checkpoint, path)
        except (OSError, RuntimeError) as error:
            cause = _os_error(error)
            if cause is None:
                raise
            self._note_failure(checkpoint, path, step, cause)
        else:
            self._failed_at = []

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a file of this machine; whatever `weights_only` says, no code in it is run."""
        loaded: dict[str, Any] = torch.load(Path(path), map_location=map_location, weights_only=True)
        return loaded

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes a file that another has replaced, unless that one could not be written."""
        if self._failed_at:
            return
        try:
            super().remove_checkpoint(Path(path))
        except OSError as error:
            _log.warning(f"{path} could not be removed ({error.strerror or error})")

    def _note_failure(self, checkpoint: Mapping[str, Any], path: Path, step: int, cause: OSError) -> None:
        if step not in self._failed_at:  # several files of one step are one failure
            self._failed_at.append(step)
        is_full = cause.errno in _NO_ROOM
        room = f": {_describe_room(_num_bytes(checkpoint), path.parent)}" if is_full else f" in {path.parent}"
        text = (
            f"{path.name} could not be written at step {step} ({cause.strerror or cause}){room}; the files before it "
            "are kept"
        )
        count = len(self._failed_at)
        if count >= MOST_FAILURES:
            advice = "make room" if is_full else "see to the disk"
            self.reason_to_stop = MachineFailed(f"{text}, and this was failure {count} in a row; {advice} and resume")
        _log.error(f"{text}, training goes on (failure {count} of {MOST_FAILURES})")


def find_damage(path: Path) -> str | None:
    """Says in what way a checkpoint file is damaged; None if it is whole. Reads all of it."""
    if not path.exists():
        return f"leads to {path.readlink()}, which does not exist" if path.is_symlink() else "does not exist"
    if not path.is_file():
        return "is no file"
    if path.stat().st_size == 0:
        return "is empty"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        return f"is truncated or not a checkpoint ({error})"
    return None if damaged is None else f"is damaged: {damaged} in it does not match its checksum"


def _write(checkpoint: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if _num_bytes(checkpoint) > _free_bytes(path.parent):
        raise OSError(_OUR_OWN, "the disk is full")
    with atomic_write(path) as partial:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
        damage = find_damage(partial)
        if damage is not None:
            raise OSError(errno.EIO, f"what was written {damage}")
        if path.name == LAST_NAME and path.exists():
            _keep_previous(path)


def _keep_previous(path: Path) -> None:
    """Gives the file a second name, so that there is no moment without a whole `last.ckpt`."""
    previous = path.with_name(PREVIOUS_NAME)
    try:
        with atomic_write(previous) as partial:
            partial.hardlink_to(path)
    except OSError:  # a disk without hard links
        path.replace(previous)


def _trained_tensors(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for part in _WHAT_IS_TRAINED:
        yield from _tensors(checkpoint.get(part), part)


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _tensors(item, f"{name}[{position}]")


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _num_bytes(checkpoint: Mapping[str, Any]) -> int:
    """Bytes of the tensors; what stands beside them is small."""
    return sum(tensor.nbytes for _, tensor in _trained_tensors(checkpoint))


def _describe_room(num_bytes: int, folder: Path) -> str:
    needed = f"it needs {num_bytes / _MIB:.1f} MiB"
    try:
        return f"{needed} and {_free_bytes(folder) / _MIB:.1f} MiB are free in {folder}"
    except OSError:  # the disk is gone meanwhile
        return f"{needed} in {folder}"


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _os_error(error: BaseException | None) -> OSError | None:
    """The system's error behind torch's own, which speaks of positions in the file."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
