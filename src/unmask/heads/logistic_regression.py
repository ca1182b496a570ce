"""A linear classifier that is fitted at once, to the optimum."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

_ROWS_AT_ONCE = 2**16  # bounds the memory of logits, whatever the number of images
_GRADIENT_TOLERANCE = 1e-6  # largest entry of the gradient of the mean loss at the optimum
_CHANGE_TOLERANCE = 1e-10


class Choice(NamedTuple):
    """Which strength did best on held-out features."""

    inverse_strength: float
    top1: list[float]  # fraction of hits on the held-out features, for each strength
    has_converged: bool  # whether every fit ended before its last iteration


class LogisticRegression(nn.Module):
    """Multinomial logistic regression with an L2 penalty on standardized features, fitted by L-BFGS.

    With c the inverse strength, n the features, W the weights and b the biases, it minimizes
    `sum_i cross_entropy(W z_i + b, y_i) + |W|² / (2 c)`, as scikit-learn's `LogisticRegression(C=c)` on what
    `StandardScaler` gives: z are the features minus their mean, divided by their deviation. The problem is convex, so
    the result depends on neither a seed nor a learning rate.

    Args:
        in_features: Width of the features.
        num_classes: Number of classes.
        inverse_strengths: The grid in rising order, scikit-learn's `C`; ours.
        max_iterations: Of L-BFGS, for each strength.

    Raises:
        ValueError: The grid is empty, not positive or not in rising order; in use, nothing was fitted.
    """

    reads_patches: ClassVar[bool] = False
    is_fitted_at_once: ClassVar[bool] = True

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        *,
        in_features: int,
        num_classes: int,
        inverse_strengths: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
        max_iterations: int = 500,
    ) -> None:
        super().__init__()
        grid = list(inverse_strengths)
        if not grid or min(grid) <= 0.0 or grid != sorted(grid):
            raise ValueError(f"head.inverse_strengths must be positive numbers in rising order, got {grid}")
        if max_iterations < 1:
            raise ValueError(f"head.max_iterations must be at least 1, got {max_iterations}")
        self.inverse_strengths = tuple(grid)
        self.max_iterations = max_iterations
        self.is_fitted = False
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("std", torch.ones(in_features))
        self.register_buffer("weight", torch.zeros(in_features, num_classes))
        self.register_buffer("bias", torch.zeros(num_classes))

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        if not self.is_fitted:
            raise ValueError(
                "head=logistic_regression does not learn by gradient steps; use it with eval=frozen, "
                "or another head such as head=linear"
            )
        return self._classify(features, self.weight, self.bias)

    def fit(self, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, inverse_strength: float) -> bool:
        """Fits one strength, starting from what was fitted last; tells whether it converged."""
        self._standardize(features)
        return self._minimize(features, labels, inverse_strength)

    def fit_best(
        self,
        features: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        held_out_features: Float[Tensor, "m d"],
        held_out_labels: Int[Tensor, " m"],
    ) -> Choice:
        """Fits every strength and keeps the one with the most hits on held-out features, of equals the strongest."""
        self._standardize(features)
        best: tuple[Tensor, Tensor] | None = None
        top1: list[float] = []
        has_converged = True
        for inverse_strength in self.inverse_strengths:  # each starts where the stronger one before it ended
            has_converged &= self._minimize(features, labels, inverse_strength)
            hits = sum(
                int((self(part).argmax(dim=1) == expected).sum())
                for part, expected in zip(
                    held_out_features.split(_ROWS_AT_ONCE), held_out_labels.split(_ROWS_AT_ONCE), strict=True
                )
            )
            top1.append(hits / len(held_out_labels))
            if best is None or top1[-1] > max(top1[:-1]):
                best = self.weight, self.bias
        assert best is not None
        self.weight, self.bias = best
        return Choice(self.inverse_strengths[top1.index(max(top1))], top1, has_converged)

    def _standardize(self, features: Float[Tensor, "n d"]) -> None:
        self.mean = features.mean(dim=0)
        std = features.std(dim=0, correction=0)
        self.std = torch.where(std > 0, std, torch.ones_like(std))  # a constant feature becomes 0
        self.weight, self.bias = self.weight.to(features), self.bias.to(features)

    def _minimize(self, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], inverse_strength: float) -> bool:
        weight, bias = self.weight.clone().requires_grad_(), self.bias.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=self.max_iterations,
            max_eval=25 * self.max_iterations,  # no limit: a line search takes at most as many
            tolerance_grad=_GRADIENT_TOLERANCE,
            tolerance_change=_CHANGE_TOLERANCE,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            """The mean loss and its gradient, a bounded number of rows at a time."""
            optimizer.zero_grad()
            penalty = weight.square().sum() / (2.0 * inverse_strength * len(features))
            penalty.backward()
            total = penalty.detach()
            for part, expected in zip(features.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True):
                logits = self._classify(part, weight, bias)
                loss = F.cross_entropy(logits, expected, reduction="sum") / len(features)
                loss.backward()
                total = total + loss.detach()
            return total

        with torch.enable_grad():
            optimizer.step(objective)
        self.weight, self.bias = weight.detach(), bias.detach()
        self.is_fitted = True
        return bool(optimizer.state[weight]["n_iter"] < self.max_iterations)

    def _classify(
        self, features: Float[Tensor, "b d"], weight: Float[Tensor, "d classes"], bias: Float[Tensor, " classes"]
    ) -> Float[Tensor, "b classes"]:
        return (features - self.mean) / self.std @ weight + bias
