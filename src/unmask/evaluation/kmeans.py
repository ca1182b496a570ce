"""k-means on the device the points lie on, with keyed randomness."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.randomness import stream_key

_DISTANCES_AT_ONCE = 2**25  # 128 MiB of float32, whatever the number of points


class Clusters(NamedTuple):
    """Where points were grouped."""

    centers: Float[Tensor, "k d"]
    inertia: float  # sum of squared distances to the nearest center


class Assignment(NamedTuple):
    """The nearest center of each point."""

    cluster: Int[Tensor, " n"]
    distance: Float[Tensor, " n"]  # squared


def k_means(
    points: Float[Tensor, "n d"], num_clusters: int, *, seed: int, num_starts: int = 10, max_iterations: int = 100
) -> Clusters:
    """Groups points by Lloyd's iterations from several starts and keeps the tightest.

    Starts are drawn by k-means++ (Arthur and Vassilvitskii, 2007): each center is a point, drawn in proportion to its
    squared distance from those before. A center that loses all its points moves to the point farthest from its own.

    Args:
        points: At least `num_clusters`.
        num_clusters: Centers sought.
        seed: Key of the draws.
        num_starts: Independent starts.
        max_iterations: Bound of each; it ends earlier once no point changes its center.
    """
    found = [
        _iterate(points, _draw_centers(points, num_clusters, key=stream_key(seed, "k-means", start)), max_iterations)
        for start in range(num_starts)
    ]
    return min(found, key=lambda clusters: clusters.inertia)


def nearest_centers(points: Float[Tensor, "n d"], centers: Float[Tensor, "k d"]) -> Assignment:
    """Finds the nearest center of each point, a bounded number of points at a time; of equals the first."""
    parts = []
    for block in points.split(max(1, _DISTANCES_AT_ONCE // len(centers))):
        squared = centers.square().sum(dim=1) - 2.0 * block @ centers.T
        nearest = squared.min(dim=1)
        distance = (nearest.values + block.square().sum(dim=1)).clamp(min=0.0)  # rounding may leave it below
        parts.append(Assignment(nearest.indices, distance))
    return Assignment(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _draw_centers(points: Float[Tensor, "n d"], num_clusters: int, *, key: int) -> Float[Tensor, "k d"]:
    generator = torch.Generator().manual_seed(key)
    draws = torch.rand(num_clusters, generator=generator, dtype=torch.float64)
    chosen = [int(draws[0] * len(points))]
    distance = nearest_centers(points, points[chosen]).distance
    for draw in draws[1:].tolist():
        cumulative = distance.double().cumsum(0)
        position = torch.searchsorted(cumulative, draw * cumulative[-1], right=True)
        chosen.append(min(int(position), len(points) - 1))
        distance = torch.minimum(distance, nearest_centers(points, points[chosen[-1:]]).distance)
    return points[chosen]


def _iterate(points: Float[Tensor, "n d"], centers: Float[Tensor, "k d"], max_iterations: int) -> Clusters:
    nearest = nearest_centers(points, centers)
    for _ in range(max_iterations):
        centers = _means(points, nearest, len(centers))
        moved = nearest_centers(points, centers)
        has_settled = torch.equal(moved.cluster, nearest.cluster)
        nearest = moved
        if has_settled:
            break
    return Clusters(centers, float(nearest.distance.double().sum()))


def _means(points: Float[Tensor, "n d"], nearest: Assignment, num_clusters: int) -> Float[Tensor, "k d"]:
    sums = points.new_zeros(num_clusters, points.shape[1])
    blocks = max(1, _DISTANCES_AT_ONCE // num_clusters)
    for block, cluster in zip(points.split(blocks), nearest.cluster.split(blocks), strict=True):
        # A product with one-hot rows, since adding rows by index has no fixed order on a GPU.
        sums += torch.nn.functional.one_hot(cluster, num_clusters).to(block.dtype).T @ block
    counts = nearest.cluster.bincount(minlength=num_clusters)
    means = sums / counts.clamp(min=1)[:, None]
    empty = (counts == 0).nonzero().squeeze(1)
    means[empty] = points[nearest.distance.topk(len(empty)).indices]
    return means
