"""The learning rate as loggers see it."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from unmask.callbacks.trainer_state import learning_rate, logging_interval


class LearningRate(Callback):
    """Logs `train/lr`, the rate of the step to come, every `trainer.log_every_n_steps` steps.

    Where parameter groups have rates of their own (layer decay), `train/lr` is the highest one, and each group with a
    `name` has its rate under `lr/<name>` as well.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.global_step + 1) % logging_interval(trainer) != 0:
            return
        groups = trainer.optimizers[0].param_groups
        rates = {"train/lr": learning_rate(trainer)}
        if len({group["lr"] for group in groups}) > 1:
            rates |= {f"lr/{group['name']}": group["lr"] for group in groups if "name" in group}
        # Lightning would round a float to float32.
        pl_module.log_dict({name: torch.tensor(rate, dtype=torch.float64) for name, rate in rates.items()})
