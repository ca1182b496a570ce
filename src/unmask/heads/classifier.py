"""Classifiers that fine-tuning puts on a backbone."""

from collections import OrderedDict

from torch import nn

from unmask.heads.batch_norm import FeatureNorm
from unmask.heads.classifier_head import ClassifierHead
from unmask.heads.initialize import initialize_linear


class LinearClassifier(ClassifierHead):
    """One linear layer on the pooled features.

    Args:
        in_features: Width of the pooled features.
        num_classes: Number of classes.
        weight_std: Deviation of the truncated normal the weights start from: 0.02 in SimMIM and training from
            scratch, 2e-5 in MAE's fine-tuning. The bias starts at 0.
    """

    def __init__(self, *, in_features: int, num_classes: int, weight_std: float = 0.02) -> None:
        super().__init__(OrderedDict(linear=nn.Linear(in_features, num_classes)))
        initialize_linear(self, std=weight_std)


class BatchNormMLPClassifier(ClassifierHead):
    """DDMIM's: linear to a representation, then batch norm, linear, GELU, linear.

    The first layer starts as a backbone's, from a truncated normal of deviation 0.02 and with its bias at 0, the others
    as torch draws them.

    Differs: the first layer is new; the original's was pre-trained as part of its projector, which the file of a
    backbone alone does not hold.

    Args:
        in_features: Width of the pooled features.
        num_classes: Number of classes.
        hidden_features: Width of the representation and of the hidden layer.
    """

    def __init__(self, *, in_features: int, num_classes: int, hidden_features: int = 1024) -> None:
        representation = nn.Linear(in_features, hidden_features)
        super().__init__(
            representation,
            FeatureNorm(hidden_features),
            nn.Linear(hidden_features, hidden_features),
            nn.GELU(),
            nn.Linear(hidden_features, num_classes),
        )
        initialize_linear(representation)
