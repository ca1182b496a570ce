"""Logistic regression on frozen features."""

from collections.abc import Callable
from typing import ClassVar

from unmask.backbones.base import MaskedBackbone, Pooling
from unmask.evaluation.base import EvalReport, EvaluationData
from unmask.evaluation.evaluator import FeatureProtocol
from unmask.evaluation.features import FrozenFeatures, PooledLayer, describe_images, require_labels
from unmask.evaluation.metrics import accuracy_metrics
from unmask.heads.logistic_regression import LogisticRegression


class LogisticProbe(FeatureProtocol):
    """Fits logistic regression to the features of full training images and reports it once on the test split.

    The strength of its penalty is chosen by top-1 on the validation split. Features are read at full precision and
    without augmentation.

    Args:
        head: Completed with the width of the features and the number of classes.
        pool: How the tokens of the last layer become one vector.
        baseline: Whether a random backbone is to be measured beside.

    Raises:
        ValueError: At evaluation, labels are missing or the backbone cannot be pooled so.
    """

    is_seeded: ClassVar[bool] = False

    def __init__(
        self, *, head: Callable[..., LogisticRegression], pool: Pooling = "mean", baseline: bool = True
    ) -> None:
        self.head = head
        self.pool = pool
        self.baseline = baseline

    def pooled_layers(self, backbone: MaskedBackbone) -> tuple[PooledLayer, ...]:
        return (self._pooled_layer(backbone),)

    def require(self, backbone: MaskedBackbone, data: EvaluationData) -> None:
        require_labels(data, ("train", "val", "test"), evaluation="logistic")
        require_pooling(backbone, self.pool)

    def measure(self, features: FrozenFeatures) -> EvalReport:
        layer = self._pooled_layer(features.backbone)
        train, val, test = (features.read(split, layer).to(features.device) for split in ("train", "val", "test"))
        head = self.head(in_features=train.features.shape[1], num_classes=features.data.num_classes)
        head = head.to(features.device)
        choice = head.fit_best(train.features, train.labels, val.features, val.labels)
        grid = head.inverse_strengths
        name = features.backbone.layer_names[layer.number]
        return EvalReport(
            protocol=(
                f"logistic: L-BFGS on standardized features, inverse strength of {_join(grid)} by top-1 on val "
                f"({len(val.labels)}), at most {head.max_iterations} iterations, train ({len(train.labels)}), test "
                f"({len(test.labels)}), {type(features.backbone).__name__} {name}, {layer.pool} "
                f"({train.features.shape[1]}), {describe_images(features.data)}"
            ),
            metrics=accuracy_metrics(head(test.features), test.labels) | {"val_top1": 100.0 * max(choice.top1)},
            num_train_images=len(train.labels),
            num_test_images=len(test.labels),
            settings={
                "selected": f"inverse strength {choice.inverse_strength:g}",
                "selected_on": f"val ({len(val.labels)})",
                "val_top1_of_grid": _join([100.0 * top1 for top1 in choice.top1]),
                "is_at_edge_of_grid": "yes" if choice.inverse_strength in (grid[0], grid[-1]) else "no",
                "has_converged": "yes" if choice.has_converged else "no",
            },
        )

    def _pooled_layer(self, backbone: MaskedBackbone) -> PooledLayer:
        return PooledLayer(len(backbone.layer_names) - 1, self.pool)


def require_pooling(backbone: MaskedBackbone, pool: Pooling) -> None:
    """Refuses a pooling a backbone does not have.

    Raises:
        ValueError: It has not; the message names those it has.
    """
    if pool not in backbone.poolings:
        raise ValueError(
            f"{type(backbone).__name__} cannot be pooled by pool={pool!r}; use one of {', '.join(backbone.poolings)}"
        )


def _join(values: tuple[float, ...] | list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
