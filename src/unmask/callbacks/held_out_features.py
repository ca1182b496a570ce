"""Features of held-out images, as callbacks look at them."""

from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule, Trainer
from torch import Tensor

from unmask.eval_mode import eval_mode
from unmask.types import Images

_IMAGES_AT_A_TIME = 16


def pooled_features(trainer: Trainer, pl_module: LightningModule, images: Images) -> Float[Tensor, "b d"]:
    """Pooled features by the backbone that is exported, in eval mode and the run's precision; float32 on the CPU."""
    module: Any = pl_module
    backbone, plugin = module.exported_backbone, trainer.precision_plugin
    with eval_mode(backbone), torch.no_grad(), plugin.forward_context():
        parts = [
            backbone.forward_pooled(plugin.convert_input(part.to(pl_module.device)))
            for part in images.split(_IMAGES_AT_A_TIME)
        ]
    return torch.cat(parts).float().cpu()
