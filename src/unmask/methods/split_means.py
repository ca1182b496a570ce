"""Averages over a split that is spread over devices."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import SumMetric


class SplitMeans:
    """Averages readings over the images of a split, each counted once, whatever the batches and devices.

    Lightning averages what is logged over batches and devices, where an image of a small batch weighs more.
    """

    def __init__(self) -> None:
        self._sums: dict[str, SumMetric] = {}
        self._counts: dict[str, SumMetric] = {}

    def add(self, readings: Mapping[str, Tensor], count: Tensor) -> None:
        """Adds a batch's means over `count` images; with a count of 0 they are ignored."""
        for name, reading in readings.items():
            if name not in self._sums:
                self._sums[name], self._counts[name] = _exact_sum(reading.device), _exact_sum(reading.device)
            exact = reading.detach().to(self._sums[name].dtype)
            self._sums[name].update((exact * count).masked_fill(count == 0, 0.0))
            self._counts[name].update(count)

    def take(self) -> dict[str, Tensor]:
        """Averages over all devices, which must have added the same readings, and begins anew."""
        means = {name: total.compute() / self._counts[name].compute() for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


def _exact_sum(device: torch.device) -> SumMetric:
    total = SumMetric(nan_strategy="disable").to(device)  # a loss that is not finite must be seen
    if device.type != "mps":  # Apple's GPUs have no float64
        total.set_dtype(torch.float64)
    return total
