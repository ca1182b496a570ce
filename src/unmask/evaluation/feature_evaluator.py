"""What the protocols on frozen features have in common."""

from abc import ABC, abstractmethod
from typing import ClassVar

from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import EvalReport, EvaluationData, MakeTrainer
from unmask.evaluation.features import FeatureView, FrozenFeatures


class FeatureEvaluator(ABC):
    """Measures what frozen features are worth; several protocols may share one pass over the images."""

    baseline: bool  # whether a random backbone of the same settings is to be measured beside
    is_seeded: ClassVar[bool]  # whether the number depends on a seed of the protocol's own

    @property
    def protocols(self) -> tuple["FeatureEvaluator", ...]:
        """What is measured on one pass over the images: itself; see `FeatureProtocols` for several."""
        return (self,)

    def views(self, backbone: MaskedBackbone) -> tuple[FeatureView, ...]:
        """What it reads beside the pooled features."""
        return ()

    @abstractmethod
    def require(self, backbone: MaskedBackbone, data: EvaluationData) -> None:
        """Refuses, before any image is read, what it cannot be measured on; raises a ValueError."""

    @abstractmethod
    def measure(self, features: FrozenFeatures) -> EvalReport:
        """Measures features; what `require` refuses must not reach it."""

    def evaluate(self, backbone: MaskedBackbone, data: EvaluationData, make_trainer: MakeTrainer) -> EvalReport:
        """Evaluates a backbone by this protocol alone."""
        self.require(backbone, data)
        return self.measure(FrozenFeatures(backbone, data, make_trainer, self.views(backbone)))
