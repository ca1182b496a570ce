"""What stands between a backbone and a contrastive loss."""

from jaxtyping import Float
from torch import Tensor, nn

from unmask.heads.initialize import initialize_linear


class Projector(nn.Module):
    """Maps pooled features to the space they are compared in: linear, GELU, linear.

    Args:
        in_features: Width of the pooled features.
        hidden_features: Width between the two layers.
        out_features: Width of what is compared.
        representation_features: Width of one more linear layer in front, with no activation behind it, as in the
            original DDMIM, which calls its output the representation; None leaves it out. Its weights start from a
            truncated normal of deviation 0.02, as a backbone's.
        weight_std: Deviation of the truncated normal that the weights of the two layers start from, with biases at 0;
            None draws weights and biases as torch does, as in the original DDMIM.
    """

    def __init__(
        self,
        *,
        in_features: int,
        hidden_features: int,
        out_features: int,
        representation_features: int | None = None,
        weight_std: float | None = 0.02,
    ) -> None:
        super().__init__()
        front = nn.Sequential()
        if representation_features is not None:
            front = nn.Sequential(nn.Linear(in_features, representation_features))
            in_features = representation_features
        rest = nn.Sequential(
            nn.Linear(in_features, hidden_features), nn.GELU(), nn.Linear(hidden_features, out_features)
        )
        initialize_linear(front)
        if weight_std is not None:
            initialize_linear(rest, std=weight_std)
        self.layers = nn.Sequential(*front, *rest)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        projected: Tensor = self.layers(pooled)
        return projected
