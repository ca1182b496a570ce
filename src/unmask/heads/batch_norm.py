"""Batch normalization of features."""

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce


class FeatureNorm(nn.BatchNorm1d):
    """torch's batch normalization, in training over the images of all devices, so that their number changes nothing.

    Differs: torch's `SyncBatchNorm` does not compute on a CPU.

    Raises:
        ValueError: A device has a single image in training.
    """

    def forward(self, input: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:  # noqa: A002 (torch's name)
        if self.training and len(input) == 1:
            raise ValueError(
                "batch normalization has nothing to compare a single image with; "
                "set global_batch_size to 2 images or more for each device"
            )
        if self.training and _num_devices() > 1:
            return self._over_all_devices(input)
        normalized: Tensor = super().forward(input)
        return normalized

    def _over_all_devices(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Normalizes in training; all devices have equally many images."""
        count = len(features) * _num_devices()
        mean: Tensor = all_reduce(features.sum(dim=0)) / count
        centered = features - mean
        variance: Tensor = all_reduce(centered.square().sum(dim=0)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        normalized = centered * (variance + self.eps).rsqrt()
        return normalized if self.weight is None else normalized * self.weight + self.bias

    @torch.no_grad()
    def _track(self, mean: Float[Tensor, " d"], unbiased_variance: Float[Tensor, " d"]) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var), self.momentum)


def _num_devices() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
