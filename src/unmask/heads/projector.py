"""What stands between a backbone and a contrastive loss."""

from jaxtyping import Float
from torch import Tensor, nn

from unmask.heads.initialise import initialise_linear


class Projector(nn.Module):
    """Maps pooled features to the space they are compared in: linear, GELU, linear.

    Weights start from a truncated normal of deviation 0.02, biases at 0.

    Args:
        in_features: Width of the pooled features.
        hidden_features: Width between the two layers.
        out_features: Width of what is compared.
        representation_features: Width of one more linear layer in front, with no activation behind it, as in the
            original DDMIM, which calls its output the representation; None leaves it out.
    """

    def __init__(
        self,
        *,
        in_features: int,
        hidden_features: int,
        out_features: int,
        representation_features: int | None = None,
    ) -> None:
        super().__init__()
        front: list[nn.Module] = []
        if representation_features is not None:
            front = [nn.Linear(in_features, representation_features)]
            in_features = representation_features
        self.layers = nn.Sequential(
            *front, nn.Linear(in_features, hidden_features), nn.GELU(), nn.Linear(hidden_features, out_features)
        )
        initialise_linear(self)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        projected: Tensor = self.layers(pooled)
        return projected
