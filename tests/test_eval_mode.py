"""Eval mode for a while."""

import pytest
from torch import nn

from unmask.eval_mode import eval_mode


def modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


def test_every_part_gets_its_own_mode_back() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with eval_mode(module):
        assert modes(module) == [False, False, False]
    assert modes(module) == [True, True, False]


def test_modes_come_back_after_an_error() -> None:
    module = nn.Sequential(nn.Dropout()).train()
    with pytest.raises(ZeroDivisionError), eval_mode(module):
        _ = 1 / 0
    assert modes(module) == [True, True]
