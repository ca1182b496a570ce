"""Fine-tuning: all weights learn, with labels."""

import copy
import functools
from collections.abc import Callable

from lightning import LightningModule

from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import EvalReport, EvaluationData, MakeTrainer
from unmask.evaluation.evaluator import BackboneEvaluator
from unmask.evaluation.features import require_labels
from unmask.evaluation.last_and_best import train_and_report


class FineTune(BackboneEvaluator):
    """Trains a copy of the backbone with a classifier on it and reports the last and the best epoch side by side.

    `top1` is the last epoch, for which nothing is selected; `top1_best_epoch` the epoch of the highest top-1 on the
    validation split, the number upstream logs print. Augmentation is the data module's.

    Args:
        classifier: Completed with `backbone` and `num_classes`; logs `val/top1`, `test/top1` and `test/top5`. A
            `layer_decay` of None is replaced by the default of the backbone's family.
        epochs: Passes over the training split.
        drop_path_rate: Stochastic depth of the last block while fine-tuning.
        label_fraction: Fraction of the training images used, evenly over the classes, in (0, 1]; `epochs` counts passes
            over them. Validation and test splits stay whole.
        label_seed: Key of their choice.
        baseline: Whether a random backbone is to be fine-tuned beside.

    Raises:
        ValueError: `epochs` is not positive or `label_fraction` out of range; at evaluation, labels are missing, or no
            validation ran.
    """

    def __init__(
        self,
        *,
        classifier: Callable[..., LightningModule],
        epochs: int,
        drop_path_rate: float = 0.1,
        label_fraction: float = 1.0,
        label_seed: int = 0,
        baseline: bool = False,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"eval.epochs must be at least 1, got {epochs}")
        if not 0.0 < label_fraction <= 1.0:
            raise ValueError(f"eval.label_fraction must lie above 0 and at most 1, got {label_fraction}")
        self.classifier = classifier
        self.epochs = epochs
        self.drop_path_rate = drop_path_rate
        self.label_fraction = label_fraction
        self.label_seed = label_seed
        self.baseline = baseline

    def settings_without_effect(self) -> dict[str, str]:
        """Where all training images are used, none are chosen."""
        return {"label_seed": "eval.label_fraction=1 uses all training images"} if self.label_fraction == 1.0 else {}

    def num_training_images(self, num_labeled: int) -> int:
        return max(1, round(self.label_fraction * num_labeled))

    def evaluate(self, backbone: MaskedBackbone, data: EvaluationData, make_trainer: MakeTrainer) -> EvalReport:
        require_labels(data, ("train", "val", "test"), evaluation="finetune")
        data.loaded_splits.limit_training(self.label_fraction, seed=self.label_seed)
        own_backbone = copy.deepcopy(backbone)
        own_backbone.prepare_for_finetuning(drop_path_rate=self.drop_path_rate)
        classifier = _with_layer_decay(self.classifier, own_backbone)
        module = classifier(backbone=own_backbone, num_classes=data.num_classes).train()  # it was loaded in eval mode
        return train_and_report(
            module,
            data,
            make_trainer,
            evaluation="finetune",
            what=f"all weights, drop path {self.drop_path_rate:g}",
            classifier=classifier,
            epochs=self.epochs,
            chosen=f" of seed {self.label_seed}" if self.label_fraction < 1.0 else "",
        )


def _with_layer_decay(
    classifier: Callable[..., LightningModule], backbone: MaskedBackbone
) -> Callable[..., LightningModule]:
    settings = classifier.keywords if isinstance(classifier, functools.partial) else {}
    if "layer_decay" in settings and settings["layer_decay"] is None:
        return functools.partial(classifier, layer_decay=backbone.default_layer_decay)
    return classifier
