"""What a study is told of a run, and when it ends it."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning import LightningModule, Trainer

from unmask.callbacks.trial_pruning import TrialPruned, TrialPruning


class Study:
    def __init__(self, *, prunes_at: int) -> None:
        self.told: list[tuple[float, int]] = []
        self.prunes_at = prunes_at

    def report(self, value: float, step: int) -> None:
        self.told.append((value, step))

    def should_prune(self) -> bool:
        return self.told[-1][1] >= self.prunes_at


def epochs(callback: TrialPruning, *losses: float, is_first: bool = True, shared: bool | None = None) -> None:
    trainer: Any = Mock(spec=Trainer, is_global_zero=is_first, current_epoch=0, callback_metrics={})
    trainer.strategy.broadcast = lambda own: own if shared is None else shared
    module: Any = Mock(spec=LightningModule)
    callback.on_fit_start(trainer, module)
    for epoch, loss in enumerate(losses):
        trainer.current_epoch = epoch
        callback.on_train_epoch_start(trainer, module)
        trainer.callback_metrics = {"val/loss": torch.tensor(loss)}
        callback.on_train_epoch_end(trainer, module)


def test_each_epoch_is_told_and_the_next_one_is_not_begun() -> None:
    study = Study(prunes_at=1)
    with pytest.raises(TrialPruned, match=r"after 2 epoch\(s\): val/loss was worse"):
        epochs(TrialPruning(metric="val/loss", open_trial=lambda: study), 3.0, 2.0, 1.0)
    assert study.told == [(3.0, 0), (2.0, 1)]


def test_a_run_is_not_pruned_after_its_last_epoch_nor_by_what_is_not_finite() -> None:
    study = Study(prunes_at=1)
    epochs(TrialPruning(metric="val/loss", open_trial=lambda: study), 3.0, 2.0)
    epochs(TrialPruning(metric="val/loss", open_trial=lambda: Study(prunes_at=0)), float("nan"), float("nan"))


def test_other_processes_open_no_study_and_end_with_the_first() -> None:
    def refuse() -> Study:
        raise AssertionError("the first process alone asks the study")

    with pytest.raises(TrialPruned):
        epochs(TrialPruning(metric="val/loss", open_trial=refuse), 3.0, 2.0, is_first=False, shared=True)
