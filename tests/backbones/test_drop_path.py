from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from unmask.backbones.drop_path import SharedDropPath, set_drop_path
from unmask.backbones.timm_swin import TimmSwin
from unmask.backbones.timm_vit import TimmViT

SWIN_V2 = "swinv2_tiny_window8_256"


@pytest.fixture(params=["vit", "swin", "swin v2"])
def make(request: pytest.FixtureRequest, make_vit: Any, make_swin: Any) -> Any:
    """Makes backbones of four blocks."""
    return {
        "vit": make_vit,
        "swin": make_swin,
        "swin v2": lambda **changes: make_swin(name=SWIN_V2, **changes),
    }[request.param]


def blocks_of(backbone: Any) -> list[nn.Module]:
    if hasattr(backbone, "vit"):
        return list(backbone.vit.blocks)
    return [block for stage in backbone.swin.layers for block in stage.blocks]


def rates_of(backbone: Any) -> list[tuple[float, float]]:
    """The probabilities of both branches of each block."""
    return [
        tuple(getattr(branch, "drop_prob", 0.0) for branch in (block.drop_path1, block.drop_path2))
        for block in blocks_of(backbone)
    ]


def test_rates_rise_linearly_from_nothing_to_the_given_one(make) -> None:
    backbone = make()
    set_drop_path(blocks_of(backbone), 0.3)
    expected = [(0.0, 0.0), (0.1, 0.1), (0.2, 0.2), (0.3, 0.3)]
    assert rates_of(backbone) == [pytest.approx(pair) for pair in expected]
    # timm computes the same ones where it builds the network
    assert rates_of(make(drop_path_rate=0.3)) == [pytest.approx(pair) for pair in expected]


def test_a_later_rate_replaces_an_earlier_one(make) -> None:
    backbone = make(drop_path_rate=0.3)
    set_drop_path(blocks_of(backbone), 0.0)
    assert rates_of(backbone) == [(0.0, 0.0)] * 4


def test_a_single_block_is_never_dropped(make_vit) -> None:
    backbone = make_vit(depth=1)
    set_drop_path(iter(backbone.vit.blocks), 0.5)
    assert rates_of(backbone) == [(0.0, 0.0)]


def test_branches_are_dropped_in_training_alone(make, randomize) -> None:
    backbone = randomize(make())
    images = torch.randn(8, 3, *backbone.image_size)
    whole = backbone.forward_pooled(images)
    set_drop_path(blocks_of(backbone), 0.9)

    assert torch.equal(backbone.eval().forward_pooled(images), whole)
    backbone.train()
    assert not torch.equal(backbone.forward_pooled(images), backbone.forward_pooled(images))


def test_the_rate_of_fine_tuning_survives_in_the_settings(make) -> None:
    backbone = make(drop_path_rate=0.6)
    backbone.prepare_for_finetuning(drop_path_rate=0.3)
    settings = dict(backbone.settings)
    assert settings["drop_path_rate"] == 0.3

    rebuilt = {"TimmViT": TimmViT, "TimmSwin": TimmSwin}[settings.pop("kind")](**settings)
    assert rates_of(rebuilt) == [pytest.approx(pair) for pair in rates_of(backbone)]
    assert rates_of(rebuilt)[-1] == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_rate_that_is_no_probability_is_refused_and_nothing_changed(make_vit, rate: float) -> None:
    backbone = make_vit(drop_path_rate=0.3)
    before = rates_of(backbone)
    with pytest.raises(ValueError, match=rf"drop_path_rate must lie in \[0, 1\), got {rate}"):
        set_drop_path(backbone.vit.blocks, rate)
    assert rates_of(backbone) == before


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_devices_drop_what_one_device_drops(monkeypatch, world_size) -> None:
    """Each device has every n-th image; view of an image follows view where a method puts several into a batch."""
    images = torch.ones(8, 3, 2)
    torch.manual_seed(5)
    alone = DropPath(0.4).train()(images)  # timm's own
    found = torch.zeros_like(images)
    for rank in range(world_size):
        monkeypatch.setattr("unmask.backbones.drop_path._world", lambda rank=rank: (world_size, rank))
        torch.manual_seed(5)
        found[rank::world_size] = SharedDropPath(0.4).train()(images[rank::world_size])
    assert torch.equal(found, alone)
    assert 0 < (alone == 0).sum() < alone.numel()


def test_depth_that_timm_builds_is_shared_as_well(make) -> None:
    backbone = make(drop_path_rate=0.3)
    branches = [part for part in backbone.modules() if isinstance(part, DropPath)]
    assert len(branches) == 6
    assert all(isinstance(branch, SharedDropPath) for branch in branches)
