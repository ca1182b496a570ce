"""The three terms of DDMIM's loss, each with its weight, its settings and the head it trains."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unmask.backbones.base import MaskedBackbone
from unmask.heads.pixel_shuffle import PixelShuffleHead
from unmask.heads.projector import Projector
from unmask.losses.contrastive import Contrast, gather_keys, info_nce
from unmask.losses.features import FEATURE_NORMS, feature_distance
from unmask.losses.masked import masked_mean
from unmask.methods.ddmim_views import Boxes
from unmask.patches import PatchMask
from unmask.positions import resample_into_box
from unmask.targets.local import PixelTarget
from unmask.types import Images

Tokens = Float[Tensor, "b h w c"]


class Encoded(NamedTuple):
    """What one network computes from a batch."""

    feature_points: list[Tokens]  # one a stage, shallow to deep, as `StageFeatureTerm` compares them
    features: Float[Tensor, "b c h w"]  # the last map, after the final norm

    @property
    def pooled(self) -> Float[Tensor, "b c"]:
        return self.features.mean(dim=(2, 3))


class ReconstructionTerm(nn.Module):
    """Smooth L1 (beta 1) between predicted and true pixels of the normalized image, over the masked ones.

    Args:
        backbone: The student's; the head is completed with the width and stride of its last stage.
        head: Predicts the pixels from the student's last feature map; None leaves that to the method.
        weight: Factor in the loss, above 0.
        mean: Over "masked" pixels, or over "all" pixels with zeros for the visible ones.
        normalize_window: As for `SimMIM`: side, pixels, of the window around a pixel whose mean and deviation normalize
            the target; null leaves the pixels as they are, as in the original.

    Raises:
        ValueError: The weight is not positive, the mean unknown or the window has no center.
    """

    def __init__(
        self,
        *,
        backbone: MaskedBackbone,
        head: Callable[..., PixelShuffleHead] | None = None,
        weight: float = 1.0,
        mean: str = "masked",
        normalize_window: int | None = None,
    ) -> None:
        super().__init__()
        _require_weight("reconstruction", weight)
        require_choice("reconstruction.mean", mean, ("masked", "all"))
        self.target = PixelTarget(normalize_window)
        self.weights = {"reconstruction": weight}
        self.mean = mean
        last = backbone.stages[-1]
        self.head = (
            None
            if head is None
            else head(in_channels=last.channels, stride=last.stride, image_channels=backbone.in_channels)
        )

    def forward(self, prediction: Images, image: Images, mask: PatchMask) -> Float[Tensor, ""]:
        errors = F.smooth_l1_loss(prediction, self.target(image), reduction="none")
        if self.mean == "all":
            return (errors * mask.at_pixels()).mean()
        return masked_mean(errors, mask.at_pixels())


class StageFeatureTerm(nn.Module):
    """Smooth L1 (beta 1) between the student's and the teacher's features after each stage.

    Args:
        backbone: The student's.
        weights: One factor a stage, shallow to deep, at least 0; 0 leaves a stage out.
        feature_point: "post_merge" compares what enters the next stage, before it is masked, "stage_out" what a stage
            puts out before patches are merged. The last stage's output is compared before the final norm.
        norm: "layernorm" first normalizes each position over its channels, "none" compares features as they are.
        positions: Where features are compared: "all", or "masked" or "visible" (at least half of the cell).

    Raises:
        ValueError: There is not one weight a stage, none is positive, or a choice is unknown.
    """

    def __init__(
        self,
        *,
        backbone: MaskedBackbone,
        weights: Sequence[float],
        feature_point: str = "post_merge",
        norm: str = "layernorm",
        positions: str = "all",
    ) -> None:
        super().__init__()
        require_one_a_stage("method.features.weights", weights, len(backbone.stages))
        if min(weights) < 0 or not any(weights):
            raise ValueError(
                f"method.features.weights={list(weights)} must be 0 or more and not all 0; "
                "method.features=null leaves the term out"
            )
        require_choice("features.feature_point", feature_point, ("post_merge", "stage_out"))
        require_choice("features.norm", norm, FEATURE_NORMS)
        require_choice("features.positions", positions, ("all", "masked", "visible"))
        self.weights = {f"feature_stage_{stage}": weight for stage, weight in enumerate(weights) if weight}
        self.stages = [stage for stage, weight in enumerate(weights) if weight]
        self.feature_point = feature_point
        self.norm = norm
        self.positions = positions

    def forward(
        self,
        student: Encoded,
        teacher: Encoded,
        mask: PatchMask,
        boxes: Boxes | None,
        read: Callable[[Tokens], Tokens],
    ) -> dict[str, Float[Tensor, ""]]:
        """Compares the features of each stage that has a weight.

        Args:
            student, teacher: Of one batch.
            mask: Of the student.
            boxes: Where the two look, if not at the same.
            read: Takes of a map that covers what the student looks at the positions that the student's map has.
        """
        return {
            f"feature_stage_{stage}": self._distance(
                student.feature_points[stage], teacher.feature_points[stage], mask, boxes, read
            )
            for stage in self.stages
        }

    def _distance(
        self,
        features: Tokens,
        target: Float[Tensor, "b _h _w c"],
        mask: PatchMask,
        boxes: Boxes | None,
        read: Callable[[Tokens], Tokens],
    ) -> Float[Tensor, ""]:
        where = None
        if boxes is not None:
            student_box, teacher_box = boxes
            target, inside = resample_into_box(target, teacher_box, student_box)
            where = read(inside[..., None].to(target.dtype))[..., 0] == 1
        target = read(target)
        if self.positions != "all":
            fraction = _masked_fraction(mask, features)
            chosen = fraction >= 0.5 if self.positions == "masked" else fraction < 0.5
            where = chosen if where is None else where & chosen
        return feature_distance(features, target, norm=self.norm, where=where)


class ContrastTerm(nn.Module):
    """InfoNCE of the student's projected, pooled features against the teacher's of the whole batch, on all devices.

    Args:
        backbone: The student's; the projector is completed with the width of its pooled features.
        projector: Maps pooled features to what is compared.
        weight: Factor in the loss, above 0.
        temperature: Divides the similarities, above 0; the original's is 0.05.
        extra_zero_logit: See `info_nce`.

    Raises:
        ValueError: The weight or the temperature is not positive; in training, a batch has a single image.
    """

    def __init__(
        self,
        *,
        backbone: MaskedBackbone,
        projector: Callable[..., Projector],
        weight: float = 1.0,
        temperature: float = 0.05,
        extra_zero_logit: bool = False,
    ) -> None:
        super().__init__()
        _require_weight("contrast", weight)
        if temperature <= 0:
            raise ValueError(f"method.contrast.temperature must be above 0, got {temperature}")
        self.weights: Mapping[str, float] = {"contrastive": weight}
        self.temperature = temperature
        self.extra_zero_logit = extra_zero_logit
        self.projector = projector(in_features=backbone.embed_dim)

    def forward(self, student: Encoded, keys: Float[Tensor, "b e"]) -> Contrast:
        """Tells each image's projection from those of the others of the batch.

        Args:
            student: Its pooled features are projected and are the queries.
            keys: The teacher's projections of the same images, without gradient.
        """
        queries = self.projector(student.pooled)
        if self.training:
            keys, positives = gather_keys(keys)
            if len(keys) < 2:
                raise ValueError(
                    "the contrastive term tells an image from the others of its batch, and this batch has one image; "
                    "use a larger global_batch_size, fewer accumulated batches, or method.contrast=null"
                )
        else:  # held-out batches may differ in size between processes
            positives = torch.arange(len(keys), device=keys.device)
        return info_nce(queries, keys, positives, temperature=self.temperature, extra_zero_logit=self.extra_zero_logit)


def require_one_a_stage(name: str, values: Sequence[float], num_stages: int) -> None:
    """Raises a ValueError that names the setting unless it has one number a stage."""
    if len(values) != num_stages:
        raise ValueError(
            f"{name}={list(values)} has {len(values)} numbers, but the backbone has {num_stages} stages; "
            "give one number a stage"
        )


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError that lists the choices unless the value is one of them."""
    if value not in choices:
        raise ValueError(f"method.{name}={value} does not exist; use {' or '.join(choices)}")


def _require_weight(name: str, weight: float) -> None:
    if weight <= 0:
        raise ValueError(
            f"method.{name}.weight={weight} must be above 0; method.{name}=null leaves the term out of the loss"
        )


def _masked_fraction(mask: PatchMask, features: Tokens) -> Float[Tensor, "b h w"]:
    """Measures the masked fraction of each position of a map."""
    return F.adaptive_avg_pool2d(mask.masked.float().unsqueeze(1), (features.shape[1], features.shape[2])).squeeze(1)
