"""Files as other programs write them, from networks with random weights."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

SIZE = 32  # px


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def timm_vit(randomize: Callable[[nn.Module], nn.Module]) -> Callable[..., nn.Module]:
    """A ViT of 4 x 4 patches, 128 wide, with two heads and two blocks."""

    def make(**changes: Any) -> nn.Module:
        settings: dict[str, Any] = {"img_size": SIZE, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
        return randomize(timm.create_model("vit_tiny_patch16_224", num_classes=5, **settings | changes))

    return make


@pytest.fixture
def timm_swin(randomize: Callable[[nn.Module], nn.Module]) -> Callable[..., nn.Module]:
    """A Swin of grids 8 and 4 and windows of 4: shifted in the first stage, global in the second."""

    def make(name: str = "swin_tiny_patch4_window7_224", **changes: Any) -> nn.Module:
        settings: dict[str, Any] = {"img_size": SIZE, "window_size": 4, "embed_dim": 24}
        settings |= {"depths": (2, 1), "num_heads": (2, 3)}
        return randomize(timm.create_model(name, num_classes=5, **settings | changes))

    return make


@pytest.fixture
def timm_beit(randomize: Callable[[nn.Module], nn.Module]) -> Callable[..., nn.Module]:
    def make(**changes: Any) -> nn.Module:
        settings: dict[str, Any] = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
        return randomize(timm.create_model("beit_base_patch16_224", num_classes=5, **settings | changes))

    return make


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    """Writes content as a checkpoint and loads its backbone."""

    def write_and_load(content: Any, **arguments: Any) -> Any:
        from unmask.runtime.checkpoint import load_backbone

        torch.save(content, tmp_path / "weights.pth")
        return load_backbone(tmp_path / "weights.pth", **arguments)

    return write_and_load


@pytest.fixture
def converted(tmp_path: Path) -> Callable[[Any], Any]:
    """Writes content as a checkpoint and converts it without building anything."""

    def write_and_convert(content: Any) -> Any:
        from unmask.interchange.detect_format import convert
        from unmask.interchange.files import read_weights

        torch.save(content, tmp_path / "weights.pth")
        return convert(read_weights(tmp_path / "weights.pth"))

    return write_and_convert


@pytest.fixture
def require_same_features(images: Tensor) -> Callable[[Any, Tensor], None]:
    """Compares the last feature map with tokens of another program, [b n d], or a map, [b h w d]."""

    def compare(backbone: Any, tokens: Tensor) -> None:
        with torch.no_grad():
            ours = backbone.forward_features(images)[-1].flatten(2).transpose(1, 2)
        theirs = tokens.detach().flatten(1, -2)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())

    return compare


@pytest.fixture
def require_loads_as(
    images: Tensor, load: Callable[..., Any], require_same_features: Callable[[Any, Tensor], None]
) -> Callable[..., Any]:
    """Loads content and compares its features with those another program's network computes."""

    def load_and_compare(content: Any, network: Callable[[Tensor], Tensor], **arguments: Any) -> Any:
        backbone = load(content, **arguments)
        require_same_features(backbone, network(images))
        return backbone

    return load_and_compare
