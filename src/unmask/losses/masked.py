"""Means over the masked part of an image."""

from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(values: Float[Tensor, "b #c *#where"], masked: Bool[Tensor, "b #c *#where"]) -> Float[Tensor, ""]:
    """Averages `values` where `masked` is True, over the whole batch at once.

    Args:
        values: One number a position, in any unit.
        masked: Broadcasts against `values`; a mask with one channel counts for every channel.

    Returns:
        A float32 scalar; 0 if nothing is masked.
    """
    weights = masked.expand_as(values)
    total = (values.float() * weights).sum()
    return total / weights.sum().clamp(min=1)
