"""What every classifier on a backbone has in common."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn


class ClassifierHead(nn.Sequential):
    """Layers one after the other that turn features into logits."""

    reads_patches: ClassVar[bool] = False  # in place of pooled features
    is_fitted_at_once: ClassVar[bool] = False  # to cached features, in place of learning by gradient steps

    def forward(self, features: Float[Tensor, "b *n d"]) -> Float[Tensor, "b classes"]:
        logits: Tensor = super().forward(features)  # type: ignore[no-untyped-call]
        return logits
