"""The classifier a file of another program holds beside its backbone."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from unmask.backbones.base import Pooling
from unmask.heads.classifier import BatchNormMLPClassifier, LinearClassifier
from unmask.heads.classifier_head import ClassifierHead
from unmask.heads.probes import BatchNormLinearClassifier
from unmask.interchange.record import printable
from unmask.interchange.renaming import Rules

_NORM = ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
_LINEAR = ("linear.weight", "linear.bias")
_MLP = ("0", "2", "4")  # of `BatchNormMLPClassifier`: its linear layers
_MLP_NORM = tuple(f"1.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))
_PLACEHOLDER = re.compile(r"LABEL_\d+")  # by transformers, where classes have no names
_MAX_NAME = 200  # characters of a class


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """What turns pooled features into one number a class, as the file's own program computes it."""

    head: Callable[..., ClassifierHead]  # completed with `in_features` and `num_classes`
    weights: Mapping[str, Tensor]  # by the names of the head's `state_dict`
    names: tuple[str, ...]  # of these weights in the file
    num_outputs: int
    num_unused: int = 0  # last outputs that stand for no class
    pooling: Pooling | None = "mean"  # of the features; None: the file's program knows one that is not computed here
    class_names: tuple[str, ...] = ()  # in the order of the outputs; empty where the file does not name them
    assumed: str = ""  # what the file does not state, in a sentence


def take_classifier(
    weights: Mapping[str, Tensor],
    rules: Rules,
    *,
    pooling: Pooling | None = "mean",
    class_names: Any = None,
    num_unused: Mapping[int, int] | None = None,
    assumed: str = "",
) -> tuple[Classifier | None, dict[str, Tensor]]:
    """Separates a classifier from the other weights of a file.

    Args:
        weights: By the names of the file.
        rules: From these to `linear.*`, a layer, with `norm.*`, batch norm without affine part in front of it; or to
            `0.*`, `1.*`, `2.*` and `4.*`, the layers of `BatchNormMLPClassifier`. A name that no rule changes is none
            of the classifier's.
        pooling, assumed: See `Classifier`.
        class_names: As the file gives them, a list or a mapping of numbers to names; checked here.
        num_unused: Number of outputs -> how many of the last ones stand for no class.

    Returns:
        The classifier, None where there is none of a known form; and the other weights, which in that case are all.
    """
    found: dict[str, tuple[str, Tensor]] = {}
    for name, weight in weights.items():
        for pattern, replacement in rules:
            if re.match(pattern, name):
                found[re.sub(pattern, replacement, name)] = name, weight
                break
    own = {name: weight for name, (_, weight) in found.items()}
    head = _head(own)
    if head is None:
        return None, dict(weights)
    names = tuple(name for name, _ in found.values())
    num_outputs = next(own[last].shape[0] for last in ("linear.bias", f"{_MLP[-1]}.bias") if last in own)
    classifier = Classifier(
        head=head,
        weights=own,
        names=names,
        num_outputs=num_outputs,
        num_unused=(num_unused or {}).get(num_outputs, 0),
        pooling=pooling,
        class_names=_readable(class_names, num_outputs),
        assumed=assumed,
    )
    return classifier, {name: weight for name, weight in weights.items() if name not in names}


def _head(weights: Mapping[str, Tensor]) -> Callable[..., ClassifierHead] | None:
    """Chooses the head whose parts these are; None where they are of no known one."""
    names = weights.keys()
    if any(name.endswith("weight") and name != _MLP_NORM[0] and weights[name].ndim != 2 for name in names):
        return None
    if names == set(_LINEAR):
        return LinearClassifier
    if names == {*_LINEAR, *_NORM}:
        return BatchNormLinearClassifier
    if names == {*_MLP_NORM, *(f"{layer}.{part}" for layer in _MLP for part in ("weight", "bias"))}:
        return partial(BatchNormMLPClassifier, hidden_features=weights[_MLP_NORM[0]].shape[0])
    return None


def _readable(names: Any, num_outputs: int) -> tuple[str, ...]:
    """Reads the names of classes; empty where they are not one string an output, or stand for no name."""
    if isinstance(names, Mapping):
        numbered = {str(number): name for number, name in names.items()}
        names = [numbered.get(str(number)) for number in range(num_outputs)] if len(numbered) == num_outputs else None
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != num_outputs:
        return ()
    if not all(isinstance(name, str) for name in names) or all(map(_PLACEHOLDER.fullmatch, names)):
        return ()
    return tuple(printable(name[:_MAX_NAME]) for name in names)
