"""k-nearest-neighbor classification of frozen features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import EvalReport, EvaluationData
from unmask.evaluation.evaluator import FeatureProtocol
from unmask.evaluation.features import Features, FrozenFeatures, require_labels
from unmask.evaluation.metrics import accuracy_metrics

_QUERIES_AT_ONCE = 2**11
_BANK_AT_ONCE = 2**14  # with the queries 128 MiB of similarities, whatever the size of the bank


class Neighbors(NamedTuple):
    """The most similar images of the bank, the most similar first."""

    similarity: Float[Tensor, "n k"]  # cosine
    position: Int[Tensor, "n k"]  # in the bank


class KNN(FeatureProtocol):
    """Classifies each test image by a vote of the most similar training images (arXiv:1805.01978, section 3.4).

    A neighbor of cosine similarity s votes for its class with `exp(s / temperature)`. The search is exact. `k` and
    `temperature` of the headline are fixed beforehand; every other pair is reported beside it, so nothing is selected.
    Uniform votes are those of scikit-learn's `KNeighborsClassifier` on normalized features.

    Differs: a class without a vote is never among the top five, however few classes the neighbors have.

    Args:
        k: Neighbors of the headline, `top1` and `top5`.
        also_k: Further counts, each reported as `top1_k<count>` as the headline's is.
        uniform_k: Neighbors of the uniform vote, reported as `top1_uniform_k<count>`.
        temperature: Divides the similarities, > 0.
        also_temperatures: Further temperatures, each reported for every count as `top1_k<count>_t<temperature>`.
        baseline: Whether a random backbone is to be measured beside.

    Counts larger than the bank are left out, and the report says so.

    Raises:
        ValueError: A count or a temperature is not positive; at evaluation, labels are missing or the bank has
            fewer than `k` images.
    """

    is_seeded = False

    def __init__(
        self,
        *,
        k: int = 20,
        also_k: Sequence[int] = (10, 100, 200),
        uniform_k: int = 5,
        temperature: float = 0.07,
        also_temperatures: Sequence[float] = (),
        baseline: bool = True,
    ) -> None:
        if min(k, uniform_k, *also_k) < 1:
            raise ValueError(f"eval.k, also_k and uniform_k must be at least 1, got {k}, {list(also_k)}, {uniform_k}")
        if min([temperature, *also_temperatures]) <= 0.0:
            raise ValueError(
                f"eval.temperature and also_temperatures must be positive, got {temperature}, {list(also_temperatures)}"
            )
        self.k = k
        self.weighted_k = sorted({k, *also_k})
        self.uniform_k = uniform_k
        self.temperature = temperature
        self.also_temperatures = sorted({*also_temperatures} - {temperature})
        self.baseline = baseline

    def require(self, backbone: MaskedBackbone, data: EvaluationData) -> None:
        require_labels(data, ("train", "test"), evaluation="knn")
        bank_size = len(data.dataset("train"))
        if self.k > bank_size:
            raise ValueError(
                f"eval=knn asks for k={self.k} neighbors, but the train split has {bank_size} images; "
                f"set eval.k={bank_size} or less"
            )

    def measure(self, features: FrozenFeatures) -> EvalReport:
        bank, query = features.read("train"), features.read("test")
        bank_size = len(bank.labels)
        left_out = [count for count in (*self.weighted_k, self.uniform_k) if count > bank_size]
        return EvalReport(
            protocol=(
                f"knn: cosine, k={self.k}, temperature {self.temperature:g}, bank train ({bank_size}), "
                f"query test ({len(query.labels)}), {features.description}"
            ),
            metrics=self.score(bank, query, features.data.num_classes, device=features.device),
            num_train_images=bank_size,
            num_test_images=len(query.labels),
            settings={"left_out": f"k of {left_out}: the bank has {bank_size} images"} if left_out else {},
            headline=("top1", "top5"),
        )

    def score(
        self, bank: Features, query: Features, num_classes: int, *, device: torch.device | None = None
    ) -> dict[str, float]:
        """Measures features that are at hand, in percent; computes on `device`, or where the bank lies."""
        bank_size = len(bank.labels)
        weighted_k = [count for count in self.weighted_k if count <= bank_size]
        most = min(max(*weighted_k, self.uniform_k), bank_size)
        neighbors = nearest_neighbors(query.features, bank.features, most, device=device)
        classes, labels = bank.labels.to(neighbors.position.device)[neighbors.position], query.labels
        labels = labels.to(classes.device)

        def score(count: int, votes: Float[Tensor, "b k"]) -> dict[str, float]:
            return accuracy_metrics(count_votes(classes[:, :count], votes[:, :count], num_classes), labels)

        weights = _weights(neighbors, self.temperature)
        metrics = score(self.k, weights)
        metrics |= {f"top1_k{count}": score(count, weights)["top1"] for count in weighted_k}
        for temperature in self.also_temperatures:
            weights = _weights(neighbors, temperature)
            metrics |= {f"top1_k{count}_t{temperature:g}": score(count, weights)["top1"] for count in weighted_k}
        if self.uniform_k <= bank_size:
            metrics[f"top1_uniform_k{self.uniform_k}"] = score(self.uniform_k, torch.ones_like(weights))["top1"]
        return metrics


def nearest_neighbors(
    query: Float[Tensor, "n d"], bank: Float[Tensor, "m d"], k: int, *, device: torch.device | None = None
) -> Neighbors:
    """Finds the `k` images of the bank most similar to each query, exactly, a block of either at a time.

    Args:
        query, bank: Of any norm; they may lie in main memory, blocks are moved to `device`.
        k: At most the size of the bank.
        device: Where it is computed and the result stays; by default where the bank lies.
    """
    queries = F.normalize(query, dim=1).to(device if device is not None else bank.device).split(_QUERIES_AT_ONCE)
    nearest = [
        Neighbors(part.new_empty(len(part), 0), part.new_empty((len(part), 0), dtype=torch.long)) for part in queries
    ]
    for start in range(0, len(bank), _BANK_AT_ONCE):
        block = F.normalize(bank[start : start + _BANK_AT_ONCE].to(queries[0].device), dim=1)
        nearest = [_merge(found, part @ block.T, start, k) for found, part in zip(nearest, queries, strict=True)]
    return Neighbors(*(torch.cat(parts) for parts in zip(*nearest, strict=True)))


def count_votes(
    classes: Int[Tensor, "n k"], votes: Float[Tensor, "n k"], num_classes: int
) -> Float[Tensor, "n {num_classes}"]:
    """Adds up each class's votes; minus infinity where it has none."""
    ballots = votes.new_zeros(len(classes), num_classes).scatter_add(1, classes, votes)
    return ballots.masked_fill(ballots == 0.0, -torch.inf)


def _merge(found: Neighbors, similarity: Float[Tensor, "n block"], start: int, k: int) -> Neighbors:
    """Keeps the best `k` of what was found and of a block of the bank that begins at `start`."""
    block = similarity.topk(min(k, similarity.shape[1]), dim=1)  # largest first
    similarity = torch.cat([found.similarity, block.values], dim=1)
    best = similarity.topk(min(k, similarity.shape[1]), dim=1)
    return Neighbors(best.values, torch.cat([found.position, block.indices + start], dim=1).gather(1, best.indices))


def _weights(neighbors: Neighbors, temperature: float) -> Float[Tensor, "n k"]:
    """Computes the votes relative to the nearest's, which changes no ranking and cannot overflow."""
    return ((neighbors.similarity - neighbors.similarity[:, :1]) / temperature).exp()
