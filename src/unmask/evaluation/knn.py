"""k-nearest-neighbour classification of frozen features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import EvalReport, EvaluationData, MakeTrainer
from unmask.evaluation.features import Features, describe_features, extract_features, require_labels, trainer_device
from unmask.evaluation.metrics import accuracy_metrics

_SIMILARITIES_AT_ONCE = 2**25  # 128 MiB of float32, whatever the size of the bank


class Neighbours(NamedTuple):
    """The most similar images of the bank, the most similar first."""

    similarity: Float[Tensor, "n k"]  # cosine
    position: Int[Tensor, "n k"]  # in the bank


class KNN:
    """Classifies each test image by a vote of the most similar training images (arXiv:1805.01978, section 3.4).

    A neighbour of cosine similarity s votes for its class with `exp(s / temperature)`. The search is exact. `k` is
    fixed beforehand and the other counts are reported beside it, so nothing is selected. Uniform votes are those of
    scikit-learn's `KNeighborsClassifier` on normalised features.

    Differs: a class without a vote is never among the top five, however few classes the neighbours have.

    Args:
        k: Neighbours of the headline, `top1` and `top5`.
        also_k: Further counts, each reported as `top1_k<count>` as the headline's is.
        uniform_k: Neighbours of the uniform vote, reported as `top1_uniform_k<count>`.
        temperature: Divides the similarities, > 0.
        baseline: Whether a random backbone is to be measured beside.

    Counts larger than the bank are left out, and the report says so.

    Raises:
        ValueError: A count or the temperature is not positive; at evaluation, labels are missing or the bank has
            fewer than `k` images.
    """

    def __init__(
        self,
        *,
        k: int = 20,
        also_k: Sequence[int] = (10, 100, 200),
        uniform_k: int = 5,
        temperature: float = 0.07,
        baseline: bool = True,
    ) -> None:
        if min(k, uniform_k, *also_k) < 1:
            raise ValueError(f"eval.k, also_k and uniform_k must be at least 1, got {k}, {list(also_k)}, {uniform_k}")
        if temperature <= 0.0:
            raise ValueError(f"eval.temperature must be positive, got {temperature}")
        self.k = k
        self.weighted_k = sorted({k, *also_k})
        self.uniform_k = uniform_k
        self.temperature = temperature
        self.baseline = baseline

    def evaluate(self, backbone: MaskedBackbone, data: EvaluationData, make_trainer: MakeTrainer) -> EvalReport:
        require_labels(data, ("train", "test"), evaluation="knn")
        bank_size = len(data.samples("train"))
        if self.k > bank_size:
            raise ValueError(
                f"eval=knn asks for k={self.k} neighbours, but the train split has {bank_size} images; "
                f"set eval.k={bank_size} or less"
            )
        device = trainer_device(make_trainer)
        bank = extract_features(backbone, data, "train", device=device)
        query = extract_features(backbone, data, "test", device=device)
        left_out = [count for count in (*self.weighted_k, self.uniform_k) if count > bank_size]
        return EvalReport(
            protocol=(
                f"knn: cosine, k={self.k}, temperature {self.temperature:g}, bank train ({bank_size}), "
                f"query test ({len(query.labels)}), {describe_features(backbone, data)}"
            ),
            metrics=self.score(bank, query, data.num_classes),
            num_train_images=bank_size,
            num_test_images=len(query.labels),
            settings={"left_out": f"k of {left_out}: the bank has {bank_size} images"} if left_out else {},
        )

    def score(self, bank: Features, query: Features, num_classes: int) -> dict[str, float]:
        """Measures features that are at hand, in percent."""
        bank_size = len(bank.labels)
        weighted_k = [count for count in self.weighted_k if count <= bank_size]
        neighbours = nearest_neighbours(query.features, bank.features, min(max(*weighted_k, self.uniform_k), bank_size))
        classes = bank.labels[neighbours.position]
        # Relative to the nearest, which changes no vote's share and cannot overflow.
        weights = ((neighbours.similarity - neighbours.similarity[:, :1]) / self.temperature).exp()

        def score(count: int, votes: Float[Tensor, "b k"]) -> dict[str, float]:
            ballots = count_votes(classes[:, :count], votes[:, :count], num_classes)
            return accuracy_metrics(ballots, query.labels)

        metrics = score(self.k, weights)
        metrics |= {f"top1_k{count}": score(count, weights)["top1"] for count in weighted_k}
        if self.uniform_k <= bank_size:
            metrics[f"top1_uniform_k{self.uniform_k}"] = score(self.uniform_k, torch.ones_like(weights))["top1"]
        return metrics


def nearest_neighbours(query: Float[Tensor, "n d"], bank: Float[Tensor, "m d"], k: int) -> Neighbours:
    """Finds the `k` images of the bank most similar to each query, exactly, a bounded number of queries at a time."""
    bank = F.normalize(bank, dim=1)
    queries_at_once = max(1, _SIMILARITIES_AT_ONCE // len(bank))
    found = [
        (F.normalize(query[start : start + queries_at_once], dim=1) @ bank.T).topk(k, dim=1)  # largest first
        for start in range(0, len(query), queries_at_once)
    ]
    return Neighbours(torch.cat([part.values for part in found]), torch.cat([part.indices for part in found]))


def count_votes(
    classes: Int[Tensor, "n k"], votes: Float[Tensor, "n k"], num_classes: int
) -> Float[Tensor, "n {num_classes}"]:
    """Adds up each class's votes; minus infinity where it has none."""
    ballots = votes.new_zeros(len(classes), num_classes).scatter_add(1, classes, votes)
    return ballots.masked_fill(ballots == 0.0, -torch.inf)
