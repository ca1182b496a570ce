"""Settings in a protocol line."""

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

from unmask.data.augmentation.transforms import Augmentation
from unmask.evaluation.describe import describe


class Plain:
    def __init__(self, part: object = None) -> None:
        self.size, self.part, self._cache = 3, part, object()

    def method(self) -> None: ...


class Quoting:
    """Writes itself with the address of what it holds."""

    def __init__(self) -> None:
        self.part = Plain()

    def __str__(self) -> str:
        return f"Quoting({self.part})"


def looped() -> Plain:
    plain = Plain()
    plain.part = {"again": [plain]}
    return plain


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: functools.partial(nn.Linear, 3, bias=False), "Linear(3, bias=False)"),
        (lambda: functools.partial(functools.partial(Plain, size=1), part=Plain), "Plain(size=1, part=Plain)"),
        (Plain, "Plain(size=3, part=None)"),
        (lambda: Plain(Plain()), "Plain(size=3, part=Plain(size=3, part=None))"),
        (lambda: Plain().method, "Plain(size=3, part=None).method"),
        (Quoting, "Quoting(part=Plain(size=3, part=None))"),
        (looped, "Plain(size=3, part={again=[...]})"),
        (lambda: [1e-3, None, True, "text", (2, 0.5)], "[0.001, None, True, text, [2, 0.5]]"),
        (lambda: {"b", "a"}, "{a, b}"),
        (lambda: {"k": Path("here"), "dtype": torch.float32}, "{k=here, dtype=torch.float32}"),
        (object, "object()"),
    ],
)
def test_equal_settings_give_equal_lines_without_addresses(make, expected) -> None:
    first, second = make(), make()
    assert describe(first) == describe(second) == expected


def test_the_augmentation_of_fine_tuning_names_its_policy() -> None:
    line = describe(Augmentation(rand_augment="rand-m9-mstd0.5-inc1"))
    assert "rand_augment=rand-m9-mstd0.5-inc1" in line
    assert "0x" not in line
