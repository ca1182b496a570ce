"""The few types every room of the package shares.

Axis legend, valid in every signature: `b` batch, `channels height width` an image, `c` channels of features,
`rows cols` patch grid, `h w` feature map, `n` tokens, `k` visible tokens, `d` embedding.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unmask.patches import PatchMask, PatchSize

Images = Float[Tensor, "b channels height width"]

StageEdit = Callable[[int, Float[Tensor, "b h w c"]], Float[Tensor, "b h w c"]]
"""(stage index, tokens entering that stage) -> the tokens that enter instead: the one seam of masks and backbones.

It is called once more with the number of stages as the index, on what the last stage put out, before the final norm.
"""

ParameterGroups = Iterable[Mapping[str, Any]]
OptimizerFactory = Callable[[ParameterGroups], Optimizer]
ScheduleFactory = Callable[..., LRScheduler]
"""Called with `(optimizer, total_steps=..., steps_per_epoch=...)`; steps are optimizer steps."""

FILLER_INDEX = -1


class ImageBatch(NamedTuple):
    """What a data module serves and every method reads."""

    image: Images  # normalized by the data module, on device
    label: Int[Tensor, " b"]  # class index; -1 = unlabeled
    index: Int[Tensor, " b"]  # type: ignore[assignment]
    """The sample's number in its data set: the key of its randomness. `FILLER_INDEX` in place of it is a sample that
    counts nowhere; in evaluation it gives a device as many batches as the others have."""

    @property
    def is_counted(self) -> Bool[Tensor, " b"]:
        """Whether a row belongs to this device's share of the split."""
        return self.index != FILLER_INDEX


class View(NamedTuple):
    """A crop of each image of a batch, resized to the size of the images."""

    image: Images
    box: Float[Tensor, "b 4"]
    """Top, left, height and width of what it shows, as shares of the image's sides. A mirrored view has its left edge
    on the right and a negative width."""


class PixelStatistics(NamedTuple):
    """The mean and the deviation that a normalized target took out, at each pixel."""

    mean: Images
    std: Images


class FeatureStage(NamedTuple):
    """One level of a backbone's feature maps."""

    channels: int
    stride: PatchSize  # input pixels per feature-map cell


@dataclass(frozen=True, kw_only=True)
class MethodOutput:
    """What a masked-image-modeling method computes from one batch."""

    loss: Float[Tensor, ""]  # what is minimized
    terms: Mapping[str, Float[Tensor, ""]]  # unweighted, named as in the paper; logged as train/<name>
    mask: PatchMask
    prediction: Images | None  # in the space of ImageBatch.image; None = nothing to draw
    monitors: Mapping[str, Float[Tensor, ""]] = field(
        default_factory=dict
    )  # logged beside the terms, no part of the loss
