"""What shows what a checkpoint makes of images, without measuring or training it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from unmask.backbones.base import MaskedBackbone
from unmask.data.files.splits import Split
from unmask.inference.images import SelectedImages
from unmask.methods.backbone_module import BackboneModule

FindImages = Callable[[str | None, Split], SelectedImages]
"""(path, split) -> the images at the path; those of a split of the data where there is no path."""


@runtime_checkable
class Checkpoint(Protocol):
    """A file whose weights have not been read yet."""

    @property
    def path(self) -> str: ...

    def load_backbone(self) -> MaskedBackbone:
        """Loads the backbone in eval mode, from this program's files or another program's."""
        ...

    def load_module(self) -> BackboneModule:
        """Loads a training checkpoint of this program with its heads, or another program's classifier, in eval mode."""
        ...

    def class_names(self) -> tuple[str, ...]:
        """Names the outputs of a classifier: as the file does, else as the data that are named do, else by number."""
        ...


@runtime_checkable
class InferenceRun(Protocol):
    """The checkpoint and the images of one command."""

    def show(self, inference: "Inference") -> list[Any]:
        """Runs an inference on them; nothing is measured, so the list is empty."""
        ...


class Inference(ABC):
    """Runs a checkpoint on images and writes what it makes of them."""

    image: str | None  # a file, a folder or a list; None: a split of the data
    split: Split
    reads_classifier: ClassVar[bool] = False  # then settings of the backbone may be given for that of another program
    crop_pct: float | None  # see `ImageDataModule.crop_pct`; None: of the checkpoint's data, else 0.875

    @abstractmethod
    def load(self, checkpoint: Checkpoint) -> tuple[Any, MaskedBackbone]:
        """Loads what it needs of a checkpoint, and the backbone in it, in eval mode."""

    def run_on(self, run: InferenceRun) -> list[Any]:
        """Runs itself, as every choice of `eval=` does."""
        return run.show(self)

    @abstractmethod
    def run(self, model: Any, find: FindImages, *, run_dir: Path, device: torch.device) -> None:
        """Writes and prints its results."""
