"""Groups as scikit-learn finds them, from starts that are keyed."""

import pytest
import torch
from sklearn.cluster import KMeans

from unmask.evaluation import kmeans
from unmask.evaluation.kmeans import k_means, nearest_centers


@pytest.fixture
def overlapping():
    """Five groups that overlap, so that starts differ in where they end."""
    centers = 2.0 * torch.randn(5, 4)
    return centers[torch.arange(300) % 5] + torch.randn(300, 4)


def test_iterations_end_where_scikit_learns_do_from_the_same_start(overlapping, monkeypatch):
    start = overlapping[:5].clone()
    monkeypatch.setattr(kmeans, "_draw_centers", lambda points, count, key: start)
    found = k_means(overlapping, 5, seed=0, num_starts=1)
    oracle = KMeans(5, init=start.numpy(), n_init=1, algorithm="lloyd", tol=0.0).fit(overlapping.numpy())
    torch.testing.assert_close(found.centers, torch.from_numpy(oracle.cluster_centers_), atol=1e-4, rtol=1e-4)
    assert found.inertia == pytest.approx(oracle.inertia_, rel=1e-4)
    assert nearest_centers(overlapping, found.centers).cluster.tolist() == oracle.labels_.tolist()


def test_the_tightest_of_the_starts_counts_and_a_seed_repeats_it(overlapping):
    alone = [k_means(overlapping, 5, seed=seed, num_starts=1).inertia for seed in range(8)]
    assert max(alone) > 1.01 * min(alone)
    together = k_means(overlapping, 5, seed=3, num_starts=8)
    torch.manual_seed(99)
    again = k_means(overlapping, 5, seed=3, num_starts=8)
    assert torch.equal(again.centers, together.centers)
    assert together.inertia <= k_means(overlapping, 5, seed=3, num_starts=1).inertia
    assert together.inertia < 1.01 * min(alone)


def test_starts_are_drawn_in_proportion_to_the_squared_distance():
    """Points at 0 (twice), 1 and 3: after a first center at 0 the second is 3 with probability 9 / 10."""
    points = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    draws = [kmeans._draw_centers(points, 2, key=key).flatten().tolist() for key in range(1200)]
    first, after_zero = [a for a, _ in draws], [b for a, b in draws if a == 0.0]
    assert first.count(0.0) / 1200 == pytest.approx(0.5, abs=0.06)  # 4 standard errors
    assert 0.0 not in after_zero
    assert after_zero.count(3.0) / len(after_zero) == pytest.approx(0.9, abs=0.05)


def test_blocks_change_nothing(overlapping, monkeypatch):
    whole = k_means(overlapping, 5, seed=0, num_starts=2)
    monkeypatch.setattr(kmeans, "_DISTANCES_AT_ONCE", 5 * 7)
    blocks = k_means(overlapping, 5, seed=0, num_starts=2)
    torch.testing.assert_close(blocks.centers, whole.centers)
    assert blocks.inertia == pytest.approx(whole.inertia, rel=1e-5)


def test_a_center_without_points_moves_to_the_farthest_one(monkeypatch):
    points = torch.tensor([[0.0], [0.1], [0.2], [10.0]])
    monkeypatch.setattr(kmeans, "_draw_centers", lambda points, count, key: torch.tensor([[0.0], [-50.0]]))
    found = k_means(points, 2, seed=0, num_starts=1)
    assert sorted(found.centers.flatten().tolist()) == pytest.approx([0.1, 10.0])


def test_points_that_are_all_alike_are_no_obstacle():
    found = k_means(torch.ones(6, 3), 3, seed=0)
    assert torch.equal(found.centers, torch.ones(3, 3))
    assert found.inertia == 0.0
