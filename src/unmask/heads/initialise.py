"""How linear layers of heads start."""

from torch import nn


def initialise_linear(module: nn.Module, *, std: float = 0.02) -> None:
    """Draws the weights of every linear layer from a truncated normal and sets its bias to 0, as timm's backbones do."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
