"""The kinds of evaluators; each says itself how it is run on checkpoints, seeds and data."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol, runtime_checkable

from lightning import LightningModule

from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import EvalReport, EvaluationData, MakeTrainer, Outputs
from unmask.evaluation.features import FrozenFeatures, PooledLayer
from unmask.evaluation.report import EvalResult


@runtime_checkable
class EvaluationRun(Protocol):
    """The checkpoints, seeds and data of one command, and the ways evaluators are run on them."""

    def measure_features(self, evaluator: "FeatureEvaluator") -> list[EvalResult]:
        """Reads the frozen features of each backbone once and measures them by every protocol and seed."""
        ...

    def evaluate_backbones(self, evaluator: "BackboneEvaluator") -> list[EvalResult]:
        """Hands over a fresh copy of each backbone for each seed."""
        ...

    def test_modules(self, evaluator: "ModuleEvaluator") -> list[EvalResult]:
        """Hands over the trained module of each checkpoint, head included."""
        ...


class Evaluator(ABC):
    """What `eval=` chooses."""

    @property
    def protocols(self) -> tuple["FeatureProtocol", ...]:
        """The protocols on frozen features it consists of; none where it does not work on them."""
        return ()

    @abstractmethod
    def run_on(self, run: EvaluationRun) -> list[EvalResult]:
        """Chooses the way it is run; a run with several seeds builds the evaluators of the others by itself."""


class FeatureEvaluator(Evaluator):
    """Measures what frozen features are worth, by one protocol or several."""

    baseline: bool  # whether a random backbone of the same settings is to be measured beside

    @property
    @abstractmethod
    def protocols(self) -> tuple["FeatureProtocol", ...]:
        """What is measured on one pass over the images."""

    @abstractmethod
    def require(self, backbone: MaskedBackbone, data: EvaluationData) -> None:
        """Refuses, before any image is read, what it cannot be measured on; raises a ValueError."""

    def run_on(self, run: EvaluationRun) -> list[EvalResult]:
        return run.measure_features(self)


class FeatureProtocol(FeatureEvaluator):
    """Measures frozen features by one protocol; several may share one pass over the images."""

    is_seeded: ClassVar[bool]  # whether the number depends on a seed of the protocol's own

    @property
    def protocols(self) -> tuple["FeatureProtocol", ...]:
        return (self,)

    def pooled_layers(self, backbone: MaskedBackbone) -> tuple[PooledLayer, ...]:
        """What it reads beside the pooled features."""
        return ()

    @abstractmethod
    def measure(self, features: FrozenFeatures) -> EvalReport:
        """Measures features; what `require` refuses must not reach it."""

    def evaluate(self, backbone: MaskedBackbone, data: EvaluationData, make_trainer: MakeTrainer) -> EvalReport:
        """Evaluates a backbone by this protocol alone."""
        self.require(backbone, data)
        return self.measure(FrozenFeatures(backbone, data, make_trainer, self.pooled_layers(backbone)))


class BackboneEvaluator(Evaluator):
    """Measures a backbone by a training of its own or by passes of its own over the images."""

    baseline: bool  # whether a random backbone of the same settings is to be evaluated beside

    def num_training_images(self, num_labeled: int) -> int | None:
        """Of the training split's images, how many are learned from, which batch, rate and length may follow.

        Returns:
            None where they must not, as where several trainings have different numbers.
        """
        return None

    @abstractmethod
    def evaluate(self, backbone: MaskedBackbone, data: EvaluationData, make_trainer: MakeTrainer) -> EvalReport:
        """Evaluates a backbone, whose weights stay as they are.

        Selection uses the training split and what is held out of it, never the test split.
        """

    def run_on(self, run: EvaluationRun) -> list[EvalResult]:
        return run.evaluate_backbones(self)


class ModuleEvaluator(Evaluator):
    """Measures a trained module, head included, as it is."""

    @abstractmethod
    def evaluate_module(
        self, module: LightningModule, data: EvaluationData, make_trainer: MakeTrainer, outputs: Outputs
    ) -> EvalReport:
        """Runs the module's own test step on the test split; `outputs` says what those of a classifier stand for."""

    def run_on(self, run: EvaluationRun) -> list[EvalResult]:
        return run.test_modules(self)
