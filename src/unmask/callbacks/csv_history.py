"""Readings of a run in one CSV file, over interruptions."""

import contextlib
import csv
import io
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from unmask.atomic_write import atomic_write

_log = logging.getLogger("unmask")


class CSVHistory(CSVLogger):
    """Continues `metrics.csv` where Lightning's logger would delete it; a full or vanished disk costs no training.

    Args:
        save_dir, name, version: As of `CSVLogger`; the folder of the file is `save_dir/name/version`.
        resumed_step: Optimizer steps done by the checkpoint the run continues from: rows of later steps are dropped,
            since those steps are made again. Null starts the file anew.
    """

    def __init__(self, *, save_dir: str | Path, name: str = "", version: str = "csv", resumed_step: int | None = None):
        super().__init__(save_dir, name, version)
        self.resumed_step = resumed_step
        self._was_full = False

    @property
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._experiment = _ContinuedFile(self.log_dir, num_steps=self.resumed_step or 0)
        experiment: ExperimentWriter = super().experiment
        return experiment

    @rank_zero_only
    def save(self) -> None:
        try:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)  # Lightning has another error where it is gone
            super().save()
        except OSError as error:
            if not self._was_full:
                _log.error(f"metrics could not be written ({error}); they are kept in memory until they can be")
            self._was_full = True
        else:
            self._was_full = False


class _ContinuedFile(ExperimentWriter):
    """Adds to what a file holds of the first `num_steps` optimizer steps."""

    def __init__(self, log_dir: str, *, num_steps: int) -> None:
        self._num_steps = num_steps
        self._rows: list[dict[str, str]] = []
        self._is_torn = False  # whether the file ends in rows that could not be written whole
        self._whole_size = 0  # bytes before them
        self._keys_written: list[str] = []  # in its header
        super().__init__(log_dir)
        self.metrics_keys = list(dict.fromkeys(key for row in self._rows for key in row))

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        is_known = any(
            row.get("step") == str(step) and all(row.get(key) for key in metrics_dict) for row in self._rows[-4:]
        )
        if not is_known:  # a checkpoint and the file may both hold the row of the step after which it was written
            super().log_metrics(metrics_dict, step)

    def save(self) -> None:
        path = Path(self.metrics_file_path)
        if self._is_torn:
            self._drop_half_row()
        self._keys_written, self._whole_size = list(self.metrics_keys), path.stat().st_size if path.exists() else 0
        self._is_torn = True
        try:
            super().save()
        except OSError:
            self.metrics_keys = self._keys_written
            with contextlib.suppress(OSError):  # a disk that is read-only now may be writable later
                self._drop_half_row()
            raise
        self._is_torn = False

    def _drop_half_row(self) -> None:
        path = Path(self.metrics_file_path)
        if path.exists() and self._whole_size:
            os.truncate(path, self._whole_size)
        else:
            path.unlink(missing_ok=True)
        self._is_torn = False

    def _check_log_dir_exists(self) -> None:
        """In place of deleting the file."""
        path = Path(self.metrics_file_path)
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if _is_whole(row)]
            self._rows = [row for row in rows if int(row["step"]) < self._num_steps]
            _rewrite(path, self._rows)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        _rewrite(path, rows, fieldnames)
        self._keys_written, self._whole_size = list(fieldnames), path.stat().st_size


def _is_whole(row: Mapping[Any, Any]) -> bool:
    """Whether a row is none that a process killed while writing has left."""
    return None not in row and None not in row.values() and str(row.get("step", "")).isdigit()


def _rewrite(path: Path, rows: Iterable[Mapping[str, Any]], fieldnames: Iterable[str] | None = None) -> None:
    rows = list(rows)
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0] if fieldnames is None else fieldnames))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8", newline="")
