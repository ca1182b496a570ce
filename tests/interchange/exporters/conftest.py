"""Networks to export: other sizes and pixel statistics than any default, and weights that all make a difference."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

STATISTICS = {"pixel_mean": (0.1, 0.5, 0.8), "pixel_std": (0.2, 0.4, 0.7)}
CLASS_NAMES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture(params=["vit", "vit with the norm behind the pooling", "swin", "swin v2", "beit", "hiera", "gray vit"])
def backbone(request: pytest.FixtureRequest, make_vit, make_swin, make_beit, randomize) -> nn.Module:
    make_hiera = request.getfixturevalue("make_hiera")
    make = {
        "vit": partial(make_vit, depth=2),
        "vit with the norm behind the pooling": partial(
            make_vit, depth=2, image_size=(32, 64), norm_after_pooling=True
        ),
        "swin": partial(make_swin, depths=(2, 1), num_heads=(3, 3), drop_path_rate=0.3),
        "swin v2": partial(
            make_swin, name="swinv2_tiny_window8_256", image_size=(32, 64), depths=(2, 1), num_heads=(3, 6)
        ),
        "beit": partial(make_beit, depth=2, mlp_ratio=2.0),
        "hiera": partial(make_hiera, depths=(1, 1), image_size=(16, 32), drop_path_rate=0.3),
        "gray vit": partial(make_vit, depth=1, in_channels=1),
    }[request.param]
    count = 1 if request.param == "gray vit" else 3
    return randomize(make(**{name: values[:count] for name, values in STATISTICS.items()}))


@pytest.fixture
def make_source(randomize: Callable[[nn.Module], nn.Module]) -> Callable[..., Any]:
    """A source with a classifier of five classes, or `classifier=None`."""

    def make(backbone: Any, **changes: Any) -> Any:
        from unmask.heads.classifier import LinearClassifier  # noqa: PLC0415
        from unmask.interchange.exporters.base import ExportSource  # noqa: PLC0415

        settings = {"class_names": CLASS_NAMES, **changes}
        if "classifier" not in changes:
            settings["classifier"] = randomize(LinearClassifier(in_features=backbone.embed_dim, num_classes=5))
        return ExportSource(backbone=backbone, **settings)

    return make


@pytest.fixture
def make_method(randomize: Callable[[nn.Module], nn.Module]) -> Callable[..., Any]:
    """A pre-training method built as the command line would, with weights that all count."""

    def make(*overrides: str) -> Any:
        import unmask  # noqa: PLC0415

        statistics = [f"data.{name}={list(values)}" for name, values in STATISTICS.items()]
        return randomize(unmask.build_method([*overrides, *statistics]))

    return make


@pytest.fixture
def pixels(backbone: Any) -> Tensor:
    return torch.rand(2, backbone.in_channels, *backbone.image_size)


@pytest.fixture
def images(pixels: Tensor) -> Tensor:
    """The pixels, normalized by hand."""
    mean, std = (torch.tensor(values[: pixels.shape[1]])[:, None, None] for values in STATISTICS.values())
    return (pixels - mean) / std
