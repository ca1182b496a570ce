"""Joins optimizer and schedule for Lightning."""

import math
from typing import Any

from lightning import LightningModule

from unmask.types import OptimizerFactory, ParameterGroups, ScheduleFactory


def configure_optimizer(
    module: LightningModule, groups: ParameterGroups, optimizer: OptimizerFactory, schedule: ScheduleFactory
) -> dict[str, Any]:
    """Builds what `configure_optimizers` returns: the rate changes with every optimizer step, counted by the trainer.

    `estimated_stepping_batches` already accounts for accumulation, devices and limits, so the schedule ends exactly
    with the run.

    Raises:
        ValueError: The run has no end.
    """
    trainer = module.trainer
    total_steps = trainer.estimated_stepping_batches
    if total_steps == float("inf"):
        raise ValueError("a schedule needs an end; set trainer.max_epochs or trainer.max_steps")
    trainer.fit_loop.setup_data()  # counts the batches, which a run limited by steps alone has not done yet
    steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    built = optimizer(groups)
    built_schedule = schedule(built, total_steps=int(total_steps), steps_per_epoch=steps_per_epoch)
    return {"optimizer": built, "lr_scheduler": {"scheduler": built_schedule, "interval": "step"}}
