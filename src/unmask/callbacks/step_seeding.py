"""Randomness of a training step that does not depend on the steps before it."""

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from unmask.randomness import stream_key

_RANK = 0  # all devices draw as the first


class StepSeeding(Callback):
    """Reseeds every generator before each training batch with a key of (seed, epoch, batch).

    What still draws from a stream (drop-path, dropout, mixup) is thereby the same after an interruption as without
    one, and no generator's state has to enter checkpoints. All devices draw the same, as `SharedDropPath` needs.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.reseed(epoch=trainer.current_epoch, batch_idx=batch_idx, device=pl_module.device)

    def reseed(self, *, epoch: int, batch_idx: int, device: torch.device) -> None:
        """Puts the generators where a training batch finds them, batches counted within the epoch."""
        key = stream_key(self.seed, "step", epoch, batch_idx, _RANK)
        torch.default_generator.manual_seed(key)
        if device.type != "cpu":
            # Only this process's device: torch.manual_seed would visit every one of the machine.
            torch.get_device_module(device).manual_seed(key)
        # timm's mixup draws from numpy's global stream, other transforms from Python's.
        np.random.seed(key % 2**32)  # noqa: NPY002
        random.seed(key % 2**64)
