"""What the features are worth while they are learned, on any labeled images."""

import logging
from time import perf_counter
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities import move_data_to_device

from unmask.backbones.base import MaskedBackbone
from unmask.callbacks.trainer_state import is_last_epoch, require_positive
from unmask.data.datamodule import ImageDataModule
from unmask.data.files.splits import Split
from unmask.eval_mode import eval_mode
from unmask.evaluation.features import Features
from unmask.evaluation.knn import KNN
from unmask.evaluation.metrics import accuracy_metrics
from unmask.heads.logistic_regression import LogisticRegression

_MAX_ITERATIONS = 100  # of L-BFGS; a monitor needs no optimum to the last digit

_log = logging.getLogger("unmask")


class OnlineProbe(Callback):
    """Measures, at the end of an epoch, k-NN and logistic regression on the features of the backbone that is exported.

    It reads full images without masks or augmentation, in eval mode, as every evaluation does: some of the training
    split make the bank, some of the validation split are the queries. Logged are `probe/NAME/knn_top1` and
    `probe/NAME/logistic_top1`, in percent, and a line says both. Training is the same with a probe as without;
    `best.ckpt` may follow one. MAE's k-NN is low by nature (11 % on ImageNet where a linear probe finds 46 %): compare
    a number with the one before it and with `eval.py`, not between methods.

    A probe is left out where it would take more than its fraction of the time; it is always made after the first
    epoch, which tells what it costs, and after the last.

    Args:
        name: Of the probe, for the log.
        data: Serves labeled `train` and `val` splits at the backbone's image size.
        num_images: Most images read of each split, spread evenly over it.
        max_time_fraction: Of the time since training began that probing may take, in (0, 1]; ours.
        k: Neighbors that vote.
        inverse_strength: Of the logistic regression, scikit-learn's `C`; ours.

    Raises:
        ValueError: A value is out of range; as training begins, a split lacks labels, is streamed or holds fewer than
            `k` images.
    """

    def __init__(
        self,
        *,
        name: str,
        data: ImageDataModule,
        num_images: int = 1000,
        max_time_fraction: float = 0.03,
        k: int = 20,
        inverse_strength: float = 0.01,
    ) -> None:
        require_positive("num_images", num_images)
        if not 0.0 < max_time_fraction <= 1.0:
            raise ValueError(f"probes.{name}.max_time_fraction must lie above 0 and at most 1, got {max_time_fraction}")
        self.name, self.data = name, data
        self.num_images, self.max_time_fraction = num_images, max_time_fraction
        self.inverse_strength = inverse_strength
        self.knn = KNN(k=k, also_k=(), uniform_k=k)
        self._began = 0.0
        self._spent = 0.0
        self._last_cost = 0.0  # seconds; 0 before the first
        self._probed_at_step: int | None = None
        self._found: dict[str, float] = {}

    def found_at(self, step: int) -> dict[str, float]:
        """What was logged after that many optimizer steps; nothing where no probe was made there."""
        return dict(self._found) if self._probed_at_step == step else {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for split in ("train", "val"):
            dataset = self.data.dataset(split)
            if not dataset.is_labeled:
                raise ValueError(f"probes.{self.name} needs labels, but the {split} split of its data has none")
            if dataset.is_streamed:
                raise ValueError(
                    f"probes.{self.name} chooses images, and the {split} split of its data is streamed; name data that "
                    f"are not by probes.{self.name}.data=NAME"
                )
        bank_size = min(len(self.data.dataset("train")), self.num_images)
        if bank_size < self.knn.k:
            raise ValueError(
                f"probes.{self.name} asks for k={self.knn.k} neighbors of {bank_size} images; set "
                f"probes.{self.name}.k={bank_size} or less"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began, self._spent, self._last_cost, self._probed_at_step = perf_counter(), 0.0, 0.0, None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        elapsed = perf_counter() - self._began
        may_probe = torch.tensor(self._spent + self._last_cost <= self.max_time_fraction * elapsed)
        # All processes compute together or none does: their clocks differ, so the first one's decides.
        is_due = self._probed_at_step is None or is_last_epoch(trainer)
        if is_due or bool(trainer.strategy.broadcast(may_probe)):
            self._probe(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._probed_at_step != trainer.global_step:
            self._probe(trainer, pl_module)

    def _probe(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start = perf_counter()
        backbone: Any = pl_module.exported_backbone
        bank, query = (self._read(backbone, split, trainer, pl_module) for split in ("train", "val"))
        found = self._measure(bank, query)
        self._last_cost = perf_counter() - start
        self._spent += self._last_cost
        self._probed_at_step = trainer.global_step
        self._found = readings = {f"probe/{self.name}/{kind}_top1": value for kind, value in found.items()}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in readings.items()})
        for logger in trainer.loggers:
            logger.log_metrics(readings, step=max(0, trainer.global_step - 1))  # the step just done, as of val/loss
        if trainer.is_global_zero:
            _log.info(
                f"probe {self.name}  k-NN {found['knn']:.1f} %  logistic regression {found['logistic']:.1f} %  "
                f"({len(bank.labels):,} training and {len(query.labels):,} validation images, {self._last_cost:.1f} s)"
            )

    def _measure(self, bank: Features, query: Features) -> dict[str, float]:
        num_classes = self.data.num_classes
        head = LogisticRegression(
            in_features=bank.features.shape[1], num_classes=num_classes, max_iterations=_MAX_ITERATIONS
        ).to(bank.features.device)
        head.fit(bank.features, bank.labels, inverse_strength=self.inverse_strength)
        return {
            "knn": self.knn.score(bank, query, num_classes)["top1"],
            "logistic": accuracy_metrics(head(query.features), query.labels)["top1"],
        }

    def _read(self, backbone: MaskedBackbone, split: Split, trainer: Trainer, pl_module: LightningModule) -> Features:
        """Computes pooled features in the run's precision; stored, they are float32."""
        dataset = self.data.dataset(split)
        count = min(self.num_images, len(dataset))
        positions = torch.arange(count) * len(dataset) // count
        data = self.data.with_dataset(split, dataset.subset(positions))
        features, labels = [], []
        with eval_mode(backbone), torch.no_grad(), trainer.precision_plugin.forward_context():
            for raw in data.evaluation_part(split, part=0, num_parts=1):
                batch = data.to_model_input(move_data_to_device(raw, pl_module.device), augmented=False)
                features.append(backbone.forward_pooled(batch.image).float())
                labels.append(batch.label)
        return Features(torch.cat(features), torch.cat(labels))
