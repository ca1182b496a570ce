"""Small images in memory and backbones whose features are known."""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

SIDE = 4  # px


@pytest.fixture
def make_backbone() -> Callable[..., nn.Module]:
    """Backbone whose pooled features are a fixed linear map of the pixels, and which records how it is called."""
    from unmask.backbones.base import MaskedBackbone  # noqa: PLC0415
    from unmask.types import FeatureStage  # noqa: PLC0415

    class Pixels(MaskedBackbone):
        settings = MappingProxyType({})

        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * SIDE * SIDE, width, bias=False)
            self.dropout = nn.Dropout(0.5)
            self.stages = (FeatureStage(width, SIDE),)
            self.image_size = (SIDE, SIDE)
            self.num_blocks = 1
            self.calls: list[tuple[Tensor, bool, bool]] = []

        def forward_features(self, images: Tensor, edit: Any = None) -> list[Tensor]:
            return [self.forward_pooled(images)[:, :, None, None]]

        def forward_pooled(self, images: Tensor) -> Tensor:
            self.calls.append((images.clone(), self.training, torch.is_inference_mode_enabled()))
            return self.dropout(self.linear(images.flatten(1)))

        def prepare_for_finetuning(self, *, drop_path_rate: float) -> None:
            self.drop_path_rate = drop_path_rate

        def layer_id(self, parameter_name: str) -> int:
            return 0

    return lambda width=8: Pixels(width)


@pytest.fixture
def make_data() -> Callable[..., Any]:
    """Data module over {split: (images, labels)}; pixels are served as value / 255."""
    from unmask.data.augmentation.transforms import Augmentation  # noqa: PLC0415
    from unmask.data.datamodule import ImageDataModule  # noqa: PLC0415
    from unmask.data.dataset import InMemoryDataset  # noqa: PLC0415

    class InMemory(ImageDataModule):
        holds_images_in_memory = True

        def __init__(self, splits: dict[str, Any], num_classes: int, **shared: Any) -> None:
            super().__init__(**shared)
            self.splits, self.names = splits, [f"class {number}" for number in range(num_classes)]

        def load_split(self, split: Any) -> InMemoryDataset:
            return InMemoryDataset(*self.splits[split], self.names)

    def make(splits: dict[str, Any], *, num_classes: int, **changes: Any) -> InMemory:
        shared = {
            "image_size": SIDE,
            "pixel_mean": (0.0, 0.0, 0.0),
            "pixel_std": (1.0, 1.0, 1.0),
            "augmentation": Augmentation(),
            "global_batch_size": 7,
        }
        return InMemory(splits, num_classes, **shared | changes)

    return make


@pytest.fixture
def draw_split() -> Callable[..., tuple[Tensor, Tensor]]:
    """Draws images around one prototype a class; `spread` is the noise on it, in gray levels."""

    def draw(count: int, *, num_classes: int, spread: float, side: int = SIDE) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        prototypes = torch.randint(60, 196, (num_classes, 3, side, side), generator=generator)
        labels = torch.arange(count) % num_classes
        noise = spread * torch.randn(count, 3, side, side)
        return (prototypes[labels] + noise).clamp(0, 255).to(torch.uint8), labels

    return draw


@pytest.fixture
def draw_splits(draw_split: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., dict[str, Any]]:
    def draw(counts: Sequence[int], **settings: Any) -> dict[str, Any]:
        return {
            name: draw_split(count, **settings) for name, count in zip(("train", "val", "test"), counts, strict=True)
        }

    return draw


@pytest.fixture
def make_trainer(tmp_path: Any) -> Callable[..., Trainer]:
    def make(**arguments: Any) -> Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 2,
            "default_root_dir": tmp_path,
        }
        return Trainer(**settings | arguments)

    return make
