"""How far few labels go on frozen features."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from unmask.backbones.base import MaskedBackbone, Pooling
from unmask.evaluation.base import EvalReport, EvaluationData
from unmask.evaluation.evaluator import FeatureProtocol
from unmask.evaluation.features import FrozenFeatures, PooledLayer, describe_images, require_labels
from unmask.evaluation.few_labels import Budget, FewLabels, mean_and_std
from unmask.evaluation.logistic import require_pooling
from unmask.evaluation.metrics import accuracy_metrics
from unmask.heads.logistic_regression import LogisticRegression


class FewShot(FeatureProtocol):
    """Fits logistic regression to the features of a few labeled images, several times over.

    Each budget of labels is filled once for each seed, and the lists are written down. `top1_1pct` and the like are
    means over the seeds of the accuracy on the whole test split, with their deviation beside as `top1_1pct_std`.
    Features are standardized by the labeled images alone. The strength of the penalty is fixed beforehand, so nothing
    is selected: with one image of each class there is nothing to select on.

    Args:
        label_fractions: Fractions of the training images, evenly over the classes; 0.01 is one percent.
        per_class: Numbers of images of each class.
        seeds: Keys of the lists.
        directory: Where the lists are written, a line `image, class number` each.
        inverse_strength: Of the penalty, see `LogisticRegression`.
        max_iterations: Of L-BFGS.
        pool: How the tokens of the last layer become one vector.
        baseline: Whether a random backbone is to be measured beside, on the same lists.

    Raises:
        ValueError: A value is out of range; at evaluation, labels are missing, a class has fewer images than are asked
            for, or the backbone cannot be pooled so.
    """

    is_seeded: ClassVar[bool] = False  # it averages over seeds by itself

    def __init__(
        self,
        *,
        label_fractions: Sequence[float] = (0.01, 0.05, 0.1),
        per_class: Sequence[int] = (),
        seeds: Sequence[int] = (0, 1, 2),
        directory: str | Path,
        inverse_strength: float = 1.0,
        max_iterations: int = 500,
        pool: Pooling = "mean",
        baseline: bool = True,
    ) -> None:
        if inverse_strength <= 0.0:
            raise ValueError(f"eval.inverse_strength must be positive, got {inverse_strength}")
        self.few = FewLabels(label_fractions=label_fractions, per_class=per_class, seeds=seeds, directory=directory)
        self.inverse_strength = inverse_strength
        self.max_iterations = max_iterations
        self.pool = pool
        self.baseline = baseline

    def pooled_layers(self, backbone: MaskedBackbone) -> tuple[PooledLayer, ...]:
        return (self._pooled_layer(backbone),)

    def require(self, backbone: MaskedBackbone, data: EvaluationData) -> None:
        require_labels(data, ("train", "test"), evaluation="fewshot")
        self.few.require(data, evaluation="fewshot")
        require_pooling(backbone, self.pool)

    def measure(self, features: FrozenFeatures) -> EvalReport:
        metrics: dict[str, float] = {}
        sizes = {}
        for budget in self.few.budgets:
            measured = [self._measure_list(features, budget, seed) for seed in self.few.seeds]
            metrics |= {
                f"top1_{budget.name}{suffix}": value for suffix, value in mean_and_std([t for t, _ in measured]).items()
            }
            sizes[budget.name] = measured[0][1]
        layer = self._pooled_layer(features.backbone)
        num_train, num_test = len(features.data.dataset("train")), len(features.data.dataset("test"))
        listed = ", ".join(f"{name} ({size})" for name, size in sizes.items())
        return EvalReport(
            protocol=(
                f"fewshot: L-BFGS logistic regression on standardized features, inverse strength "
                f"{self.inverse_strength:g}, at most {self.max_iterations} iterations, {listed} of train "
                f"({num_train}), seeds {_join(self.few.seeds)}, test ({num_test}), {type(features.backbone).__name__} "
                f"{features.backbone.layer_names[layer.number]}, {layer.pool}, {describe_images(features.data)}"
            ),
            metrics=metrics,
            num_train_images=max(sizes.values()),
            num_test_images=num_test,
            settings={"lists": str(self.few.directory)},
            headline=tuple(f"top1_{budget.name}" for budget in self.few.budgets),
        )

    def _measure_list(self, features: FrozenFeatures, budget: Budget, seed: int) -> tuple[float, int]:
        """Writes one list, fits it and gives its top-1 in percent and its length."""
        layer = self._pooled_layer(features.backbone)
        train, test = (features.read(split, layer) for split in ("train", "test"))
        positions = self.few.choose(train.labels, budget, seed)
        self.few.write(features.data, budget, seed, positions)
        head = LogisticRegression(
            in_features=train.features.shape[1],
            num_classes=features.data.num_classes,
            max_iterations=self.max_iterations,
        ).to(features.device)
        chosen = train.features[positions].to(features.device), train.labels[positions].to(features.device)
        head.fit(*chosen, inverse_strength=self.inverse_strength)
        scores = head(test.features.to(features.device)).cpu()
        return accuracy_metrics(scores, test.labels)["top1"], len(positions)

    def _pooled_layer(self, backbone: MaskedBackbone) -> PooledLayer:
        return PooledLayer(len(backbone.layer_names) - 1, self.pool)


def _join(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
