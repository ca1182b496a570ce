"""A page of the run, rewritten as it goes on."""

import logging
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from unmask.callbacks.report_page import REPORT_NAME, read_run, write_report

_log = logging.getLogger("unmask")


class RunReport(Callback):
    """Writes `report.html` into the run's folder after every epoch and at the end, from the files that lie there.

    The page needs no server and no other file. A full disk costs the page, not the run. It should stand behind the
    callbacks whose pictures it shows.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
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
