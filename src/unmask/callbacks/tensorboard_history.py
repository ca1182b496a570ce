"""Readings of a run in TensorBoard's event files, over interruptions."""

import contextlib
import logging
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

_log = logging.getLogger("unmask")


class TensorBoardHistory(TensorBoardLogger):
    """Continues the event files of a run so that reading them back gives every point once.

    Points of steps that are made again are purged by TensorBoard itself (`purge_step`). A checkpoint holds the readings
    of the step after which it was written, for a run that was killed before they were logged; where they were, and
    where a logger begins again with the first step, the files hold them already.

    What cannot be written, on a full, read-only or vanished disk, is left out, and a line says so.

    Args:
        save_dir, name, version: As of `TensorBoardLogger`; the folder of the files is `save_dir/name/version`.
        resumed_step: Optimizer steps done by the checkpoint the run continues from. Null begins anew.
        settings: Further ones of `TensorBoardLogger`.
    """

    def __init__(
        self,
        *,
        save_dir: str | Path,
        name: str = "",
        version: str = "tensorboard",
        resumed_step: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(save_dir, name, version, purge_step=resumed_step, **settings)
        self.resumed_step = resumed_step or 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is not None and step < self.resumed_step:
            metrics = {tag: value for tag, value in metrics.items() if (tag, step) not in self._known}
        super().log_metrics(metrics, step)

    @property
    def log_dir(self) -> str:
        """The folder of the files, by its name as it stands; Lightning would read `$HOME` and `~` in it as a shell."""
        parts = [self.root_dir, str(self.version)]
        return str(Path(*parts, self.sub_dir) if isinstance(self.sub_dir, str) else Path(*parts))

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        is_open = self._experiment is not None
        writer = super().experiment
        if not is_open:
            records = writer._get_file_writer().event_writer._async_writer._writer
            records._writer = _EventFile(records._writer)
        return writer

    @rank_zero_only
    def save(self) -> None:
        with contextlib.suppress(OSError):  # of the settings, which `.hydra` holds as well
            super().save()

    @cached_property
    def _known(self) -> set[tuple[str, int]]:
        """The points that the files hold, less those that were purged."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415  (slow)

        files = EventAccumulator(self.log_dir, size_guidance={"scalars": 0})
        files.Reload()
        return {(tag, point.step) for tag in files.Tags()["scalars"] for point in files.Scalars(tag)}


class _EventFile:
    """Leaves out records that the system does not let be written; those before and behind them stay readable.

    Otherwise TensorBoard's writing thread would end with a traceback, and the run with its next reading.

    Args:
        file: TensorBoard's own, which opens the file for each record.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._has_failed = False

    def write(self, record: bytes) -> None:
        path = Path(os.fsdecode(self._file.filename))
        try:
            size = path.stat().st_size if path.exists() else 0
            try:
                self._file.write(record)
            except OSError:
                os.truncate(path, size)  # half a record ends the file for readers
                raise
        except OSError as error:
            if not self._has_failed:
                _log.error(
                    f"{path} could not be written ({error.strerror or error}): points are left out until it can be"
                )
            self._has_failed = True
        else:
            self._has_failed = False

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)
