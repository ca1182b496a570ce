"""Contrast: each query is to be told from the other images of the batch."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_NORM_EPSILON = 1e-6  # floor of a vector's length


class Contrast(NamedTuple):
    """The loss, and how often the positive was the nearest key."""

    loss: Float[Tensor, ""]  # nats
    accuracy: Float[Tensor, ""]  # in 0..1


def info_nce(
    queries: Float[Tensor, "b d"],
    keys: Float[Tensor, "k d"],
    positives: Int[Tensor, " b"],
    *,
    temperature: float,
    extra_zero_logit: bool = False,
) -> Contrast:
    """Scores each query against all keys, of which one is its positive.

    `loss = -mean_a log(exp(s_ap / temperature) / sum_j exp(s_aj / temperature))` with s the cosine similarity and p
    the positive of a (arXiv:1807.03748, eq. 4), in float32.

    Args:
        queries: Any norm, normalized here; gradients flow.
        keys: Any norm, normalized here; treated as constants.
        positives: Row of `keys` that belongs to each query.
        temperature: Divides the similarities, dimensionless; DDMIM's is 0.05.
        extra_zero_logit: Adds one more negative of similarity 0 to every query. The original DDMIM does, by setting
            the positive among the negatives to 0 rather than leaving it out.

    Returns:
        The loss in nats a query (log k is chance level) and the fraction of queries nearest to their positive.

    Raises:
        ValueError: `temperature` is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    unit_queries = F.normalize(queries.float(), dim=1, eps=_NORM_EPSILON)
    unit_keys = F.normalize(keys.detach().float(), dim=1, eps=_NORM_EPSILON)
    with _in_full_precision(queries.device):
        logits = unit_queries @ unit_keys.T / temperature
    accuracy = (logits.detach().argmax(dim=1) == positives).float().mean()
    if extra_zero_logit:
        logits = F.pad(logits, (0, 1))
    return Contrast(F.cross_entropy(logits, positives), accuracy)


def gather_keys(keys: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "k d"], Int[Tensor, " b"]]:
    """Collects the keys of all processes, which must hold equally many, and finds this process's among them.

    Returns:
        The keys, without gradient, in the order of ranks, and the row of each of this process's own.
    """
    own = torch.arange(len(keys), device=keys.device)
    keys = keys.detach().contiguous()
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return keys, own
    gathered = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, keys)
    return torch.cat(gathered), own + dist.get_rank() * len(keys)


def _in_full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off where the device has it; the meta device, on which operations are counted, has none."""
    has_autocast = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if has_autocast else nullcontext()
