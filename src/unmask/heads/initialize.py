"""How layers of heads start."""

from torch import nn


def initialize_xavier(module: nn.Module) -> None:
    """Draws the weights of linear layers and convolutions from Xavier's uniform distribution; their biases are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initialize_linear(module: nn.Module, *, std: float = 0.02) -> None:
    """Draws the weights of all linear layers from a truncated normal, as timm does, and sets their biases to 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
