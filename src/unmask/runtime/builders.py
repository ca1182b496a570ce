"""Turns parts of a configuration into objects; the only place that calls Hydra's `instantiate`."""

import logging
from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from unmask.data.datamodule import ImageDataModule

_log = logging.getLogger("unmask")

_TRUSTED_TARGETS = (
    "unmask.backbones.",
    "unmask.data.",
    "unmask.heads.",
    "unmask.masking.",
    "unmask.methods.",
    "unmask.optim.",
    "timm.optim.",
    "torch.optim.",
)


def build(config: Mapping[str, Any] | DictConfig, **arguments: Any) -> Any:
    """Instantiates a node; plain containers reach the constructor, never a configuration."""
    return instantiate(config, _convert_="all", **arguments)


def build_untrusted(config: Mapping[str, Any], **arguments: Any) -> Any:
    """Instantiates a node that came with a checkpoint: only classes a checkpoint may name.

    Raises:
        ValueError: The node names anything else.
    """
    for target in _targets(config):
        if not target.startswith(_TRUSTED_TARGETS):
            raise ValueError(f"the checkpoint's configuration names {target!r}, which is not run from a file; refused")
    return build(config, **arguments)


def build_method(config: Mapping[str, Any] | DictConfig, data: ImageDataModule, **arguments: Any) -> LightningModule:
    """Builds a method; one that needs the number of classes (`_partial_`) is completed from the data."""
    if config.get("_partial_"):
        method: LightningModule = build(config, **arguments)(num_classes=data.num_classes)
        return method
    method = build(config, **arguments)
    return method


def build_trainer(config: DictConfig, **arguments: Any) -> Trainer:
    """Builds the Trainer with its callbacks and loggers; keyword arguments replace configured ones."""
    callbacks: list[Callback] = arguments.pop("callbacks", None) or build_entries(config.callbacks)
    loggers: list[Logger] = build_entries(config.logger)
    trainer: Trainer = build(config.trainer, callbacks=callbacks, logger=loggers or False, **arguments)
    return trainer


def build_entries(entries: DictConfig | None, **arguments: Any) -> list[Any]:
    """Builds the named entries of a group in their order; an entry set to null is left out."""
    return [build(entry, **arguments) for entry in (entries or {}).values() if entry is not None]


def as_plain(config: DictConfig) -> dict[str, Any]:
    """Resolves a configuration to plain containers, fit for a checkpoint."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _targets(node: Any) -> list[str]:
    if isinstance(node, Mapping):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [target for value in node.values() for target in _targets(value)]
    if isinstance(node, list | tuple):
        return [target for value in node for target in _targets(value)]
    return []
