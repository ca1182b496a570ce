"""Accuracy and its interval."""

import pytest
import torch
from scipy.stats import binomtest

from unmask.evaluation.metrics import accuracy_metrics, count_hits, wilson_interval


@pytest.mark.parametrize(("hits", "num_images"), [(50, 100), (0, 10), (10, 10), (1, 3), (3588, 10000)])
def test_wilson_interval_is_scipys(hits, num_images):
    oracle = binomtest(hits, num_images).proportion_ci(method="wilson")
    assert wilson_interval(hits, num_images) == pytest.approx((oracle.low, oracle.high), abs=1e-6)


@pytest.mark.parametrize(("hits", "num_images"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(hits, num_images):
    with pytest.raises(ValueError, match="no more hits than images"):
        wilson_interval(hits, num_images)


def test_top1_and_top5_in_percent_with_the_interval_of_top1():
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1]])
    metrics = accuracy_metrics(scores, torch.tensor([0, 1, 4, 5]))
    low, high = wilson_interval(1, 4)
    assert metrics == {"top1": 25.0, "top5": 75.0, "top1_ci95_low": 100 * low, "top1_ci95_high": 100 * high}


def test_top5_says_nothing_about_five_classes():
    assert "top5" not in accuracy_metrics(torch.eye(5), torch.arange(5))


@pytest.mark.parametrize("rank", [1, 5])
def test_a_score_that_is_not_finite_never_hits(rank):
    for hopeless in (-torch.inf, torch.nan):
        scores = torch.full((1, 6), hopeless)
        assert [int(count_hits(scores, torch.tensor([label]), rank)) for label in range(6)] == [0] * 6
