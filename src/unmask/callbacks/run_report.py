"""A page of the run, rewritten as it goes on."""

import logging
from pathlib import Path
from time import perf_counter

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from unmask.callbacks.report_page import REPORT_NAME, read_run, write_report

_log = logging.getLogger("unmask")


class RunReport(Callback):
    """Writes `report.html` into the run's folder after every epoch and at the end, from the files that lie there.

    The page needs no server and no other file. A full disk costs the page, not the run. It should stand behind the
    callbacks whose pictures it shows.

    Args:
        max_time_fraction: Of the time since training began that writing may take, in (0, 1]: epochs too short for that
            are left out, but for the first and the last. Ours; a page takes some 0.4 s.

    Raises:
        ValueError: The fraction is out of range.
    """

    def __init__(self, max_time_fraction: float = 0.01) -> None:
        if not 0.0 < max_time_fraction <= 1.0:
            raise ValueError(f"max_time_fraction must lie above 0 and at most 1, got {max_time_fraction}")
        self.max_time_fraction = max_time_fraction
        self._began = self._spent = self._last_cost = 0.0  # seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began, self._spent, self._last_cost = perf_counter(), 0.0, 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        allowed = self.max_time_fraction * (perf_counter() - self._began)
        if not self._spent or self._spent + self._last_cost <= allowed:
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        start = perf_counter()
        self._write_page(trainer)
        self._last_cost = perf_counter() - start
        self._spent += self._last_cost

    def _write_page(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
        folder = Path(trainer.default_root_dir)
        try:
            write_report(folder / REPORT_NAME, [read_run(folder)])
        except OSError as error:
            _log.warning(f"{REPORT_NAME} could not be written: {error}")
        except ValueError as error:  # the run keeps no readings, or another file has the name
            _log.warning(f"no {REPORT_NAME}: {error}")
