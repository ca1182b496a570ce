"""Splits made by rule where a data set has none of its own."""

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.randomness import keyed_permutation, stream_key


def hold_out(labels: Int[Tensor, " n"], count: int, *, seed: int) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Sets `count` samples aside, as evenly over the classes as their sizes allow.

    Each class gives up its share, rounded; the choice is a function of `seed` and the labels. Both results are in
    rising order.

    Raises:
        ValueError: `count` does not leave at least one sample on both sides.
    """
    total = len(labels)
    if total < 2:
        raise ValueError(f"cannot hold out a part of {total} image(s); at least 2 are needed")
    if not 0 < count < total:
        raise ValueError(f"cannot hold out {count} of {total} images; choose between 1 and {total - 1}")
    order = keyed_permutation(stream_key(seed, "hold-out"), total)
    by_class = order[labels[order].argsort(stable=True)]
    # Every total/count-th sample of the list sorted by class: each class loses the same share.
    picks = (2 * torch.arange(count) + 1) * total // (2 * count)
    is_held_out = torch.zeros(total, dtype=torch.bool)
    is_held_out[by_class[picks]] = True
    return (~is_held_out).nonzero().squeeze(1), is_held_out.nonzero().squeeze(1)
