"""What is exported is imported as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask

BACKBONES = {
    "ViT": ("make_vit", {"pixel_mean": (0.1, 0.2, 0.3)}),
    "ViT, learned positions": ("make_vit", {"positions": "learned", "mlp_ratio": 2.0}),
    "Swin": ("make_swin", {}),
    "Swin V2": ("make_swin", {"name": "swinv2_tiny_window8_256"}),
    "BEiT": ("make_beit", {}),
}


@pytest.fixture(params=list(BACKBONES))
def pretrained(request: pytest.FixtureRequest) -> Any:
    fixture, changes = BACKBONES[request.param]
    return request.getfixturevalue(fixture)(**changes)


@pytest.mark.parametrize("is_fine_tuned", [False, True])
@pytest.mark.parametrize("form", ["timm", "huggingface"])
def test_a_backbone_comes_back_bitwise(
    pretrained: Any, randomise: Callable[[Any], Any], tmp_path: Path, form: str, is_fine_tuned: bool
) -> None:
    if is_fine_tuned:
        pretrained.begin_fine_tuning(drop_path_rate=0.0)
    backbone = randomise(pretrained)
    unmask.export_backbone(backbone, tmp_path / "exported", form)
    restored = unmask.load_backbone(tmp_path / "exported")
    images = torch.randn(1, 3, *backbone.image_size)
    with torch.no_grad():
        assert torch.equal(restored.forward_pooled(images), backbone.forward_pooled(images))
    assert all(torch.equal(weight, restored.state_dict()[key]) for key, weight in backbone.state_dict().items())
    assert (restored.pixel_mean, restored.pixel_std) == (backbone.pixel_mean, backbone.pixel_std)
