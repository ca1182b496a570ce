"""Stages of a hierarchical backbone, joined where they lie over each other."""

import pytest
import torch

from unmask.heads.stage_fusion import StageFusion
from unmask.types import FeatureStage

EARLY = (FeatureStage(2, 2), FeatureStage(3, 4))


@pytest.mark.parametrize("last_stride", [8, 16])
def test_a_token_of_the_last_stage_gets_a_linear_map_of_those_under_it(last_stride: int) -> None:
    last = FeatureStage(5, last_stride)
    fusion = StageFusion(stages=EARLY, last=last)
    tokens, (b, k) = 2, (2, 3)  # a side of the last stage in a unit; images, visible units
    maps = [
        torch.randn(b, k, *(2 * (tokens * last.stride // stage.stride,)), stage.channels) for stage in (*EARLY, last)
    ]
    expected = maps[-1].clone()
    for stage, project, early in zip(EARLY, fusion.project, maps[:-1], strict=True):
        side = last.stride // stage.stride
        for row in range(tokens):
            for col in range(tokens):
                under = early[:, :, side * row : side * (row + 1), side * col : side * (col + 1)]
                joined = torch.einsum("bkhwc,dchw->bkd", under, project.weight) + project.bias
                expected[:, :, row, col] += joined
    torch.testing.assert_close(fusion(maps), expected, rtol=1e-4, atol=1e-5)


def test_a_stage_is_joined_by_its_own_layer() -> None:
    fusion = StageFusion(stages=EARLY, last=FeatureStage(5, 8))
    shapes = [tuple(project.weight.shape) for project in fusion.project]
    assert shapes == [(5, 2, 4, 4), (5, 3, 2, 2)]
