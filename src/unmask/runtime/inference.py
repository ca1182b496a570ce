"""Runs an inference on the checkpoint and the images a configuration names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from unmask.backbones.base import MaskedBackbone
from unmask.data.augmentation.transforms import Augmentation
from unmask.data.datamodule import ImageDataModule
from unmask.data.files.splits import Split
from unmask.data.sources.image_paths import ImagePaths
from unmask.inference.base import Inference
from unmask.inference.images import SelectedImages
from unmask.interchange.files import read_weights
from unmask.methods.backbone_module import BackboneModule
from unmask.runtime.builders import build_trainer, resolve_config
from unmask.runtime.checkpoint import find_run, load_backbone, load_method, read_checkpoint
from unmask.runtime.kinds import DATA, from_record
from unmask.runtime.resolvers import auto_workers

_DECODING_KEYS = (
    "crop_pct",
    "interpolation",
    "pixel_scale",
    "background",
    "exif",
)  # how the data of a run reads its images
_DEFAULT_CROP_PCT = 0.875  # of ImageNet's evaluation: 224 px out of 256


class CheckpointFile:
    """See `unmask.inference.base.Checkpoint`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def load_backbone(self) -> MaskedBackbone:
        return load_backbone(self.path)

    def load_module(self) -> BackboneModule:
        return load_method(self.path)

    def class_names(self) -> tuple[str, ...]:
        saved = read_checkpoint(self.path)
        return saved.class_names or tuple(f"class {number}" for number in range(saved.num_classes))


def run_inference(
    config: DictConfig, inference: Inference, build_data: Callable[[DictConfig, MaskedBackbone], ImageDataModule]
) -> None:
    """Runs an inference.

    Raises:
        ValueError: Several devices are asked for, or the checkpoint or the images are not what the inference takes.
    """
    trainer = build_trainer(config, callbacks=[], logger=False)
    if trainer.world_size > 1:
        raise ValueError(
            f"{config.name} computes on one device, and trainer.devices gives {trainer.world_size}; use "
            "trainer.devices=1"
        )
    model, backbone = inference.load(CheckpointFile(config.ckpt_path))
    device = trainer.strategy.root_device
    model.to(device).eval()

    def find(path: str | None, split: Split) -> SelectedImages:
        if path is None:
            data = build_data(config, backbone)
            data.crop_pct = data.crop_pct if inference.crop_pct is None else inference.crop_pct
            return SelectedImages(data, split)
        return SelectedImages(_image_paths(config, path, backbone, inference.crop_pct), "test")

    seed_everything(config.seed, workers=True, verbose=False)
    with torch.inference_mode():
        inference.run(model, find, run_dir=Path(config.paths.run_dir), device=device)


def _image_paths(config: DictConfig, path: str, backbone: MaskedBackbone, crop_pct: float | None) -> ImagePaths:
    """Serves images at a path as the checkpoint's own data, or the configured data, is served."""
    own = resolve_config(config.data) if config.get("data") is not None else _data_of(config.ckpt_path)
    decoding = {"crop_pct": _DEFAULT_CROP_PCT} | {name: own[name] for name in _DECODING_KEYS if name in own}
    for name, chosen in (
        ("crop_pct", config.crop_pct),
        ("interpolation", config.interpolation),
        ("crop_pct", crop_pct),
    ):
        if chosen is not None:
            decoding[name] = chosen
    return ImagePaths(
        image=path,
        image_size=backbone.image_size,
        channels=backbone.in_channels,
        pixel_mean=backbone.pixel_mean,
        pixel_std=backbone.pixel_std,
        augmentation=Augmentation(),
        global_batch_size=config.global_batch_size,
        num_workers=auto_workers(),
        **decoding,
    )


def _data_of(checkpoint: str) -> dict[str, Any]:
    """The settings of the data a training checkpoint saw; none for weights of another kind."""
    saved = find_run(read_weights(checkpoint))  # None of exported weights, or another program's
    return {} if saved is None else from_record(saved.record.get("data"), DATA)
