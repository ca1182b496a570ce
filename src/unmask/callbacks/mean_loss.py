"""The training loss over an interval."""

from collections.abc import Mapping

import torch
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

    def state_dict(self) -> dict[str, float | int]:
        return {"sum": float(self._sum), "count": self._count}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        self._sum, self._count = float(state["sum"]), int(state["count"])
