"""A linear probe on frozen features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import EvalReport, EvaluationData, MakeTrainer
from unmask.evaluation.features import Features, describe_features, extract_features, require_labels, trainer_device
from unmask.evaluation.metrics import accuracy_metrics, count_hits
from unmask.optim.scaling import scale_lr
from unmask.optim.schedules import warmup_cosine
from unmask.randomness import keyed_permutation, stream_key

_WEIGHT_STD = 0.01  # MAE's linear probe
_MOMENTUM = 0.9  # MAE, A.2
_BASE_BATCH_SIZE = 256  # MAE counts learning rates from it


class ProbeGrid(nn.Module):
    """One linear classifier for each learning rate behind one batch normalisation, all from the same weights."""

    def __init__(self, *, num_rates: int, in_features: int, num_classes: int, seed: int) -> None:
        super().__init__()
        weight = torch.empty(in_features, num_classes)
        generator = torch.Generator().manual_seed(stream_key(seed, "linear-probe-weight"))
        nn.init.trunc_normal_(weight, std=_WEIGHT_STD, generator=generator)
        self.norm = nn.BatchNorm1d(in_features, affine=False, eps=1e-6)  # epsilon as MAE's
        self.weight = nn.Parameter(weight.repeat(num_rates, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_rates, 1, num_classes))

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "rates b classes"]:
        logits: Tensor = torch.einsum("bd,rdc->rbc", self.norm(features), self.weight) + self.bias
        return logits

    @torch.no_grad()
    def classify(self, features: Float[Tensor, "b d"], rate: int) -> Float[Tensor, "b classes"]:
        """Scores with the classifier of one rate."""
        logits: Tensor = self.norm(features) @ self.weight[rate] + self.bias[rate]
        return logits


class ProbeScore(NamedTuple):
    """What a probe is worth; figures in percent."""

    metrics: dict[str, float]
    val_top1: list[float]  # of each rate
    best: int  # the rate chosen by it


class LinearProbe:
    """Trains a linear classifier on cached features and reports it once on the test split.

    The layer sits on a batch normalisation without affine part (MAE, A.2). One classifier for each learning rate is
    trained, all in one pass over the same batches from the same weights; the rate is chosen by top-1 on the
    validation split, and only the chosen classifier meets the test split. SGD with momentum 0.9, no weight decay, the
    rate falling to 0 along half a cosine. The result is a function of the features and `seed`.

    Differs: MAE augments its images, which forbids caching, and uses LARS at a batch of 16,384.

    Args:
        base_lrs: The grid, in rising order, each for a batch of 256 and scaled linearly.
        epochs: Passes over the training features.
        batch_size: Images a step; the whole split if that is smaller. What does not fill a batch waits for another
            epoch's order.
        seed: Key of the first weights and of the order.
        baseline: Whether a random backbone is to be measured beside.

    Raises:
        ValueError: The grid is empty or a value is not positive; at evaluation, labels are missing.
    """

    def __init__(
        self,
        *,
        base_lrs: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        epochs: int = 90,
        batch_size: int = 1024,
        seed: int = 0,
        baseline: bool = True,
    ) -> None:
        if not base_lrs or min(base_lrs) <= 0.0 or list(base_lrs) != sorted(base_lrs):
            raise ValueError(f"eval.base_lrs must be positive learning rates in rising order, got {list(base_lrs)}")
        if epochs < 1 or batch_size < 2:
            raise ValueError(f"eval.epochs must be at least 1 and eval.batch_size 2, got {epochs} and {batch_size}")
        self.base_lrs = tuple(base_lrs)
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.baseline = baseline

    def evaluate(self, backbone: MaskedBackbone, data: EvaluationData, make_trainer: MakeTrainer) -> EvalReport:
        require_labels(data, ("train", "val", "test"), evaluation="linear")
        device = trainer_device(make_trainer)
        train, val, test = (
            extract_features(backbone, data, split, device=device) for split in ("train", "val", "test")
        )
        metrics, val_top1, best = self.score(train, val, test, data.num_classes)
        return EvalReport(
            protocol=(
                f"linear: batch norm and linear layer, SGD, base_lr of {_join(self.base_lrs)} by top-1 on val "
                f"({len(val.labels)}), batch {self._batch_size(train)}, {self.epochs} epochs, train "
                f"({len(train.labels)}), test ({len(test.labels)}), {describe_features(backbone, data)}"
            ),
            metrics=metrics,
            num_train_images=len(train.labels),
            num_test_images=len(test.labels),
            settings={
                "selected": f"base_lr={self.base_lrs[best]:g}",
                "selected_on": f"val ({len(val.labels)})",
                "val_top1_of_grid": _join(val_top1),
                "is_at_edge_of_grid": "yes" if best in (0, len(self.base_lrs) - 1) else "no",
            },
        )

    def score(self, train: Features, val: Features, test: Features, num_classes: int) -> ProbeScore:
        """Trains on features that are at hand, chooses the rate on `val` and measures it on `test`."""
        probe = self.fit(train, num_classes)
        val_top1 = self._val_top1(probe, val)
        best = val_top1.index(max(val_top1))  # of equals the lowest rate
        metrics = accuracy_metrics(probe.classify(test.features, best), test.labels)
        return ProbeScore(metrics | {"val_top1": val_top1[best]}, val_top1, best)

    def fit(self, train: Features, num_classes: int) -> ProbeGrid:
        """Trains all rates together.

        The sum of the losses, each times its own rate, at rate 1: without weight decay that is SGD with momentum for
        each classifier alone, since their gradients do not mix.
        """
        num_images, in_features = train.features.shape
        batch_size = self._batch_size(train)
        device = train.features.device
        probe = ProbeGrid(
            num_rates=len(self.base_lrs), in_features=in_features, num_classes=num_classes, seed=self.seed
        ).to(device)
        rates = torch.tensor([scale_lr(lr, _BASE_BATCH_SIZE, batch_size) for lr in self.base_lrs], device=device)
        optimizer = torch.optim.SGD(probe.parameters(), lr=1.0, momentum=_MOMENTUM)
        steps_per_epoch = num_images // batch_size
        schedule = warmup_cosine(
            optimizer,
            total_steps=self.epochs * steps_per_epoch,
            steps_per_epoch=float(steps_per_epoch),
            warmup_epochs=0.0,
        )
        for epoch in range(self.epochs):
            order = keyed_permutation(stream_key(self.seed, "linear-probe-order", epoch), num_images).to(device)
            for step in range(steps_per_epoch):
                rows = order[step * batch_size : (step + 1) * batch_size]
                losses = _losses(probe(train.features[rows]), train.labels[rows])
                optimizer.zero_grad()
                (losses @ rates).backward()
                optimizer.step()
                schedule.step()
        return probe.eval()

    def _val_top1(self, probe: ProbeGrid, val: Features) -> list[float]:
        """Measures each rate in percent."""
        hits = [count_hits(probe.classify(val.features, rate), val.labels) for rate in range(len(self.base_lrs))]
        return [100.0 * int(count) / len(val.labels) for count in hits]

    def _batch_size(self, train: Features) -> int:
        return min(self.batch_size, len(train.labels))


def _losses(logits: Float[Tensor, "rates b classes"], labels: Int[Tensor, " b"]) -> Float[Tensor, " rates"]:
    """Averages the cross-entropy over the batch for each rate."""
    every = F.cross_entropy(logits.transpose(1, 2), labels.expand(len(logits), -1), reduction="none")
    return every.mean(dim=1)


def _join(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
