"""A backbone without weights, for what a configuration derives from its shape."""

import copy
from typing import Any

import torch
from omegaconf import DictConfig

from unmask.backbones.base import MaskedBackbone
from unmask.runtime.builders import build


def bare_backbone(model: DictConfig) -> MaskedBackbone:
    """Builds a backbone without storage for its weights.

    Args:
        model: The node of the configuration.
    """
    with torch.device("meta"):
        backbone: Any = build(copy.deepcopy(model))
    bare: MaskedBackbone = backbone
    return bare
