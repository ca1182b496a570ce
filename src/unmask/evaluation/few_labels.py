"""Which training images a few-shot protocol may use the labels of."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.evaluation.base import EvaluationData
from unmask.randomness import keyed_permutation, stream_key


class Budget(NamedTuple):
    """How many labels a class has."""

    name: str  # "1pct" or "5shot", as in the names of metrics and files
    fraction: float | None  # of each class's training images
    per_class: int | None


class FewLabels:
    """Chooses labeled images by rule and writes down which.

    Of each class the first images of an order that is a function of the seed and the split are taken, so the images of
    a small budget are among those of every larger one with the same seed. A fraction is taken of each class,
    rounded, and at least one image.

    Args:
        label_fractions: Fractions of the training images, evenly over the classes, in (0, 1].
        per_class: Numbers of images of each class.
        seeds: Keys of the choices, one list each.
        directory: Where lists are written.

    Raises:
        ValueError: Nothing is asked for, or a value is out of range or named twice.
    """

    def __init__(
        self, *, label_fractions: Sequence[float], per_class: Sequence[int], seeds: Sequence[int], directory: str | Path
    ) -> None:
        if not label_fractions and not per_class:
            raise ValueError(
                "eval.label_fractions and eval.per_class are both empty; set eval.label_fractions=[0.01] or "
                "eval.per_class=[5]"
            )
        if not all(0.0 < fraction <= 1.0 for fraction in label_fractions):
            raise ValueError(
                f"eval.label_fractions must lie above 0 and at most 1 (0.01 is one percent), got "
                f"{list(label_fractions)}"
            )
        if not all(count >= 1 for count in per_class):
            raise ValueError(f"eval.per_class must be whole numbers from 1, got {list(per_class)}")
        if not seeds:
            raise ValueError("eval.seeds is empty; name one seed or more, such as [0, 1, 2]")
        for name, values in (("label_fractions", label_fractions), ("per_class", per_class), ("seeds", seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"eval.{name} names a value twice: {list(values)}")
        self.budgets = (
            *(Budget(f"{100.0 * fraction:g}pct", fraction, None) for fraction in label_fractions),
            *(Budget(f"{count}shot", None, count) for count in per_class),
        )
        self.seeds = tuple(seeds)
        self.directory = Path(directory)

    def require(self, data: EvaluationData, *, evaluation: str) -> None:
        """Refuses a budget the training images cannot meet.

        Raises:
            ValueError: A class has fewer images than a budget asks for, or none.
        """
        counts = data.dataset("train").labels.bincount(minlength=data.num_classes)
        wanted = max([budget.per_class for budget in self.budgets if budget.per_class is not None], default=1)
        rarest = int(counts.argmin())
        if int(counts[rarest]) < wanted:
            raise ValueError(
                f"eval={evaluation} asks for {wanted} training image(s) of each class, but class "
                f"{data.class_names[rarest]!r} has {int(counts[rarest])}; "
                + (f"use eval.per_class of at most {int(counts[rarest])}" if counts[rarest] else "add images of it")
            )

    def choose(self, labels: Int[Tensor, " n"], budget: Budget, seed: int) -> Int[Tensor, " m"]:
        """Picks the positions of the labeled images, in rising order."""
        order = keyed_permutation(stream_key(seed, "few-labels"), len(labels))
        chosen = []
        for label in labels.unique():
            of_class = order[labels[order] == label]
            chosen.append(of_class[: _images_of_class(budget, len(of_class))])
        return torch.cat(chosen).sort().values

    def write(self, data: EvaluationData, budget: Budget, seed: int, positions: Int[Tensor, " m"]) -> Path:
        """Writes a list, a line `image, class number` each.

        Where the images are files, a line names the path and `data=filelist` reads the list; else it names the image
        by its number in the training split.
        """
        samples = data.dataset("train")
        lines = [
            f"# {len(positions)} of the {len(samples)} training images of {type(data).__name__}: {budget.name}, "
            f"seed {seed}",
            *(f"{samples.locate(p) or p}, {int(samples.labels[p])}" for p in positions.tolist()),
        ]
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"train_{budget.name}_seed{seed}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def mean_and_std(values: Sequence[float]) -> dict[str, float]:
    """Gives the mean and, of more than one value, their deviation (n - 1)."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return {"": mean}
    return {"": mean, "_std": math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))}


def _images_of_class(budget: Budget, size: int) -> int:
    if budget.per_class is not None:
        return budget.per_class
    assert budget.fraction is not None
    return max(1, round(budget.fraction * size))
