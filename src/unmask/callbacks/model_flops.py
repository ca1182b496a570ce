"""How many operations a method takes for an image."""

import logging
from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from unmask.types import Images

_NUM_IMAGES = 2  # a contrast needs another image
_log = logging.getLogger("unmask")


def count_flops(module: LightningModule) -> float | None:
    """Counts the floating-point operations that the loss of one image and its gradient take.

    Counted are matrix products, convolutions and attention, a multiplication and an addition as two. What is not
    computed is not counted: tokens that MAE leaves out, gradients that a teacher has none of. It is done on tensors
    without values, in place of the module's own, so it costs no memory, and what compiling or activation checkpointing
    would change is to be asked before them.

    Returns:
        None of a module that looks at the values of its tensors.
    """
    method: Any = module
    step = _Step(method)
    weights = {
        name: torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
        for name, tensor in [*step.named_parameters(), *step.named_buffers()]
    }
    counter = FlopCounterMode(display=False)
    try:
        backbone = method.backbone
        images = torch.empty(_NUM_IMAGES, backbone.in_channels, *backbone.image_size, device="meta")
        with counter, torch.enable_grad():
            functional_call(step, weights, (images,)).backward()
    except RuntimeError as reason:
        _log.info(f"the operations of {type(module).__name__} are not counted: {reason}")
        return None
    return counter.get_total_flops() / _NUM_IMAGES


class _Step(nn.Module):
    """What a module computes of a batch in training, as a number."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Images) -> Float[Tensor, ""]:
        if self.module.is_classifier:
            logits: Tensor = self.module(images)
            return logits.sum()
        loss: Tensor = self.module.training_output(images).loss
        return loss
