"""The course of the loss as a picture."""

import math
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from unmask.callbacks.mean_loss import MeanLoss
from unmask.callbacks.pictures import keep_figure
from unmask.callbacks.trainer_state import ends_interval, learning_rate, logging_interval

Series = list[tuple[int, float]]
"""(optimizer step, value) pairs in the order they were recorded."""

_TRAIN, _VAL, _RATE, _GRID = "#2b6cb0", "#dd6b20", "#4a5568", "#e2e8f0"
_LOG_SCALE_FROM = 10.0  # largest over smallest loss
_FEW_POINTS = 60  # up to here each point is marked


class LossCurve(Callback):
    """Keeps the losses and the learning rate of a run and draws them to `<run directory>/loss_curve.png`.

    The training loss is the mean over `trainer.log_every_n_steps` optimizer steps, the learning rate the
    one the next step will take. The history is part of checkpoints, so a resumed run's picture begins at step 0.
    """

    def __init__(self) -> None:
        self.train: Series = []
        self.val: Series = []
        self.learning_rate: Series = []
        self._loss = MeanLoss()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self._loss.add(trainer, outputs)
        if ends_interval(trainer, batch_idx, logging_interval(trainer)):
            self._record_training(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and "val/loss" in trainer.callback_metrics:
            self.val.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_training(trainer)  # the steps after the last whole interval
        self._draw(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {
            "train": list(self.train),
            "val": list(self.val),
            "learning_rate": list(self.learning_rate),
            "unfinished": self._loss.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train, self.val, self.learning_rate = (
            [(int(step), float(value)) for step, value in state_dict[name]]
            for name in ("train", "val", "learning_rate")
        )
        self._loss.load_state_dict(state_dict["unfinished"])

    def _record_training(self, trainer: Trainer) -> None:
        loss = self._loss.take(trainer)
        if loss is not None:
            self.train.append((trainer.global_step, loss))
            self.learning_rate.append((trainer.global_step, learning_rate(trainer)))

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and (self.train or self.val):
            figure = loss_figure(self.train, self.val, self.learning_rate, title=type(pl_module).__name__)
            keep_figure(figure, Path(trainer.default_root_dir) / "loss_curve.png")


def loss_figure(train: Series, val: Series, rate: Series, *, title: str) -> Figure:
    """Draws the losses and, below them, the learning rate, over optimizer steps.

    The losses' axis is logarithmic where they are positive and span a factor of 10 or more. Values that are not
    finite leave a gap.
    """
    figure = Figure(figsize=(8.0, 5.2), dpi=120, layout="constrained", facecolor="white")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
    for series, name, color in ((train, "train", _TRAIN), (val, "validation", _VAL)):
        if series:
            marker = "o" if len(series) <= _FEW_POINTS else ""
            label = f"{name}, now {series[-1][1]:.4g}"
            losses.plot(*_finite(series), color=color, label=label, linewidth=1.6, marker=marker, markersize=3.5)
    rates.plot(*_finite(rate), color=_RATE, linewidth=1.4, marker="o" if len(rate) == 1 else "", markersize=3.5)

    values = [value for _, value in train + val if math.isfinite(value)]
    if values and min(values) > 0 and max(values) / min(values) >= _LOG_SCALE_FROM:
        losses.set_yscale("log")
        losses.yaxis.set_major_formatter(ScalarFormatter())
        losses.yaxis.set_minor_formatter(NullFormatter())
    losses.set_title(title, loc="left", fontweight="bold")
    losses.set_ylabel("loss")
    losses.legend(frameon=False)
    rates.set_ylabel("learning rate")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    rates.set_ylim(bottom=0.0)
    rates.set_xlim(left=0.0)
    rates.set_xlabel("optimizer step")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    for axes in (losses, rates):
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _finite(series: Series) -> tuple[list[int], list[float]]:
    """Splits into steps and values, those that are not finite as the NaN matplotlib leaves out."""
    return [step for step, _ in series], [value if math.isfinite(value) else math.nan for _, value in series]
