"""Images of a class never seen before, told by their distance to what was seen."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import EvalReport, EvaluationData
from unmask.evaluation.evaluator import FeatureProtocol
from unmask.evaluation.features import Features, FrozenFeatures, require_labels
from unmask.evaluation.knn import nearest_neighbors
from unmask.evaluation.metrics import auroc


class Anomaly(FeatureProtocol):
    """Takes one class after another as the anomaly and asks whether its test images lie farther from the others.

    The training images of the other classes are the bank; the score of a test image is its mean distance to the `k`
    nearest of them (DN2, arXiv:2002.10445). `auroc` is the mean over the classes of the area under the curve that
    separates the class's test images from all others, `auroc_<class>` that of one class; 50 is chance.

    Differs: DN2 takes one class as normal and the others as anomalies; features are scaled to unit length, so that the
    squared distance is `2 - 2 cos`.

    Args:
        k: Neighbors averaged over.
        classes: Names of the classes held out, one at a time; None takes every class that has test images.
        baseline: Whether a random backbone is to be measured beside.

    Raises:
        ValueError: `k` is not positive or `classes` empty; at evaluation, labels are missing, a class is unknown or has
            no test image, or fewer than `k` training images are left without it.
    """

    is_seeded = False

    def __init__(self, *, k: int = 2, classes: Sequence[str | int] | None = None, baseline: bool = True) -> None:
        if k < 1:
            raise ValueError(f"eval.k must be at least 1, got {k}")
        if classes is not None and not classes:
            raise ValueError("eval.classes must name at least one class, or be null for all, got []")
        self.k = k
        self.classes = None if classes is None else [str(name) for name in classes]
        self.baseline = baseline

    def require(self, backbone: MaskedBackbone, data: EvaluationData) -> None:
        require_labels(data, ("train", "test"), evaluation="anomaly")
        names, num_images = list(data.class_names), len(data.dataset("test"))
        unknown = [name for name in self.classes or () if name not in names]
        if unknown:
            raise ValueError(f"eval.classes has {unknown}, which the data does not; its classes are {_some(names)}")
        for held_out in self._held_out(data):
            num_present = int((data.dataset("test").labels == held_out).sum())
            if num_present in (0, num_images):
                raise ValueError(
                    f"eval=anomaly holds out {names[held_out]!r}, but {num_present} of the {num_images} test images "
                    "are of that class; AUROC needs both kinds, so name other classes by eval.classes=[...]"
                )
            left = int((data.dataset("train").labels != held_out).sum())
            if left < self.k:
                raise ValueError(
                    f"eval=anomaly asks for k={self.k} neighbors, but the train split has {left} images without "
                    f"{names[held_out]!r}; set eval.k={max(1, left)} or less, or use more data"
                )

    def measure(self, features: FrozenFeatures) -> EvalReport:
        data, bank, query = features.data, features.read("train"), features.read("test")
        held_out = self._held_out(data)
        distances = distances_without(query.features, bank, held_out, self.k, device=features.device)
        areas = {
            data.class_names[number]: auroc(column, query.labels.to(column.device) == number)
            for number, column in zip(held_out, distances.unbind(dim=1), strict=True)
        }
        chosen = "each class" if self.classes is None else f"{', '.join(areas)}"
        return EvalReport(
            protocol=(
                f"anomaly: mean cosine distance to k={self.k} nearest, {chosen} held out in turn, "
                f"bank the rest of train ({len(bank.labels)}), test ({len(query.labels)}), {features.description}"
            ),
            metrics={"auroc": sum(areas.values()) / len(areas)}
            | {f"auroc_{name}": area for name, area in areas.items()},
            num_train_images=len(bank.labels),
            num_test_images=len(query.labels),
            headline=("auroc",),
        )

    def _held_out(self, data: EvaluationData) -> list[int]:
        if self.classes is not None:
            return [list(data.class_names).index(name) for name in dict.fromkeys(self.classes)]
        present: list[int] = data.dataset("test").labels.unique().tolist()
        return present


def distances_without(
    query: Float[Tensor, "n d"],
    bank: Features,
    held_out: Sequence[int],
    k: int,
    *,
    device: torch.device | None = None,
) -> Float[Tensor, "n held_out"]:
    """Averages the cosine distance to the `k` nearest images of the bank without each class in turn.

    The bank is searched once, class by class: the `2 k` nearest, at most `k` of a class, hold the `k` nearest that any
    one class leaves.
    """
    classes: list[int] = bank.labels.unique().tolist()
    nearest = [_similarities(query, bank, number, k, device) for number in classes]
    owner = torch.cat([torch.full((part.shape[1],), number) for part, number in zip(nearest, classes, strict=True)]).to(
        nearest[0].device
    )
    similarity = torch.cat(nearest, dim=1)
    best = similarity.topk(min(2 * k, similarity.shape[1]), dim=1)
    owners = owner[best.indices]
    without = [best.values.masked_fill(owners == number, -torch.inf).topk(k, dim=1) for number in held_out]
    return torch.stack([1.0 - kept.values.mean(dim=1) for kept in without], dim=1)


def _similarities(
    query: Float[Tensor, "n d"], bank: Features, number: int, k: int, device: torch.device | None
) -> Float[Tensor, "n nearest"]:
    own: Int[Tensor, " m"] = (bank.labels == number).nonzero().squeeze(1)
    return nearest_neighbors(query, bank.features[own], min(k, len(own)), device=device).similarity


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
