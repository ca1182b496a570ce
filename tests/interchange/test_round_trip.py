"""What is exported is imported as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask
from unmask.interchange.exporters.base import ExportSource
from unmask.interchange.exporters.folder import write_export
from unmask.interchange.exporters.swin_simmim import SwinSimMIMExporter
from unmask.interchange.exporters.vitmae import ViTMAEExporter

BACKBONES = {
    "ViT": ("make_vit", {"pixel_mean": (0.1, 0.2, 0.3)}),
    "ViT, learned positions": ("make_vit", {"positions": "learned", "mlp_ratio": 2.0}),
    "Swin": ("make_swin", {}),
    "Swin V2": ("make_swin", {"name": "swinv2_tiny_window8_256"}),
    "BEiT": ("make_beit", {}),
    "Hiera": ("make_hiera", {}),
    "Hiera of oblong images": ("make_hiera", {"image_size": (16, 32), "mlp_ratio": 2.0}),
}


@pytest.fixture(params=list(BACKBONES))
def pretrained(request: pytest.FixtureRequest) -> Any:
    fixture, changes = BACKBONES[request.param]
    return request.getfixturevalue(fixture)(**changes)


@pytest.mark.parametrize("is_fine_tuned", [False, True])
@pytest.mark.parametrize("form", ["timm", "huggingface"])
def test_a_backbone_comes_back_bitwise(
    pretrained: Any, randomize: Callable[[Any], Any], tmp_path: Path, form: str, is_fine_tuned: bool
) -> None:
    if is_fine_tuned:
        pretrained.prepare_for_finetuning(drop_path_rate=0.0)
    backbone = randomize(pretrained)
    unmask.export_backbone(backbone, tmp_path / "exported", form)
    restored = unmask.load_backbone(tmp_path / "exported")
    images = torch.randn(1, 3, *backbone.image_size)
    with torch.no_grad():
        assert torch.equal(restored.forward_pooled(images), backbone.forward_pooled(images))
    assert all(torch.equal(weight, restored.state_dict()[key]) for key, weight in backbone.state_dict().items())
    assert (restored.pixel_mean, restored.pixel_std) == (backbone.pixel_mean, backbone.pixel_std)


STATISTICS: dict[str, Any] = {"pixel_mean": (0.1, 0.5, 0.8), "pixel_std": (0.2, 0.4, 0.7)}
TINY = {
    "vitmae": ["method=mae", "model=vit_mini", "model.embed_dim=128", "model.num_heads=2", "model.depth=1"],
    "swin_simmim": ["method=simmim", "model=swin_mini", "model.embed_dim=24", "model.depths=[2,1]"],
}
TINY["vitmae"] += ["method.decoder.embed_dim=16", "method.decoder.depth=1", "method.decoder.num_heads=2"]
TINY["swin_simmim"] += ["model.num_heads=[2,3]"]


@pytest.mark.parametrize(("name", "exporter"), [("vitmae", ViTMAEExporter()), ("swin_simmim", SwinSimMIMExporter())])
def test_a_folder_with_the_heads_of_pre_training(name: str, exporter: Any, randomize, tmp_path: Path) -> None:
    statistics = [f"data.{key}={list(values)}" for key, values in STATISTICS.items()]
    method = randomize(unmask.build_method([*TINY[name], *statistics]))
    write_export(exporter, ExportSource(backbone=method.backbone, method=method), tmp_path / "export")
    again = unmask.build_method([*TINY[name], *statistics, f"method.init_from={tmp_path / 'export'}"])
    for key, weight in method.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight), key
