"""Random weights to begin pre-training with."""

from torch import Tensor, nn


def initialize_as_mae(model: nn.Module, *, patch_embedding: Tensor) -> None:
    """Draws linear layers and the patch embedding by Xavier's uniform, biases 0, as MAE's code; norms begin anew.

    Args:
        model: timm's.
        patch_embedding: The weight of its first convolution, drawn as the matrix it is on the pixels of a patch.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    nn.init.xavier_uniform_(patch_embedding.flatten(1))
