"""A line an epoch: whether the run goes as it should."""

import csv
import io
import logging
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from unmask.callbacks.held_out_features import pooled_features
from unmask.callbacks.judge import EpochReadings, Judgment, Verdict, judge
from unmask.callbacks.mean_loss import MeanLoss
from unmask.callbacks.online_probe import OnlineProbe
from unmask.callbacks.optional_file import write_optional
from unmask.callbacks.reference import (
    CHANGE,
    EFFECTIVE_RANK,
    GRADIENT_NORM,
    STD,
    TRAIN_LOSS,
    VAL_LOSS,
    Reference,
    read_reference,
)
from unmask.callbacks.run_settings import RunSettings
from unmask.callbacks.trainer_state import ends_interval, logging_interval, require_positive, total_steps
from unmask.methods.ddmim_monitors import effective_rank
from unmask.types import Images

VERDICTS_NAME = "verdicts.csv"
CODE = "verdict"  # as loggers name its number
_OF_AN_EPOCH = 0.01  # of its images, so many are read to look at the features
_FEWEST_IMAGES = 8
_NORM_OF_A_STEP = "train/gradient_norm"

_log = logging.getLogger("unmask")


class RunVerdict(Callback):
    """Says at the end of an epoch whether the run is normal, slow, collapsing or diverging, and why.

    It compares the run with its own history and, where there is one, with the reference of its recipe: see
    `unmask.callbacks.judge`. What it reads is logged: the epoch's mean training loss, the median norm of the gradient
    over the logged steps, and of the features of some held-out images, the same ones in each epoch, without masks, the
    effective rank, the deviation over the images relative to their size, and by how much they differ from those
    before the first step. `verdict` is logged as 0 (normal), 1 (slow), 2 (collapsing) or 3 (diverging); the lines
    stand in `verdicts.csv`. Training is the same with it as without.

    It stands before the callbacks that write checkpoints, which hold its history.

    Args:
        reference: File of the curves of good runs, see `unmask.callbacks.reference`; null: the run's history alone
            tells, and the line says so.
        num_images: Most held-out images whose features are read; fewer where these would be more than a hundredth of
            an epoch's images.

    Raises:
        ValueError: The number is not positive, or the file holds something else.
    """

    def __init__(self, *, reference: str | Path | None = None, num_images: int = 64) -> None:
        require_positive("num_images", num_images)
        self.num_images = num_images
        self._given = None if reference is None else read_reference(Path(reference))
        self.reference: Reference | None = None  # where the run is comparable
        self._beside = ""
        self._loss = MeanLoss()
        self._norms: list[float] = []
        self._history: list[EpochReadings] = []
        self._images: Images | None = None
        self._first_features: Tensor | None = None
        self._lines: list[tuple[int, int, Judgment]] = []  # epochs done, steps done

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(trainer.strategy, FSDPStrategy):  # a part of a sharded network cannot be asked for features
            return
        of_an_epoch = int(_OF_AN_EPOCH * data.num_train_images)
        self._images = data.held_out_images(min(self.num_images, max(_FEWEST_IMAGES, of_an_epoch))).image.cpu()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._first_features is None and self._images is not None:
            self._first_features = pooled_features(trainer, pl_module, self._images)
            self._history.append(EpochReadings(trainer.global_step, self._describe(self._first_features)))
        self.reference, self._beside = self._comparable(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self._loss.add(trainer, outputs)
        if ends_interval(trainer, batch_idx, logging_interval(trainer)):
            norm = trainer.callback_metrics.get(_NORM_OF_A_STEP)
            if norm is not None:
                self._norms.append(float(norm))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = self._read(trainer, pl_module)
        self._history.append(EpochReadings(trainer.global_step, values))
        module: Any = pl_module
        judgment = judge(
            self._history,
            num_steps=total_steps(trainer),
            reference=self.reference,
            compares_losses=not module.has_moving_targets,
            needs_rank=not module.is_classifier,
        )
        judgment = judgment._replace(reason=f"{judgment.reason}{self._beside}")
        self._lines.append((trainer.current_epoch + 1, trainer.global_step, judgment))
        logged = {name: value for name, value in values.items() if name not in trainer.callback_metrics}
        for logger in trainer.loggers:
            logger.log_metrics({**logged, CODE: float(judgment.verdict)}, step=max(0, trainer.global_step - 1))
        if trainer.is_global_zero:
            self._tell(judgment)
            self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [(reading.step, dict(reading.values)) for reading in self._history],
            "lines": [(epoch, step, int(verdict), reason) for epoch, step, (verdict, reason) in self._lines],
            "norms": list(self._norms),
            "unfinished": self._loss.state_dict(),
            "first_features": self._first_features,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._history = [EpochReadings(int(step), dict(values)) for step, values in state_dict["history"]]
        self._lines = [
            (int(epoch), int(step), Judgment(Verdict(verdict), str(reason)))
            for epoch, step, verdict, reason in state_dict["lines"]
        ]
        self._norms = [float(norm) for norm in state_dict["norms"]]
        self._loss.load_state_dict(state_dict["unfinished"])
        self._first_features = state_dict["first_features"]

    def _comparable(self, trainer: Trainer) -> tuple[Reference | None, str]:
        """The reference, where the run is made as those of it were, and else what a line ends with."""
        if self._given is None:
            return None, "; no reference for this recipe"
        kept = [callback for callback in trainer.callbacks if isinstance(callback, RunSettings)]  # type: ignore[attr-defined]
        settings, images = (kept[0].settings, kept[0].fingerprints) if kept else ({}, {})
        difference = self._given.difference(settings, images=images, num_steps=total_steps(trainer))
        if difference is None:
            return self._given, ""
        return None, f"; no reference for these settings: {difference} ({self._given.name})"

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        values: dict[str, float] = {}
        loss = self._loss.take(trainer)
        if loss is not None:
            values[TRAIN_LOSS] = loss
        if self._norms:
            values[GRADIENT_NORM] = statistics.median(self._norms)
            self._norms = []
        if VAL_LOSS in trainer.callback_metrics:
            values[VAL_LOSS] = float(trainer.callback_metrics[VAL_LOSS])
        if self._images is not None:
            values |= self._describe(pooled_features(trainer, pl_module, self._images))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, OnlineProbe):
                values |= callback.found_at(trainer.global_step)
        return values

    def _describe(self, features: Float[Tensor, "b d"]) -> dict[str, float]:
        size = features.square().mean().sqrt().clamp(min=torch.finfo(features.dtype).tiny)
        described = {
            EFFECTIVE_RANK: float(effective_rank(features)),
            STD: float(features.std(dim=0, correction=0).mean() / size),
        }
        first = self._first_features
        if first is not None and first.shape == features.shape:  # a run may be continued on other held-out images
            described[CHANGE] = float((features - first).norm() / first.norm())
        return described

    def _tell(self, judgment: Judgment) -> None:
        level = logging.INFO if judgment.verdict is Verdict.NORMAL else logging.WARNING
        _log.log(level, f"verdict  {judgment.verdict.name.lower()}: {judgment.reason}")

    def _write(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(["epoch", "step", "verdict", "reason"])
        table.writerows([epoch, step, verdict.name.lower(), reason] for epoch, step, (verdict, reason) in self._lines)
        write_optional(
            Path(trainer.default_root_dir) / VERDICTS_NAME,
            lambda partial: partial.write_text(text.getvalue(), encoding="utf-8", newline=""),
        )


def read_verdicts(folder: Path) -> list[Mapping[str, str]]:
    """Reads the lines of `verdicts.csv`: epoch, step, verdict and reason; none where there is no such file."""
    path = folder / VERDICTS_NAME
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
