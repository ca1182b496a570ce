"""Figures in percent, and how far chance in the choice of test images may move an accuracy."""

import math

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics.functional.clustering import adjusted_rand_score, normalized_mutual_info_score

_NORMAL_QUANTILE = 1.959964  # 97.5 %


def count_hits(scores: Float[Tensor, "b classes"], labels: Int[Tensor, " b"], rank: int = 1) -> Int[Tensor, ""]:
    """Counts the images whose class is among the `rank` best scored; a score that is not finite never hits.

    Of equal scores the lower class wins for `rank` 1.
    """
    if rank == 1:
        best, classes = scores.max(dim=1, keepdim=True)
    else:
        best, classes = scores.topk(rank, dim=1)
    return ((classes == labels[:, None]) & best.isfinite()).any(dim=1).sum()


def reported_ranks(num_classes: int) -> tuple[int, ...]:
    """Chooses top-1 and top-5, the latter only where it says something."""
    return (1, 5) if num_classes > 5 else (1,)


def accuracy_metrics(scores: Float[Tensor, "b classes"], labels: Int[Tensor, " b"]) -> dict[str, float]:
    """Measures top-1 with its interval and, from more than five classes on, top-5, in percent."""
    num_images, num_classes = scores.shape
    hits = {rank: int(count_hits(scores, labels, rank)) for rank in reported_ranks(num_classes)}
    accuracies = {f"top{rank}": 100.0 * count / num_images for rank, count in hits.items()}
    return accuracies | top1_interval(accuracies["top1"], num_images)


def top1_interval(top1: float, num_images: int) -> dict[str, float]:
    """Names the 95 % interval of a top-1 accuracy, all in percent."""
    low, high = wilson_interval(round(top1 / 100.0 * num_images), num_images)
    return {"top1_ci95_low": 100.0 * low, "top1_ci95_high": 100.0 * high}


def wilson_interval(hits: int, num_images: int) -> tuple[float, float]:
    """Bounds the fraction of hits with 95 % confidence (Wilson, 1927).

    It covers the choice of test images alone; repeated training spreads further. With p the fraction, n the images and
    z the quantile: `(p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n)`.

    Raises:
        ValueError: There is no image, or more hits than images.
    """
    if not 0 <= hits <= num_images or num_images == 0:
        raise ValueError(f"an interval needs at least one image and no more hits than images, got {hits}/{num_images}")
    fraction, shrink = hits / num_images, _NORMAL_QUANTILE**2 / num_images
    spread = math.sqrt(shrink * fraction * (1.0 - fraction) + shrink**2 / 4)
    center = fraction + shrink / 2
    return max(0.0, (center - spread) / (1.0 + shrink)), min(1.0, (center + spread) / (1.0 + shrink))


def clustering_metrics(clusters: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """Compares clusters with classes, in percent; what the clusters are called makes no difference.

    `clustering_accuracy` is the fraction of hits under the best assignment of clusters to classes, one to one (the
    Hungarian method; Xie et al., arXiv:1511.06335, eq. 10); `nmi` is the mutual information over the arithmetic mean of
    the entropies; `ari` the Rand index adjusted for chance, which is 0 for clusters drawn at random.
    """
    counts = torch.zeros(int(clusters.max()) + 1, int(labels.max()) + 1, dtype=torch.long, device=labels.device)
    counts.index_put_((clusters, labels), torch.ones_like(labels), accumulate=True)
    assigned = linear_sum_assignment(counts.cpu().numpy(), maximize=True)
    with torch.sparse.check_sparse_tensor_invariants():  # torch warns where no one has said whether to
        nmi, ari = normalized_mutual_info_score(clusters, labels, "arithmetic"), adjusted_rand_score(clusters, labels)
    return {
        "clustering_accuracy": 100.0 * int(counts.cpu().numpy()[assigned].sum()) / len(labels),
        "nmi": 100.0 * float(nmi),
        "ari": 100.0 * float(ari),
    }


def auroc(scores: Float[Tensor, " n"], is_positive: Bool[Tensor, " n"]) -> float:
    """Measures how often a positive scores above a negative, in percent; of equal scores half.

    That is the area under the curve of true over false positives.

    Raises:
        ValueError: There is no positive or no negative.
    """
    num_positives = int(is_positive.sum())
    num_pairs = num_positives * (len(scores) - num_positives)
    if num_pairs == 0:
        raise ValueError(f"AUROC needs positives and negatives, got {num_positives} of {len(scores)}")
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    rank = counts.cumsum(0).double() - (counts - 1) / 2  # of each value, from 1; equal ones fraction the middle
    below = float(rank[place[is_positive]].sum()) - num_positives * (num_positives + 1) / 2
    return 100.0 * below / num_pairs
