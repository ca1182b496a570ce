"""Accuracy and its interval, clusters against classes, the area under a curve."""

from itertools import permutations

import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score

from unmask.evaluation.metrics import accuracy_metrics, auroc, clustering_metrics, count_hits, wilson_interval


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


@pytest.mark.parametrize(("num_clusters", "num_classes"), [(4, 4), (5, 4), (3, 4)])
def test_clusters_are_compared_as_scikit_learn_and_every_assignment_would(num_clusters, num_classes):
    labels = torch.randint(num_classes, (3000,))
    drawn = torch.randint(num_clusters, (3000,))
    clusters = torch.where(torch.rand(3000) < 0.4, (2 * labels + 1) % num_clusters, drawn)
    metrics = clustering_metrics(clusters, labels)
    assert metrics["nmi"] == pytest.approx(100 * normalized_mutual_info_score(labels, clusters), rel=1e-4)
    assert metrics["ari"] == pytest.approx(100 * adjusted_rand_score(labels, clusters), rel=1e-4)
    names = range(max(num_clusters, num_classes))
    best = max(int((torch.tensor(order)[clusters] == labels).sum()) for order in permutations(names))
    assert metrics["clustering_accuracy"] == pytest.approx(100 * best / 3000)
    assert 0 < metrics["ari"] < 100


def test_names_of_perfect_clusters_make_no_difference():
    labels = torch.arange(30) % 3
    assert clustering_metrics((labels + 1) % 3, labels) == pytest.approx(
        {"clustering_accuracy": 100.0, "nmi": 100.0, "ari": 100.0}
    )


@pytest.mark.parametrize("num_values", [3, 10**9])
def test_the_area_under_the_curve_is_scikit_learns_with_and_without_equal_scores(num_values):
    is_positive = torch.rand(500) < 0.2
    scores = torch.randint(num_values, (500,)) / num_values + 2.0 + 0.3 * is_positive
    oracle = 100 * roc_auc_score(is_positive.numpy(), scores.numpy())
    assert auroc(scores, is_positive) == pytest.approx(oracle)
    assert 50 < oracle < 100
    assert auroc(-scores, is_positive) == pytest.approx(100 - oracle)


@pytest.mark.parametrize("value", [True, False])
def test_an_area_needs_both_kinds(value):
    with pytest.raises(ValueError, match="needs positives and negatives"):
        auroc(torch.rand(4), torch.full((4,), value))
