"""What uses a checkpoint without measuring or training it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from unmask.backbones.base import MaskedBackbone
from unmask.data.datamodule import ImageDataModule, Split
from unmask.data.pointed_at import PointedAt
from unmask.data.transforms import Augmentation
from unmask.runtime.builders import as_plain, build_trainer
from unmask.runtime.checkpoint import read_checkpoint
from unmask.runtime.resolvers import auto_workers
from unmask.runtime.use.images import Shown

FindImages = Callable[[str | None, Split], Shown]
"""(path, split) -> the images at the path; those of a split of the data where there is no path."""

_READING = ("eval_crop_share", "pixel_scale", "background", "exif")  # how the data of a run reads its images
_USUAL_CROP = 0.875  # of ImageNet's evaluation: 224 px out of 256


class Tool(ABC):
    """Shows what a checkpoint makes of images."""

    image: str | None  # a file, a folder or a list; None: a split of the data
    split: Split

    @abstractmethod
    def load(self, path: str) -> tuple[Any, MaskedBackbone]:
        """Reads what it uses of a checkpoint, and the backbone in it, in eval mode."""

    @abstractmethod
    def show(self, subject: Any, find: FindImages, *, run_dir: Path, device: torch.device) -> None:
        """Writes and prints its results."""


def use(config: DictConfig, tool: Tool, build_data: Callable[[DictConfig, MaskedBackbone], ImageDataModule]) -> None:
    """Runs a tool on the checkpoint and the images a configuration names.

    Raises:
        ValueError: Several devices are asked for, or the checkpoint or the images are not what the tool takes.
    """
    trainer = build_trainer(config, callbacks=[], logger=False)
    if trainer.world_size > 1:
        raise ValueError(
            f"{config.name} computes on one device, and trainer.devices gives {trainer.world_size}; use "
            "trainer.devices=1"
        )
    subject, backbone = tool.load(config.ckpt_path)
    device = trainer.strategy.root_device
    subject.to(device).eval()

    def find(path: str | None, split: Split) -> Shown:
        if path is None:
            return Shown(build_data(config, backbone), split)
        return Shown(_pointed_at(config, path, backbone), "test")

    seed_everything(config.seed, workers=True, verbose=False)
    with torch.inference_mode():
        tool.show(subject, find, run_dir=Path(config.paths.run_dir), device=device)


def _pointed_at(config: DictConfig, path: str, backbone: MaskedBackbone) -> PointedAt:
    """Serves images at a path as the checkpoint's own data, or the configured data, is served."""
    own = as_plain(config.data) if config.get("data") is not None else _data_of(config.ckpt_path)
    reading = {"eval_crop_share": _USUAL_CROP} | {name: own[name] for name in _READING if name in own}
    if config.eval.crop_share is not None:
        reading["eval_crop_share"] = config.eval.crop_share
    return PointedAt(
        image=path,
        image_size=backbone.image_size,
        channels=backbone.in_channels,
        pixel_mean=backbone.pixel_mean,
        pixel_std=backbone.pixel_std,
        augmentation=Augmentation(),
        global_batch_size=config.global_batch_size,
        num_workers=auto_workers(),
        **reading,
    )


def _data_of(checkpoint: str) -> dict[str, Any]:
    """The settings of the data a training checkpoint saw; none for weights of another kind."""
    try:
        return dict(read_checkpoint(checkpoint).config["data"])
    except ValueError:  # it opened as something else: exported weights, or another program's
        return {}
