"""Runs an inference on the checkpoint and the images a configuration names."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
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
from unmask.runtime.builders import backbone_changes, build_trainer, resolve_config
from unmask.runtime.checkpoint import LoadedModule, find_run, load_backbone, load_module
from unmask.runtime.kinds import DATA, from_record
from unmask.runtime.named_preprocessing import prepare_as_named
from unmask.runtime.resolvers import auto_workers

_log = logging.getLogger("unmask")
_DECODING_KEYS = (
    "crop_pct",
    "interpolation",
    "pixel_scale",
    "background",
    "exif",
)  # how the data of a run reads its images
_DEFAULT_CROP_PCT = 0.875  # of ImageNet's evaluation: 224 px out of 256


class CheckpointFile:
    """See `unmask.inference.base.Checkpoint`.

    Args:
        path: Of the file.
        changes: Settings of the backbone in place of those of another program's classifier.
        names_of_data: The class names of the data that are configured, for a backbone; none where none are.
    """

    def __init__(
        self,
        path: str,
        *,
        changes: Mapping[str, Any] | None = None,
        names_of_data: Callable[[MaskedBackbone], Sequence[str]] | None = None,
    ) -> None:
        self.path = path
        self.changes = changes or {}
        self.names_of_data = names_of_data

    def load_backbone(self) -> MaskedBackbone:
        return load_backbone(self.path)

    def load_module(self) -> BackboneModule:
        return self.loaded.module

    def class_names(self) -> tuple[str, ...]:
        module, outputs, _ = self.loaded
        if outputs.class_names:
            return tuple(outputs.class_names)
        names = [] if self.names_of_data is None else list(self.names_of_data(module.backbone))
        num_named = outputs.num - outputs.num_unused
        if names and len(names) not in (outputs.num, num_named):
            raise ValueError(
                f"{self.path} has {outputs.num} outputs and does not name them, and the data have {len(names)} classes"
                "; name data of the classes it was trained on, or none: the classes then have numbers"
            )
        if names:
            _log.info(f"{self.path} does not name its classes; they have the names of the data's, in that order")
        unused = [f"output {number}" for number in range(len(names), outputs.num)]
        return (*names, *unused) if names else tuple(f"class {number}" for number in range(outputs.num))

    @cached_property
    def loaded(self) -> LoadedModule:
        """The module and what is known of it, read once."""
        return load_module(self.path, **self.changes)


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
    checkpoint = _checkpoint(config, build_data)
    model, backbone = inference.load(checkpoint)
    if inference.reads_classifier:
        config = prepare_as_named(config, checkpoint.loaded, checkpoint.path, eval_crop_pct=inference.crop_pct)
    device = trainer.strategy.root_device
    model.to(device)

    def find(path: str | None, split: Split) -> SelectedImages:
        if path is None:
            data = build_data(config, backbone)
            data.crop_pct = data.crop_pct if inference.crop_pct is None else inference.crop_pct
            return SelectedImages(data, split)
        return SelectedImages(_image_paths(config, path, backbone, inference.crop_pct), "test")

    seed_everything(config.seed, workers=True, verbose=False)
    with torch.inference_mode():
        inference.run(model, find, run_dir=Path(config.paths.run_dir), device=device)


def _checkpoint(
    config: DictConfig, build_data: Callable[[DictConfig, MaskedBackbone], ImageDataModule]
) -> CheckpointFile:
    has_data = config.get("data") is not None
    return CheckpointFile(
        config.ckpt_path,
        changes=backbone_changes(config),
        names_of_data=(lambda backbone: build_data(config, backbone).class_names) if has_data else None,
    )


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
