import logging

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from unmask.callbacks.collapse_warning import CollapseWarning


class _Readings(Trainer):
    """A trainer that has just validated."""

    sanity_checking = False

    def __init__(self, **readings: float) -> None:
        self.readings = {f"val/{name}": torch.tensor(value) for name, value in readings.items()}

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        return self.readings


def validate(**readings: float) -> None:
    CollapseWarning(0.1).on_validation_end(_Readings(**readings), LightningModule())


def test_it_names_the_stream_that_collapses(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="unmask"):
        validate(student_rank_fraction=0.3, teacher_rank_fraction=0.02)
    (line,) = caplog.messages
    assert "the teacher's features are collapsing: they spread over 2.0%" in line


def test_it_is_silent_for_healthy_features_and_for_methods_without_a_teacher(caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="unmask"):
        validate(student_rank_fraction=0.3, teacher_rank_fraction=0.1)
        validate(loss=1.0)
    assert not caplog.messages


def test_nan_counts_as_collapse(caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="unmask"):
        validate(student_rank_fraction=float("nan"))
    assert caplog.messages


def test_a_share_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        CollapseWarning(1.0)
