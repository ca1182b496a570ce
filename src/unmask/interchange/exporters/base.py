"""What is exported, and what an exporter does with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.backbones.base import MaskedBackbone
from unmask.interchange.exporters.location import ExportLocation
from unmask.types import Images

_TRIAL_BATCHES = (1, 3)  # images; networks are traced with two


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """A network, on the CPU, in single precision and eval mode, and what is known of it.

    Args:
        backbone: Its pooled features are what is exported where there is no classifier.
        classifier: Turns pooled features into logits; None for a backbone alone.
        class_names: In the order of the logits; empty where they are not known.
        crop_pct: Side of the centered crop as a fraction of the resized image, when images are prepared.
        interpolation: "bicubic" or "bilinear": how images are resized for that.
        method: The module of the training checkpoint with its heads, for formats that keep them.
        card: What the model card states beside how to load the files; Markdown.
        tags: Of the model card's header.
    """

    backbone: MaskedBackbone
    classifier: nn.Module | None = None
    class_names: Sequence[str] = ()
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    method: Any = None
    card: str = ""
    tags: Sequence[str] = field(default_factory=list)

    @property
    def output_name(self) -> str:
        """What the network puts out: "logits", or "features" where it has no classifier."""
        return "features" if self.classifier is None else "logits"

    @torch.no_grad()
    def outputs(self, images: Images) -> Float[Tensor, "b outputs"]:
        """Computes logits or pooled features of normalized images: what every export is compared with."""
        pooled = self.backbone.forward_pooled(images)
        outputs: Tensor = pooled if self.classifier is None else self.classifier(pooled)
        return outputs

    def trial_pixels(self, count: int) -> Images:
        """Draws images of random pixels in 0..1, always the same ones."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(count, self.backbone.in_channels, *self.backbone.image_size, generator=generator)

    def normalize(self, pixels: Images) -> Images:
        """Turns RGB in 0..1 into what the backbone reads."""
        mean = torch.tensor(self.backbone.pixel_mean)[:, None, None]
        std = torch.tensor(self.backbone.pixel_std)[:, None, None]
        return (pixels - mean) / std


class Comparison(NamedTuple):
    """How far an export is from the network it was made from."""

    difference: float  # largest absolute difference
    largest: float  # largest absolute value compared
    what: str  # was compared, and where
    tolerance: float  # as a fraction of the largest value, or of 1 where that is smaller

    @property
    def allowed(self) -> float:
        return self.tolerance * max(1.0, self.largest)

    @property
    def is_close(self) -> bool:
        return self.difference <= self.allowed  # False for NaN


@runtime_checkable
class Exporter(Protocol):
    """Writes a network in the form another program reads."""

    name: str  # of the format
    library: str  # that opens the files, as Hugging Face names it

    def write(self, source: ExportSource, folder: Path) -> None:
        """Writes all files but the model card into an empty folder.

        Raises:
            ValueError: The network has no counterpart in this format, or a library is missing.
        """
        ...

    def compare(self, source: ExportSource, folder: Path) -> list[Comparison]:
        """Loads the files as another program would and compares what they compute."""
        ...

    def usage(self, source: ExportSource, location: ExportLocation) -> str:
        """Says in Markdown how the files are loaded."""
        ...


def compare_outputs(computed: Tensor, expected: Tensor, *, what: str, tolerance: float = 1e-5) -> Comparison:
    """Measures the largest absolute difference; of other shapes it is infinite."""
    if computed.shape != expected.shape:
        return Comparison(float("inf"), 0.0, f"{what} (shape {tuple(computed.shape)})", tolerance)
    return Comparison(
        difference=float((computed.double() - expected.double()).abs().max()),
        largest=float(expected.abs().max()),
        what=what,
        tolerance=tolerance,
    )


def compare_batches(compute: Callable[[Images], Tensor], source: ExportSource, *, library: str) -> list[Comparison]:
    """Compares the outputs of an export that takes pixels in 0..1 at batches it was not traced with.

    Args:
        compute: What the export does, in `library`.
        source: What it was made from.
    """
    comparisons = []
    for batch in _TRIAL_BATCHES:
        pixels = source.trial_pixels(batch)
        expected = source.outputs(source.normalize(pixels))
        what = f"{source.output_name} of {library}, batch of {batch}"
        comparisons.append(compare_outputs(compute(pixels), expected, what=what))
    return comparisons


def require_linear(classifier: nn.Module) -> Mapping[str, Tensor]:
    """Reads weight and bias of a classifier that is one linear layer.

    Raises:
        ValueError: It is more than that.
    """
    parts = [part for part in classifier.modules() if not list(part.children())]
    if len(parts) != 1 or not isinstance(parts[0], nn.Linear):
        raise ValueError(
            f"the classifier {type(classifier).__name__} is more than one linear layer, which this format cannot hold; "
            "use format=torch_export or format=onnx, or leave it out by classifier=false"
        )
    return parts[0].state_dict()
