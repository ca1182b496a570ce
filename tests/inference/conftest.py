"""Pictures of one color each, and a data module that serves them."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

COLORS = {
    "a/red.png": (250, 10, 10),
    "a/green.png": (10, 250, 10),
    "b/blue.png": (10, 10, 250),
    "b/deep/yellow.png": (240, 240, 20),
    "pink.png": (250, 150, 160),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for name, color in COLORS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 50), color).save(folder / name)
    return folder


@pytest.fixture
def point_at() -> Callable[..., Any]:
    """Serves the images at a path, two at a time."""

    def pointed(path: Path, **changes: Any) -> Any:
        from unmask.data.augmentation.transforms import Augmentation
        from unmask.data.sources.image_paths import ImagePaths
        from unmask.inference.images import SelectedImages

        settings: dict[str, Any] = {
            "image_size": 32,
            "pixel_mean": (0.5, 0.5, 0.5),
            "pixel_std": (0.5, 0.5, 0.5),
            "augmentation": Augmentation(),
            "global_batch_size": 2,
        }
        return SelectedImages(ImagePaths(image=str(path), **settings | changes), "test")

    return pointed


@pytest.fixture
def in_memory() -> Any:
    """Generated pictures of 32 px: six to train on, four to validate, five to test."""
    from unmask.data.augmentation.transforms import Augmentation
    from unmask.data.sources.synthetic import Synthetic

    return Synthetic(
        num_train=6,
        num_val=4,
        num_test=5,
        image_size=32,
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=(0.5, 0.5, 0.5),
        augmentation=Augmentation(random_erasing_prob=1.0),
        global_batch_size=2,
    )


@pytest.fixture
def channel_means() -> torch.nn.Module:
    """A backbone whose feature is the mean of each color."""
    from unmask.backbones.base import MaskedBackbone
    from unmask.types import FeatureStage

    class ChannelMeans(MaskedBackbone):
        settings: ClassVar[dict[str, Any]] = {}
        stages = (FeatureStage(3, 32),)

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("version", torch.zeros(1))

        def forward_features(self, images: torch.Tensor, edit: Any = None) -> list[torch.Tensor]:
            return [images.mean(dim=(2, 3), keepdim=True)]

        def forward_pooled(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3))

        def layer_id(self, parameter_name: str) -> int:
            return 0

        def prepare_for_finetuning(self, *, drop_path_rate: float) -> None: ...

    return ChannelMeans()
