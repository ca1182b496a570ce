"""Ends a run of a study that promises less than others."""

import math
from collections.abc import Callable
from typing import Protocol

from lightning import Callback, LightningModule, Trainer

from unmask.callbacks.stopping import EXIT_PRUNED, RunStopped


class Trial(Protocol):
    """What a study is told of a run while it goes on; Optuna's trials are such."""

    def report(self, value: float, step: int) -> None: ...

    def should_prune(self) -> bool: ...


class TrialPruned(RunStopped):
    """The study has ended the run."""

    state = "pruned"
    exit_code = EXIT_PRUNED


class TrialPruning(Callback):
    """Tells a study what the run measures after each epoch and, where the study says so, ends it before the next.

    So the checkpoint of the epoch is written before. What is not measured in an epoch, as a probe that was left out, is
    told as it was last.

    Args:
        metric: The name of the log that is told.
        open_trial: Called once, in the first process alone.
    """

    def __init__(self, *, metric: str, open_trial: Callable[[], Trial]) -> None:
        self.metric = metric
        self._open_trial = open_trial
        self._trial: Trial | None = None
        self._is_pruned = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._trial = self._open_trial()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_pruned = False
        value = trainer.callback_metrics.get(self.metric)
        if self._trial is not None and value is not None and math.isfinite(value):
            self._trial.report(float(value), step=trainer.current_epoch)
            is_pruned = self._trial.should_prune()
        self._is_pruned = bool(trainer.strategy.broadcast(is_pruned))  # all processes end, or none

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_pruned:
            raise TrialPruned(
                f"ended by the study after {trainer.current_epoch} epoch(s): {self.metric} was worse than in its other "
                "trials"
            )
