import logging
from types import SimpleNamespace

import pytest
import torch

from unmask.callbacks.collapse_warning import CollapseWarning


def trainer(**readings: float) -> SimpleNamespace:
    metrics = {f"val/{name}": torch.tensor(value) for name, value in readings.items()}
    return SimpleNamespace(sanity_checking=False, callback_metrics=metrics)


def test_it_names_the_stream_that_collapses(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="unmask"):
        CollapseWarning(0.1).on_validation_end(trainer(student_rank_share=0.3, teacher_rank_share=0.02), None)
    (line,) = caplog.messages
    assert "the teacher's features are collapsing: they spread over 2.0%" in line


def test_it_is_silent_for_healthy_features_and_for_methods_without_a_teacher(caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="unmask"):
        CollapseWarning(0.1).on_validation_end(trainer(student_rank_share=0.3, teacher_rank_share=0.1), None)
        CollapseWarning(0.1).on_validation_end(trainer(loss=1.0), None)
    assert not caplog.messages


def test_nan_counts_as_collapse(caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="unmask"):
        CollapseWarning(0.1).on_validation_end(trainer(student_rank_share=float("nan")), None)
    assert caplog.messages


def test_a_share_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        CollapseWarning(1.0)
