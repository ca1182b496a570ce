"""A classifier trained on a frozen backbone, on augmented images."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import EvalReport, EvaluationData, MakeTrainer
from unmask.evaluation.evaluator import BackboneEvaluator
from unmask.evaluation.features import require_labels
from unmask.evaluation.last_and_best import train_and_report
from unmask.evaluation.logistic import LogisticProbe


class Frozen(BackboneEvaluator):
    """Trains a head on a backbone whose weights, buffers and modes stay as they are.

    Training images are augmented anew in every epoch, as fine-tuning's are, so nothing is cached and an epoch costs
    the backbone's forward pass. `top1` is the last epoch, for which nothing is selected; `top1_best_epoch` the epoch
    of the highest top-1 on the validation split.

    A head that is fitted at once (`head=logistic_regression`) is fitted to cached features of full images instead, by
    `LogisticProbe`; it has no use for epochs, optimizer, schedule and augmentation.

    Args:
        name: What the protocol is called in reports and messages.
        head: Completed with the width of what it reads and the number of classes.
        classifier: Completed with `backbone` and `num_classes`; holds the same head, keeps its backbone frozen and
            logs `val/top1`, `test/top1` and `test/top5`.
        epochs: Passes over the training split.
        baseline: Whether a random backbone is to be measured beside.

    Raises:
        ValueError: `epochs` is not positive; at evaluation, labels are missing, or no validation ran.
    """

    def __init__(
        self,
        *,
        name: str,
        head: Callable[..., Any],
        classifier: Callable[..., Any],
        epochs: int,
        baseline: bool = False,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"eval.epochs must be at least 1, got {epochs}")
        self.name = name
        self.head = head
        self.classifier = classifier
        self.epochs = epochs
        self.baseline = baseline

    def settings_without_effect(self) -> dict[str, str]:
        """A head that is fitted at once leaves nothing to train."""
        if not self._head_class.is_fitted_at_once:
            return {}
        reason = f"{self._head_class.__name__} is fitted at once to features of full images"
        return dict.fromkeys(("epochs", "classifier.optimizer", "classifier.schedule"), reason)

    def num_training_images(self, num_labeled: int) -> int | None:
        return None if self._head_class.is_fitted_at_once else num_labeled

    @property
    def _head_class(self) -> Any:
        return self.head.func if isinstance(self.head, functools.partial) else self.head

    def evaluate(self, backbone: MaskedBackbone, data: EvaluationData, make_trainer: MakeTrainer) -> EvalReport:
        require_labels(data, ("train", "val", "test"), evaluation=self.name)
        module = self.classifier(backbone=copy.deepcopy(backbone), num_classes=data.num_classes)
        if module.head.is_fitted_at_once:
            fitted = LogisticProbe(head=self.head, pool=module.pool).evaluate(backbone, data, make_trainer)
            return dataclasses.replace(fitted, protocol=f"{self.name}: {fitted.protocol}")
        return train_and_report(
            module.train(),
            data,
            make_trainer,
            evaluation=self.name,
            what=f"frozen backbone, head on {module.what_is_read}",
            classifier=self.classifier,
            epochs=self.epochs,
        )
