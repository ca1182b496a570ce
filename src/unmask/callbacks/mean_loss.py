"""The training loss over an interval."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from lightning import Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor


class MeanLoss:
    """Averages the training loss over batches and devices, on the loss's device until it is asked for."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count = 0

    def add(self, trainer: Trainer, outputs: STEP_OUTPUT) -> None:
        """Adds a batch; `outputs` is what Lightning hands to `on_train_batch_end`."""
        if isinstance(outputs, Mapping):
            # Lightning has divided the loss by the number of accumulated batches.
            self._sum = self._sum + outputs["loss"].detach().to(torch.float32) * trainer.accumulate_grad_batches
            self._count += 1

    def take(self, trainer: Trainer) -> float | None:
        """Returns the mean of the batches since the last call, over all devices; None without any.

        To be called on every process, which all have had equally many batches of one size.
        """
        if not self._count:
            return None
        own = torch.as_tensor(self._sum, dtype=torch.float32, device=trainer.strategy.root_device)
        mean = float(trainer.strategy.reduce(own, reduce_op="mean")) / self._count
        self._sum, self._count = 0.0, 0
        return mean

    def state_dict(self) -> dict[str, list[float] | int]:
        """The sums of all devices: a checkpoint holds what the first process says. To be called on every process."""
        sums = [float(self._sum)]
        if _are_several():
            gathered = [0.0] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, sums[0])
            sums = gathered
        return {"sums": sums, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with this device's sum, or with the mean of all where they were another number."""
        sums = [float(value) for value in state["sums"]]
        num_devices = torch.distributed.get_world_size() if _are_several() else 1
        is_own = len(sums) == num_devices > 1
        self._sum = sums[torch.distributed.get_rank()] if is_own else sum(sums) / len(sums)
        self._count = int(state["count"])


def _are_several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
