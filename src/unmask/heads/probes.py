"""Classifiers that learn on a frozen backbone."""

from collections import OrderedDict
from typing import Any, ClassVar

from jaxtyping import Float
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from unmask.heads.batch_norm import FeatureNorm
from unmask.heads.classifier_head import ClassifierHead
from unmask.heads.initialize import initialize_linear


class BatchNormLinearClassifier(ClassifierHead):
    """One linear layer behind a batch normalization without affine part (MAE, A.2).

    Args:
        in_features: Width of the pooled features.
        num_classes: Number of classes.
        weight_std: Deviation of the truncated normal the weights start from: 0.01 in MAE's code. The bias starts at 0.
    """

    def __init__(self, *, in_features: int, num_classes: int, weight_std: float = 0.01) -> None:
        super().__init__(
            OrderedDict(
                norm=FeatureNorm(in_features, affine=False, eps=1e-6),  # epsilon of MAE's code
                linear=nn.Linear(in_features, num_classes),
            )
        )
        initialize_linear(self, std=weight_std)


class MLPClassifier(ClassifierHead):
    """Batch norm, linear, GELU, linear: the head DDMIM fine-tunes with, on the pooled features themselves.

    Args:
        in_features: Width of the pooled features.
        num_classes: Number of classes.
        hidden_features: Width of the hidden layer; DDMIM's: 1024.
    """

    def __init__(self, *, in_features: int, num_classes: int, hidden_features: int = 1024) -> None:
        super().__init__(
            FeatureNorm(in_features),
            nn.Linear(in_features, hidden_features),
            nn.GELU(),
            nn.Linear(hidden_features, num_classes),
        )
        initialize_linear(self)


class AttentiveClassifier(ClassifierHead):
    """Attention of one learned query over the patches, then a linear layer (arXiv:2202.03026, attentive probing).

    The patches pass a layer norm first; there is no MLP behind the attention. Of a backbone with stages the patches
    are the cells of the last feature map.

    Args:
        in_features: Width of a patch's features.
        num_classes: Number of classes.
        num_heads: Attention heads; None takes one for every 64 features or, if those are not whole heads, one.

    Raises:
        ValueError: The width does not divide by the heads; in use, pooled features came instead of patches.
    """

    reads_patches: ClassVar[bool] = True

    def __init__(self, *, in_features: int, num_classes: int, num_heads: int | None = None) -> None:
        if num_heads is None:
            num_heads = 1 if in_features % 64 else in_features // 64
        if num_heads < 1 or in_features % num_heads:
            raise ValueError(
                f"head.num_heads={num_heads} does not divide the {in_features} features of this backbone; "
                f"use one of {_divisors(in_features)}"
            )
        attention: Any = AttentionPoolLatent(in_features, out_features=0, num_heads=num_heads)
        super().__init__(
            OrderedDict(norm=nn.LayerNorm(in_features), attention=attention, linear=nn.Linear(in_features, num_classes))
        )
        initialize_linear(self)

    def forward(self, features: Float[Tensor, "b *n d"]) -> Float[Tensor, "b classes"]:
        if features.ndim != 3:
            raise ValueError("head=attentive reads one vector a patch, not pooled ones; use it with eval=frozen")
        return super().forward(features)


def _divisors(number: int) -> str:
    return ", ".join(str(count) for count in range(1, 33) if number % count == 0)
