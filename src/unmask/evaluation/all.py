"""Several protocols on one pass over the images."""

from collections.abc import Mapping

from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import EvaluationData
from unmask.evaluation.evaluator import Evaluator, FeatureEvaluator, FeatureProtocol


class FeatureProtocols(FeatureEvaluator):
    """Protocols on frozen features that are measured together.

    Args:
        protocols: By name; None leaves one out.
        baseline: Whether a random backbone is to be measured beside, by each protocol that asks for it as well.

    Raises:
        ValueError: None is left, or one does not work on frozen features.
    """

    def __init__(self, *, protocols: Mapping[str, Evaluator | None], baseline: bool = True) -> None:
        named = {name: protocol for name, protocol in protocols.items() if protocol is not None}
        if not named:
            raise ValueError("eval.protocols leaves no protocol to measure; set one of them that is not null")
        for name, protocol in named.items():
            if not protocol.protocols:
                raise ValueError(f"eval.protocols.{name} does not work on frozen features; run eval={name} by itself")
        self._named = {name: part for name, protocol in named.items() for part in protocol.protocols}
        self.baseline = baseline

    @property
    def protocols(self) -> tuple[FeatureProtocol, ...]:
        return tuple(self._named.values())

    def require(self, backbone: MaskedBackbone, data: EvaluationData) -> None:
        """Refuses, before any image is read, what one of them cannot be measured on; raises a ValueError."""
        for name, protocol in self._named.items():
            try:
                protocol.require(backbone, data)
            except ValueError as error:  # its keys lie deeper here than it knows
                raise ValueError(str(error).replace("eval.", f"eval.protocols.{name}.")) from error
