"""The shape of a backbone, for what a configuration derives from it."""

import functools
import json
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from unmask.runtime.builders import build


class BackboneShape(NamedTuple):
    """What rules of the configuration ask of a backbone."""

    width: int  # channels of its features
    strides: tuple[Any, ...]  # pixels, one a stage, shallow to deep; a pair where patches are not square
    visible_unit_size: Any  # pixels; likewise
    visible_cell: int  # units a side


def backbone_shape(model: DictConfig) -> BackboneShape:
    """Reads the shape off a backbone built without storage for its weights, once for the same settings.

    Args:
        model: The node of the configuration.
    """
    return _shape(json.dumps(OmegaConf.to_container(model, resolve=True)))


@functools.lru_cache
def _shape(settings: str) -> BackboneShape:
    with torch.device("meta"):
        backbone: Any = build(json.loads(settings))
    strides = tuple(stage.stride for stage in backbone.stages)
    return BackboneShape(backbone.embed_dim, strides, backbone.visible_unit_size, backbone.visible_cell)
