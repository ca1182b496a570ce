"""Classifiers that fine-tuning puts on a backbone."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from unmask.heads.batch_norm import FeatureNorm
from unmask.heads.initialise import initialise_linear


class LinearClassifier(nn.Module):
    """One linear layer on the pooled features.

    Args:
        in_features: Width of the pooled features.
        num_classes: Number of classes.
        weight_std: Deviation of the truncated normal the weights start from: 0.02 in SimMIM and training from
            scratch, 2e-5 in MAE's fine-tuning. The bias starts at 0.
    """

    reads_patches: ClassVar[bool] = False  # but pooled features

    def __init__(self, *, in_features: int, num_classes: int, weight_std: float = 0.02) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes)
        initialise_linear(self, std=weight_std)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        logits: Tensor = self.linear(pooled)
        return logits


class BatchNormMLPClassifier(nn.Module):
    """DDMIM's: linear to a representation, then batch norm, linear, GELU, linear.

    Differs: the first layer is new; the original's was pre-trained as part of its projector, which a backbone that
    travels alone does not carry.

    Args:
        in_features: Width of the pooled features.
        num_classes: Number of classes.
        hidden_features: Width of the representation and of the hidden layer.
    """

    reads_patches: ClassVar[bool] = False  # but pooled features

    def __init__(self, *, in_features: int, num_classes: int, hidden_features: int = 1024) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden_features),
            FeatureNorm(hidden_features),
            nn.Linear(hidden_features, hidden_features),
            nn.GELU(),
            nn.Linear(hidden_features, num_classes),
        )
        initialise_linear(self)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        logits: Tensor = self.layers(pooled)
        return logits
