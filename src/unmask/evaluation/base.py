"""What an evaluation takes and returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from lightning import LightningDataModule, LightningModule, Trainer

from unmask.backbones.base import MaskedBackbone

MakeTrainer = Callable[..., Trainer]
"""Builds the run's Trainer; keyword arguments replace the configured ones."""


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """The outcome of one protocol; written as report.json."""

    protocol: str  # name and every setting that changes the number, in one line
    metrics: Mapping[str, float]  # "top1" and "top5" in percent, with "top1_ci95_low/high"
    num_train_images: int
    num_test_images: int
    settings: Mapping[str, float | int | str] = field(default_factory=dict)  # what was selected, and on which split


class RepresentationEvaluator(Protocol):
    """Measures what a backbone's features are worth."""

    baseline: bool  # whether a random backbone of the same settings is to be measured beside

    def evaluate(
        self, backbone: MaskedBackbone, data: LightningDataModule, make_trainer: MakeTrainer
    ) -> EvalReport:
        """Evaluates a backbone; selection uses the training split and what is held out of it, never the test split."""
        ...


class ModuleEvaluator(Protocol):
    """Measures a trained module, head and all, as it is."""

    def evaluate_module(
        self, module: LightningModule, data: LightningDataModule, make_trainer: MakeTrainer
    ) -> EvalReport:
        """Runs the module's own test step on the test split."""
        ...
