"""The features every protocol without training of the backbone reads: of full images, computed in one place."""

import functools
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from lightning import LightningModule, Trainer
from torch import Tensor

from unmask.backbones.base import MaskedBackbone, Pooling
from unmask.eval_mode import eval_mode
from unmask.evaluation.base import EvaluationData, MakeTrainer, Split

_BYTES_IN_MEMORY = 4 * 2**30  # features of one split; what does not fit lies in a file that has no name
_ABSENT = -1  # index of a row that only fills a batch up


class Features(NamedTuple):
    """A split as a backbone sees it, in stored order."""

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]

    def to(self, device: torch.device) -> "Features":
        return Features(self.features.to(device), self.labels.to(device))


class PooledLayer(NamedTuple):
    """Which layer of a backbone is read, and how its tokens are pooled into one vector."""

    number: int  # from 0, as `MaskedBackbone.layer_names` counts
    pool: Pooling


class FrozenFeatures:
    """The features of one backbone on one data set, read at most once a split, all pooled layers in the same pass.

    All protocols of a backbone share it. Images are full and not augmented, the backbone is in eval mode, and features
    are float32 whatever the trainer's precision. Several devices share the batches of one: a batch has the same images
    on any number of them, rows are stored by the sample's number, and so the features are the same bit for bit and a
    sample that only fills a batch up is never counted.

    Features lie in main memory, or in an unnamed file of the trainer's folder where a split has more than 4 GiB.

    Args:
        backbone: Its training modes are restored after each pass.
        data: Serves the splits.
        make_trainer: Says where and on how many devices features are computed.
        pooled_layers: What is read beside `final_mean`, which always is.
    """

    def __init__(
        self,
        backbone: MaskedBackbone,
        data: EvaluationData,
        make_trainer: MakeTrainer,
        pooled_layers: Sequence[PooledLayer] = (),
    ) -> None:
        self.backbone = backbone
        self.data = data
        self.make_trainer = make_trainer
        self.pooled_layers = tuple(dict.fromkeys([*pooled_layers, final_mean(backbone)]))
        self._read: dict[Split, dict[PooledLayer, Features]] = {}

    @functools.cached_property
    def device(self) -> torch.device:
        """Where a protocol computes on them."""
        return trainer_device(self.make_trainer)

    @property
    def description(self) -> str:
        """What they are, for a protocol line; of `final_mean`."""
        return describe_features(self.backbone, self.data)

    def read(self, split: Split, layer: PooledLayer | None = None) -> Features:
        """Gives one pooled layer of a split, in main memory; `final_mean` by default."""
        if split not in self._read:
            self._read[split] = self._pass_over(split)
        return self._read[split][layer if layer is not None else final_mean(self.backbone)]

    def _pass_over(self, split: Split) -> dict[PooledLayer, Features]:
        trainer = self.make_trainer(
            callbacks=[],
            logger=False,
            precision="32-true",
            use_distributed_sampler=False,  # the data module deals the batches out
            fast_dev_run=False,
            limit_predict_batches=None,
            enable_progress_bar=False,
            enable_checkpointing=False,
        )
        reader = _FeatureReader(self.backbone, self.data, self.pooled_layers, num_images=len(self.data.dataset(split)))
        batches = self.data.evaluation_part(split, part=trainer.global_rank, num_parts=trainer.world_size)
        with eval_mode(self.backbone):
            trainer.predict(reader, dataloaders=_LoadedBatches(batches), return_predictions=False)
        assert bool(reader.is_read.all()), "a sample was skipped"
        return {layer: Features(features, reader.labels) for layer, features in reader.features.items()}


