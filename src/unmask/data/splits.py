"""Splits made by rule where a data set has none of its own."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unmask.randomness import keyed_permutation, stream_key


def hold_out(labels: Int[Tensor, " n"], count: int, *, seed: int) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Sets `count` samples aside, as evenly over the classes as their sizes allow.

    Each class gives up the same fraction, rounded; the choice is a function of `seed` and the labels. Both results are
    in rising order.

    Raises:
        ValueError: `count` does not leave at least one sample on both sides.
    """
    total = len(labels)
    if total < 2:
        raise ValueError(f"cannot hold out a part of {total} image(s); at least 2 are needed")
    if not 0 < count < total:
        raise ValueError(f"cannot hold out {count} of {total} images; choose between 1 and {total - 1}")
    place = keyed_permutation(stream_key(seed, "hold-out"), total).argsort()  # of each sample in a drawn order
    by_class = (labels * total + place).argsort()
    # Every total/count-th sample of the list sorted by class: each class loses the same fraction.
    picks = (2 * torch.arange(count) + 1) * total // (2 * count)
    is_held_out = torch.zeros(total, dtype=torch.bool)
    is_held_out[by_class[picks]] = True
    return (~is_held_out).nonzero().squeeze(1), is_held_out.nonzero().squeeze(1)


def hold_out_per_class(
    labels: Int[Tensor, " n"], count: int, *, seed: int = 1234
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Sets `count` samples of each class aside by the rule of lightning-bolts, whose split DDMIM was selected on.

    The samples are shuffled by numpy's legacy generator; the first `count` of each class in that order are held out.
    With 50 a class ImageNet keeps 1,231,167 of its 1,281,167 images. Both results are in rising order.

    Raises:
        ValueError: A class would lose all its samples.
    """
    sizes = torch.bincount(labels)
    smallest = int(sizes[sizes > 0].min())
    if smallest <= count:
        raise ValueError(
            f"a class has {smallest} image(s), of which {count} cannot be held out; "
            f"set data.held_out_per_class={smallest - 1}{' or less' if smallest > 1 else ''}"
        )
    order = list(range(len(labels)))
    np.random.RandomState(seed).shuffle(order)
    shuffled = labels[torch.tensor(order)]
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in sizes.nonzero().flatten():
        is_held_out[torch.tensor(order)[(shuffled == label).nonzero().flatten()[:count]]] = True
    return (~is_held_out).nonzero().flatten(), is_held_out.nonzero().flatten()
