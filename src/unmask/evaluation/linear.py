"""A linear probe on frozen features."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.backbones.base import MaskedBackbone, Pooling
from unmask.evaluation.base import EvalReport, EvaluationData, Split
from unmask.evaluation.evaluator import FeatureProtocol
from unmask.evaluation.features import (
    Features,
    FrozenFeatures,
    PooledLayer,
    describe_images,
    final_mean,
    require_labels,
)
from unmask.evaluation.metrics import accuracy_metrics, count_hits
from unmask.optim.scaling import scale_lr
from unmask.optim.schedules import warmup_cosine
from unmask.randomness import keyed_permutation, stream_key
from unmask.small_sets import probe_batch_size_for, probe_epochs_for

_WEIGHT_STD = 0.01  # MAE's linear probe
_MOMENTUM = 0.9  # MAE, A.2
_BASE_BATCH_SIZE = 256  # MAE counts learning rates from it
_FEWEST_IMAGES = 2  # a batch normalization needs a deviation


class ProbeGrid(nn.Module):
    """One linear classifier for each learning rate behind one batch normalization, all from the same weights."""

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


class ProbeLength(NamedTuple):
    """How long a probe is trained."""

    batch_size: int  # images a step
    epochs: int


class LinearProbe(FeatureProtocol):
    """Trains linear classifiers on cached features and reports the best on held-out training images once on test.

    The layer sits on a batch normalization without affine part (MAE, A.2). For each layer and pooling one classifier
    a learning rate is trained, all rates over the same batches from the same weights. Layer, pooling and rate are
    chosen together by top-1 on the validation split (of equals the pooled features, then the lowest rate), and only
    the chosen classifier meets the test split. Beside it `top1_final_mean` is what the pooled features alone score, the
    rate chosen on the same split. SGD with momentum 0.9, no weight decay, the rate falling to 0 along half a cosine.
    The result is a function of the features and `seed`.

    Differs: MAE augments its images, which forbids caching, reads the class token of the last block alone, and uses
    LARS at a batch of 16,384.

    Args:
        base_lrs: The grid, in rising order, each for a batch of 256 and scaled linearly.
        layers: Numbers of the backbone's layers that are tried, counted from 1 (blocks of a ViT, stages of a Swin);
            None takes four of them, the last one of each quarter.
        pools: How their tokens become one vector: "mean", "max" and, for a ViT, "cls"; None takes the mean and, where
            there is one, the class token.
        epochs: Passes over the training features. None takes 90 (MAE, A.2 Table 10), and more where these make fewer
            than 1,000 steps, see `small_sets`.
        batch_size: Images a step; the whole split if that is smaller. What does not fill a batch waits for another
            epoch's order. None takes 1,024, and less on splits of fewer than 16,384 images, see `small_sets`.
        seed: Key of the first weights and of the order.
        baseline: Whether a random backbone is to be measured beside.

    Raises:
        ValueError: The grid is empty or a value is not positive; at evaluation, labels are missing, a split is too
            small, or the backbone has no such layer or pooling.
    """

    is_seeded = True

    def __init__(
        self,
        *,
        base_lrs: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        layers: Sequence[int] | None = None,
        pools: Sequence[str] | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        baseline: bool = True,
    ) -> None:
        if not base_lrs or min(base_lrs) <= 0.0 or list(base_lrs) != sorted(base_lrs):
            raise ValueError(f"eval.base_lrs must be positive learning rates in rising order, got {list(base_lrs)}")
        if (epochs is not None and epochs < 1) or (batch_size is not None and batch_size < 2):
            raise ValueError(f"eval.epochs must be at least 1 and eval.batch_size 2, got {epochs} and {batch_size}")
        for name, chosen in (("layers", layers), ("pools", pools)):
            if chosen is not None and not chosen:
                raise ValueError(f"eval.{name} must name at least one, or be null for the default, got []")
        self.base_lrs = tuple(base_lrs)
        self.layers = layers
        self.pools = pools
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.baseline = baseline

    def pooled_layers(self, backbone: MaskedBackbone) -> tuple[PooledLayer, ...]:
        """The grid of layers and poolings; the pooled features first where they are in it."""
        num_layers = len(backbone.layer_names)
        quarters = sorted({math.ceil(num_layers * quarter / 4) for quarter in (1, 2, 3, 4)})
        layers = quarters if self.layers is None else self.layers
        wanted = ("mean", "cls") if self.pools is None else self.pools
        pools: list[Pooling] = [pool for pool in backbone.poolings if pool in wanted]
        grid = dict.fromkeys(PooledLayer(layer - 1, pool) for layer in layers for pool in pools)
        return tuple(sorted(grid, key=lambda layer: layer != final_mean(backbone)))

    def require(self, backbone: MaskedBackbone, data: EvaluationData) -> None:
        require_labels(data, ("train", "val", "test"), evaluation="linear")
        if len(data.dataset("train")) < _FEWEST_IMAGES:
            raise ValueError(
                f"eval=linear normalizes over batches, but the train split has {len(data.dataset('train'))} image; "
                f"it needs {_FEWEST_IMAGES}"
            )
        names, poolings = backbone.layer_names, backbone.poolings
        unknown_layers = [layer for layer in self.layers or () if not 1 <= layer <= len(names)]
        if unknown_layers:
            raise ValueError(
                f"eval.layers has {unknown_layers}, but {type(backbone).__name__} has {names[0]} to {names[-1]}; "
                f"choose from 1 to {len(names)}"
            )
        unknown_pools = [pool for pool in self.pools or () if pool not in poolings]
        if unknown_pools:
            raise ValueError(
                f"eval.pools has {unknown_pools}, which {type(backbone).__name__} does not offer; "
                f"choose from {list(poolings)}"
            )

    def measure(self, features: FrozenFeatures) -> EvalReport:
        backbone, num_classes = features.backbone, features.data.num_classes
        grid, pooled = self.pooled_layers(backbone), final_mean(backbone)
        probes = {layer: self.fit(self._on_device(features, "train", layer), num_classes) for layer in {*grid, pooled}}
        val_top1 = {
            layer: self._val_top1(probe, self._on_device(features, "val", layer)) for layer, probe in probes.items()
        }
        chosen = max(grid, key=lambda layer: max(val_top1[layer]))  # of equals the first
        best = {layer: _best(val_top1[layer]) for layer in (chosen, pooled)}

        def test(layer: PooledLayer) -> dict[str, float]:
            split = self._on_device(features, "test", layer)
            return accuracy_metrics(probes[layer].classify(split.features, best[layer]), split.labels)

        length = self.length_on(len(features.data.dataset("train")))
        images = f"{type(backbone).__name__}, {describe_images(features.data)}"
        metrics = test(chosen) | {"val_top1": val_top1[chosen][best[chosen]]}
        beside = {name.replace("top", "final_mean_top"): value for name, value in test(pooled).items()}
        sizes = {split: len(features.data.dataset(split)) for split in ("train", "val", "test")}
        return EvalReport(
            protocol=(
                f"linear: batch norm and linear layer, SGD, base_lr of {_join(self.base_lrs)}, "
                f"features of {', '.join(_name(backbone, layer) for layer in grid)}, all by top-1 on val "
                f"({sizes['val']}), batch {length.batch_size}, {length.epochs} epochs, train "
                f"({sizes['train']}), test ({sizes['test']}), {images}"
            ),
            metrics=metrics | beside,
            num_train_images=sizes["train"],
            num_test_images=sizes["test"],
            settings={
                "selected": f"{_name(backbone, chosen)}, base_lr={self.base_lrs[best[chosen]]:g}",
                "selected_for_final_mean": f"base_lr={self.base_lrs[best[pooled]]:g}",
                "selected_on": f"val ({sizes['val']})",
                "val_top1_of_grid": "; ".join(f"{_name(backbone, layer)}: {_join(val_top1[layer])}" for layer in grid),
                "is_at_edge_of_grid": "yes" if best[chosen] in (0, len(self.base_lrs) - 1) else "no",
            },
            headline=("top1", "final_mean_top1"),
        )

    def score(self, train: Features, val: Features, test: Features, num_classes: int) -> ProbeScore:
        """Trains on features that are at hand, chooses the rate on `val` and measures it on `test`."""
        probe = self.fit(train, num_classes)
        val_top1 = self._val_top1(probe, val)
        best = _best(val_top1)
        metrics = accuracy_metrics(probe.classify(test.features, best), test.labels)
        return ProbeScore(metrics | {"val_top1": val_top1[best]}, val_top1, best)

    def length_on(self, num_images: int) -> ProbeLength:
        """Batch and epochs on so many training images; what is not given follows them."""
        wanted = probe_batch_size_for(num_images) if self.batch_size is None else self.batch_size
        batch_size = min(wanted, num_images)
        epochs = probe_epochs_for(num_images, batch_size) if self.epochs is None else self.epochs
        return ProbeLength(batch_size, epochs)

    def fit(self, train: Features, num_classes: int) -> ProbeGrid:
        """Trains all rates together.

        The sum of the losses, each times its own rate, at rate 1: without weight decay that is SGD with momentum for
        each classifier alone, since their gradients do not mix.
        """
        num_images, in_features = train.features.shape
        batch_size, epochs = self.length_on(num_images)
        device = train.features.device
        probe = ProbeGrid(
            num_rates=len(self.base_lrs), in_features=in_features, num_classes=num_classes, seed=self.seed
        ).to(device)
        rates = torch.tensor([scale_lr(lr, _BASE_BATCH_SIZE, batch_size) for lr in self.base_lrs], device=device)
        optimizer = torch.optim.SGD(probe.parameters(), lr=1.0, momentum=_MOMENTUM)
        steps_per_epoch = num_images // batch_size
        schedule = warmup_cosine(
            optimizer,
            total_steps=epochs * steps_per_epoch,
            steps_per_epoch=float(steps_per_epoch),
            warmup_epochs=0.0,
        )
        for epoch in range(epochs):
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

    @staticmethod
    def _on_device(features: FrozenFeatures, split: Split, layer: PooledLayer) -> Features:
        return features.read(split, layer).to(features.device)


def _best(val_top1: Sequence[float]) -> int:
    """Finds the best rate; of equals the lowest."""
    return list(val_top1).index(max(val_top1))


def _name(backbone: MaskedBackbone, layer: PooledLayer) -> str:
    return f"{backbone.layer_names[layer.number]} {layer.pool}"


def _losses(logits: Float[Tensor, "rates b classes"], labels: Int[Tensor, " b"]) -> Float[Tensor, " rates"]:
    """Averages the cross-entropy over the batch for each rate."""
    every = F.cross_entropy(logits.transpose(1, 2), labels.expand(len(logits), -1), reduction="none")
    return every.mean(dim=1)


def _join(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