class _FeatureReader(LightningModule):
    """Stores what a backbone makes of every batch of all devices, row by row under the sample's number."""

    def __init__(
        self, backbone: MaskedBackbone, data: EvaluationData, layers: Sequence[PooledLayer], *, num_images: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.data = data
        self.layers = layers
        self.is_read = torch.zeros(num_images, dtype=torch.bool)
        self.labels = torch.zeros(num_images, dtype=torch.long)
        self.features: dict[PooledLayer, Tensor] = {}

    def predict_step(self, batch: Any, batch_idx: int) -> Int[Tensor, " b"]:
        images, labels, index = self.data.to_model_input(batch, augmented=False)
        rows = self._gather(index, fill=_ABSENT)
        is_present = rows != _ABSENT
        rows = rows[is_present]
        self.is_read[rows] = True
        self.labels[rows] = self._gather(labels)[is_present]
        for number, pooled in enumerate(self.backbone.forward_layers(images)):
            for layer in self.layers:
                if layer.number == number:
                    self._store(layer, rows, self._gather(pooled[layer.pool].float())[is_present])
        return rows

    def _store(self, layer: PooledLayer, rows: Int[Tensor, " b"], features: Float[Tensor, "b d"]) -> None:
        if layer not in self.features:
            size = (len(self.is_read), features.shape[1])
            in_use = sum(stored.nbytes for stored in self.features.values())
            needed = 4 * math.prod(size)
            fits = in_use + needed <= _BYTES_IN_MEMORY
            with torch.inference_mode(mode=False):  # a probe may train on them
                self.features[layer] = (
                    torch.empty(size) if fits else _on_disk(size, folder=self.trainer.default_root_dir)
                )
        self.features[layer][rows] = features

    def _gather(self, own: Tensor, fill: int = 0) -> Tensor:
        """Joins what all devices have of a batch, in main memory; where one has fewer rows, `fill` stands."""
        if self.trainer.world_size == 1:
            return own.cpu()
        strategy = self.trainer.strategy
        counts = strategy.all_gather(torch.tensor(len(own), device=self.device))
        padded = own.new_full((int(counts.max()), *own.shape[1:]), fill)
        padded[: len(own)] = own
        return strategy.all_gather(padded).flatten(0, 1).cpu()


class _LoadedBatches:
    """Batches as they come: Lightning takes a loader apart to predict on it, but leaves other iterables alone."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def read_features(backbone: MaskedBackbone, data: EvaluationData, split: Split, *, device: torch.device) -> Features:
    """Computes the pooled feature of every image of a split once, on one device, where the result stays."""
    make_trainer = functools.partial(
        Trainer, accelerator=device.type, devices=1 if device.index is None else [device.index]
    )
    return FrozenFeatures(backbone, data, make_trainer).read(split).to(device)


def final_mean(backbone: MaskedBackbone) -> PooledLayer:
    """What `forward_pooled` computes: the mean over the tokens of the last layer, or its class token."""
    return PooledLayer(len(backbone.layer_names) - 1, backbone.pooling)


def require_labels(data: EvaluationData, splits: Sequence[Split], *, evaluation: str) -> None:
    """Refuses data a classification cannot be measured on, before anything is computed.

    Raises:
        ValueError: A split has images without a label, or there is one class only.
    """
    for split in splits:
        labels = data.dataset(split).labels
        num_unlabeled = int((labels < 0).sum())
        if num_unlabeled or not len(labels):
            lack = "none" if num_unlabeled == len(labels) else f"none for {num_unlabeled} of {len(labels)} images"
            raise ValueError(
                f"eval={evaluation} needs labels, but the {split} split of {type(data).__name__} has {lack}; "
                "use labeled data such as data=cifar10"
            )
    if data.num_classes < 2:
        raise ValueError(
            f"eval={evaluation} needs at least two classes, but {type(data).__name__} has {data.num_classes}; "
            "use labeled data such as data=cifar10"
        )


def describe_features(backbone: MaskedBackbone, data: EvaluationData) -> str:
    """Says in a protocol line what the features are."""
    return f"{type(backbone).__name__} pooled features ({backbone.embed_dim}), {describe_images(data)}"


def describe_images(data: EvaluationData) -> str:
    """Says in a protocol line what the backbone sees."""
    height, width = data.image_size
    resized = "" if data.interpolation == "bicubic" else f" of an image resized {data.interpolation}"
    return f"{height}x{width} px, center crop {data.crop_pct:g}{resized}"


def trainer_device(make_trainer: MakeTrainer) -> torch.device:
    """Finds the device the configured trainer computes on."""
    device: torch.device = make_trainer().strategy.root_device
    return device


def _on_disk(size: tuple[int, int], *, folder: str) -> Float[Tensor, "n d"]:
    """Allocates in a file that goes with the process, however it ends."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "features"
        stored: Tensor = torch.from_file(str(path), shared=True, size=math.prod(size), dtype=torch.float32)
    return stored.view(size)
