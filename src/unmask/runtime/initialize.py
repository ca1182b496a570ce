"""Starts a run from weights that exist already."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from unmask.evaluation.base import Outputs
from unmask.evaluation.class_order import ClassOrder, match_classes
from unmask.interchange.classifier import Classifier
from unmask.interchange.conversion import Conversion
from unmask.interchange.detect_format import convert
from unmask.interchange.files import WeightFile, read_weights, refusing_nonsense
from unmask.interchange.load_weights import load_backbone_weights, load_head_weights
from unmask.methods.backbone_module import BackboneModule
from unmask.runtime.checkpoint import find_run

_log = logging.getLogger("unmask")
_HEAD = "head."  # of a classifier's module: its place


def initialize(
    method: BackboneModule,
    *,
    class_names: Sequence[str] = (),
    allow_partial: bool = False,
    use_ema_weights: bool = False,
) -> None:
    """Loads the file a method names in `init_from`, if any: its backbone, and its heads where the method has the same.

    A classifier's head is taken where each class of the data has one of its outputs, by the rules of evaluation
    (`match_classes`); its outputs are put in the order of the data. Nothing but weights is taken: optimizer, schedule
    and counters start afresh.

    Args:
        method: Filled in place.
        class_names: Of the data that it learns from, in the order of their labels; none where it learns without.
        allow_partial: Accept a file that lacks part of the backbone.
        use_ema_weights: Take the averaged teacher where the file holds one beside the trained weights.

    Raises:
        ValueError: The file cannot be read safely, is of no known program, or does not fit the backbone.
    """
    if method.init_from is None:
        return
    file = read_weights(method.init_from)
    with refusing_nonsense(method.init_from):
        conversion = convert(file, use_ema_weights=use_ema_weights)
        notes: list[str] = []
        if method.is_classifier:
            conversion, notes = _with_classifier(conversion, file, method, class_names)
        report = load_backbone_weights(method.backbone, conversion, allow_partial=allow_partial)
        report = load_head_weights(method, conversion, report)
    if not any(name.startswith(_HEAD) for name in report.heads):
        notes = []
    notes += method.on_weights_loaded(report.heads)
    _log.info("\n".join([str(method.init_from), report.describe(), *notes]))


def _with_classifier(
    conversion: Conversion, file: WeightFile, method: BackboneModule, class_names: Sequence[str]
) -> tuple[Conversion, list[str]]:
    """Puts the head of a file among those that are loaded, in the order of the data, or says why it is left out.

    Returns:
        The conversion, and what is known of the order of the classes.
    """
    classifier, run = conversion.classifier, find_run(file)
    if classifier is not None:
        outputs = Outputs(classifier.num_outputs, classifier.num_unused, classifier.class_names)
        heads: Mapping[str, Tensor] = {f"{_HEAD}{name}": weight for name, weight in classifier.weights.items()}
    elif run is not None and _own_head(method) & conversion.heads.keys():
        outputs = Outputs(run.num_classes, class_names=run.class_names)
        heads = conversion.heads
    else:
        return conversion, []
    names = heads if classifier is None else classifier.names
    reason = _other_features(classifier, conversion.settings, method) if classifier is not None else ""
    if not reason:
        try:
            order = match_classes(outputs, class_names)
        except ValueError as error:
            reason = f"a classifier of other classes than the data's ({error})"
    if reason:
        return replace(conversion, heads={}, left_out={**conversion.left_out, **dict.fromkeys(names, reason)}), []
    left_out = {name: why for name, why in conversion.left_out.items() if name not in names}
    ordered = _ordered(heads, order, num_outputs=outputs.num, num_classes=len(class_names))
    return replace(conversion, heads=ordered, left_out=left_out), [f"head: {order.finding}"]


def _own_head(method: BackboneModule) -> set[str]:
    return {name for name in method.state_dict() if name.startswith(_HEAD)}


def _other_features(classifier: Classifier, settings: Mapping[str, Any], method: BackboneModule) -> str:
    """Why a head does not belong on this backbone's features; empty where it does."""
    if classifier.pooling is None:
        return "a classifier of features that are not computed here"
    own = method.backbone.settings
    read = {"pooling": classifier.pooling, "norm_after_pooling": settings.get("norm_after_pooling")}
    differing = [f"model.{name}={str(value).lower()}" for name, value in read.items() if own.get(name, value) != value]
    return f"a classifier of other features; {' '.join(differing)} takes it" if differing else ""


def _ordered(
    heads: Mapping[str, Tensor], order: ClassOrder, *, num_outputs: int, num_classes: int
) -> dict[str, Tensor]:
    """Puts the rows of the last layer in the order of the data's classes and drops those of no class."""
    if order.positions is None and num_outputs == num_classes:
        return dict(heads)
    layers = [name.rpartition(".")[0] for name, weight in heads.items() if name.startswith(_HEAD) and weight.ndim > 1]
    last = layers[-1]
    kept = slice(num_classes) if order.positions is None else order.positions[:num_classes]
    return {
        name: weight[kept] if name.rpartition(".")[0] == last and len(weight) == num_outputs else weight
        for name, weight in heads.items()
    }
