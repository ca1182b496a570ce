"""Stochastic depth of networks that are built already."""

from collections.abc import Iterable

from timm.layers import DropPath
from torch import Tensor, distributed, nn


class SharedDropPath(DropPath):  # type: ignore[misc]  # timm is not annotated
    """timm's stochastic depth, whose draws do not depend on the number of devices.

    All devices draw for the images of all from the same stream, and each takes its own, which are every n-th as the
    data module deals them out.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.drop_prob or not self.training:
            return x
        num_devices, rank = _world()
        keep = 1.0 - self.drop_prob
        drawn = x.new_empty((len(x) * num_devices,) + (1,) * (x.ndim - 1)).bernoulli_(keep)[rank::num_devices]
        return x * (drawn.div_(keep) if self.scale_by_keep else drawn)


def share_drop_path(network: nn.Module) -> None:
    """Replaces the stochastic depth timm has built by one of the same rates that all devices share."""
    for part in list(network.modules()):
        for name, branch in part.named_children():
            if type(branch) is DropPath:
                setattr(part, name, SharedDropPath(branch.drop_prob, branch.scale_by_keep))


def set_drop_path(blocks: Iterable[nn.Module], rate: float) -> None:
    """Drops whole residual branches with a probability that rises linearly from 0 to `rate` (arXiv:1603.09382).

    Args:
        blocks: timm's transformer blocks, shallow to deep.
        rate: Probability at the last block, in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path_rate must lie in [0, 1), got {rate}")
    ordered = list(blocks)
    for depth, block in enumerate(ordered):
        own_rate = rate * depth / max(1, len(ordered) - 1)
        for branch in ("drop_path1", "drop_path2"):
            setattr(block, branch, SharedDropPath(own_rate) if own_rate else nn.Identity())


def _world() -> tuple[int, int]:
    """The number of devices and which this one is."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0
