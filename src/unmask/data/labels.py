"""Labels as people write them: class numbers or class names."""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.data.dataset import UNLABELED

_log = logging.getLogger(__name__)


def number_labels(
    written: Sequence[str | None],
    classes: Sequence[str] = (),
    *,
    source: str,
    lines: Sequence[int] | None = None,
) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """Turns labels into class indices.

    Where all are whole numbers they are the indices, and the classes are named by their numbers from 0 to the
    largest; else they are names, numbered in their order.

    Args:
        written: One label an image; None or blank = unlabeled, which becomes -1.
        classes: Names found in the training split, which other splits must keep to; empty = find them here.
        source: Where the labels were read, for messages.
        lines: Number of the line of each label, for messages; None where there are no lines.

    Returns:
        The indices and the names of the classes; no names where nothing is labeled.

    Raises:
        ValueError: A number is negative, numbers and names are mixed, or a label is not one of `classes`.
    """

    def place(label: str | None) -> str:
        return source if lines is None else f"{source}:{lines[labels.index(label)]}"

    labels = [None if label is None or not label.strip() else label.strip() for label in written]
    present = {label for label in labels if label is not None}
    if not present:
        return torch.full((len(labels),), UNLABELED), ()
    if lines is not None and None in labels:
        _log.warning(
            "%s: no label, and %d of %d images have one; it is treated as unlabeled",
            place(None),
            len(labels) - labels.count(None),
            len(labels),
        )
    if not classes:
        names = sorted(label for label in present if not _is_whole(label))
        if not names:
            numbers = {label: int(label) for label in present}
            lowest = min(present, key=int)
            if numbers[lowest] < 0:
                raise ValueError(f"{place(lowest)} has the label {lowest}; classes are numbered from 0")
            classes = tuple(str(number) for number in range(max(numbers.values()) + 1))
        else:
            if len(names) < len(present) / 2:
                raise ValueError(
                    f"{place(names[0])} has the label {names[0]!r} among class numbers; write all labels as numbers, "
                    "or all as names"
                )
            classes = tuple(sorted(present))
    by_name = {name: index for index, name in enumerate(classes)}
    keys = {label: str(int(label)) if _is_whole(label) and label not in by_name else label for label in present}
    unknown = sorted(label for label in present if keys[label] not in by_name)
    if unknown:
        raise ValueError(
            f"{place(unknown[0])} has {len(unknown)} label(s) that no training image has, the first {unknown[0]!r}; "
            f"training has {len(classes)} classes: {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
        )
    return torch.tensor([UNLABELED if label is None else by_name[keys[label]] for label in labels]), tuple(classes)


def _is_whole(label: str) -> bool:
    return label.removeprefix("-").isdecimal()
