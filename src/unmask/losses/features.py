"""Distances between the feature maps of two networks."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.losses.masked import masked_mean

FEATURE_NORMS = ("layernorm", "none")
_EPSILON = 1e-6  # of the norm without parameters


def feature_distance(
    student: Float[Tensor, "b h w c"],
    teacher: Float[Tensor, "b h w c"],
    *,
    norm: str = "layernorm",
    where: Bool[Tensor, "b h w"] | None = None,
) -> Float[Tensor, ""]:
    """Averages smooth L1 (beta 1) between two maps, in float32.

    Args:
        student: Gradients flow.
        teacher: Treated as constant.
        norm: "layernorm" first gives every position mean 0 and variance 1 over its channels, without learned scale;
            "none" compares as they are.
        where: Positions that count; None counts all.

    Returns:
        The mean over positions and channels; 0 where no position counts.

    Raises:
        ValueError: There is no such norm.
    """
    if norm not in FEATURE_NORMS:
        raise ValueError(f"feature norm must be {' or '.join(FEATURE_NORMS)}, got {norm!r}")
    target = teacher.detach().float()
    prediction = student.float()
    if norm == "layernorm":
        prediction, target = (F.layer_norm(x, x.shape[-1:], eps=_EPSILON) for x in (prediction, target))
    if where is None:
        return F.smooth_l1_loss(prediction, target)
    return masked_mean(F.smooth_l1_loss(prediction, target, reduction="none").movedim(3, 1), where.unsqueeze(1))
