"""What an evaluation takes and returns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Int
from lightning import Trainer
from torch import Tensor

from unmask.types import ImageBatch

MakeTrainer = Callable[..., Trainer]
"""Builds the run's Trainer; keyword arguments replace the configured ones."""

Split = Literal["train", "val", "test"]


@runtime_checkable
class EvaluationDataset(Protocol):
    """The labels of a split, known before any image is read."""

    labels: Int[Tensor, " n"]  # class index; -1 = unlabeled

    def __len__(self) -> int: ...

    def locate(self, position: int) -> str | None:
        """Names the file of an image; None where it has none of its own."""
        ...


@runtime_checkable
class LimitsTraining(Protocol):
    """The splits of a data module, of whose training images a part may be kept."""

    def limit_training(self, fraction: float, *, seed: int = 0) -> None:
        """Keeps a fraction of the training images, evenly over the classes; 1 keeps all."""
        ...

    def choose_training(self, positions: Int[Tensor, " m"] | None) -> None:
        """Keeps the training images at these positions of the whole split; None brings all back."""
        ...


@runtime_checkable
class EvaluationData(Protocol):
    """What an evaluation asks of a data module, which is a LightningDataModule besides."""

    image_size: tuple[int, int]  # height, width of the images served, pixels
    crop_pct: float  # side of the centered crop as a fraction of the resized image
    interpolation: str  # how images are resized for it
    global_batch_size: int  # images an optimizer step takes where something is trained on them
    augmentation: Any  # of training images; an object whose public attributes are its settings

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> Sequence[str]: ...  # in the order of the labels

    def dataset(self, split: Split) -> EvaluationDataset: ...

    @property
    def loaded_splits(self) -> LimitsTraining: ...

    def evaluation_loader(self, split: Split) -> Iterable[Any]:
        """Reads a split once, in stored order and without augmentation."""
        ...

    def evaluation_part(self, split: Split, *, part: int, num_parts: int) -> Iterable[Any]:
        """Reads every `num_parts`-th batch; batches are the same for any number of parts, which have equally many."""
        ...

    def to_model_input(self, batch: Any, *, augmented: bool) -> ImageBatch:
        """Turns a loader's batch, already on its device, into what a backbone reads."""
        ...


class Outputs(NamedTuple):
    """What the outputs of a trained module stand for."""

    num: int = 0  # logits of a classifier; 0 where nothing is classified
    num_unused: int = 0  # last logits that stand for no class
    class_names: Sequence[str] = ()  # in the order of the logits; empty where the file does not name them


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """The outcome of one protocol; written as report.json."""

    protocol: str  # "name: every setting that changes the number", in one line
    metrics: Mapping[str, float]  # "top1" and "top5" in percent, with "top1_ci95_low/high"
    num_train_images: int  # labeled images the protocol learned from; 0 where it learns nothing
    num_test_images: int
    settings: Mapping[str, float | int | str] = field(default_factory=dict)
    """What was selected ("selected"), on which split ("selected_on"), and what else a reader must know."""
    headline: Sequence[str] = ("top1", "top5", "loss")
    """The metrics a table shows, in order, as far as they were measured; the others stand in report.json."""
