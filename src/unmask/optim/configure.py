"""Joins optimizer and schedule for Lightning."""

from typing import Any

from lightning import LightningModule

from unmask.types import OptimizerFactory, ParameterGroups, ScheduleFactory


def configure_optimizer(
    module: LightningModule, groups: ParameterGroups, optimizer: OptimizerFactory, schedule: ScheduleFactory
) -> dict[str, Any]:
    """Builds what `configure_optimizers` returns: the rate changes with every optimizer step, counted by the trainer.

    `estimated_stepping_batches` already accounts for accumulation, devices and limits, so the schedule ends exactly
    with the run.
    """
    trainer = module.trainer
    total_steps = int(trainer.estimated_stepping_batches)
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
    steps_per_epoch = total_steps / epochs if epochs else total_steps
    built = optimizer(groups)
    built_schedule = schedule(built, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    return {"optimizer": built, "lr_scheduler": {"scheduler": built_schedule, "interval": "step"}}
