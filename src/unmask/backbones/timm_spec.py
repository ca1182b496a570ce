"""A backbone in the words of timm, for programs that know timm and not this package."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor


class TimmSpec(NamedTuple):
    """What makes timm build a network that pools to the features evaluation reads here."""

    name: str  # of the architecture
    arguments: Mapping[str, Any]  # of `timm.create_model` beside the name and `num_classes`; JSON can hold them
    state_dict: Mapping[str, Tensor]  # under timm's names, without a classifier
    classifier: str  # the name timm gives the linear layer behind the pooling: its weights are `<classifier>.weight`
