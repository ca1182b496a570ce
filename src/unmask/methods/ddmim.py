"""DDMIM: masked image modelling with self-distillation at every stage."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unmask.backbones.base import MaskedBackbone
from unmask.heads.pixel_shuffle import PixelShuffleHead
from unmask.heads.projector import Projector
from unmask.losses.contrastive import gather_keys, info_nce
from unmask.losses.features import FEATURE_NORMS, feature_distance
from unmask.losses.masked import masked_mean
from unmask.masking.stages import StageMaskGenerator, stage_masks
from unmask.methods.base import Method
from unmask.patches import PatchMask, are_whole_cells
from unmask.positions import resample_into_box
from unmask.targets.ema_teacher import EMATeacher
from unmask.types import ImageBatch, Images, MethodOutput, View

Tokens = Float[Tensor, "b h w c"]
_Boxes = tuple[Float[Tensor, "b 4"], Float[Tensor, "b 4"]]  # the student's, the teacher's; see `View`

_FEWEST_MEMORIES = 5  # of the teacher in a run, below which a line warns; ours
_PUBLISHED_MEMORIES = 38  # v9's 1.664e6 images in 50 epochs of ImageNet

_log = logging.getLogger("unmask")


class _Views(NamedTuple):
    """What the two networks see of a batch."""

    target: Images  # what the student rebuilds
    student: Images
    teacher: Images
    boxes: _Boxes | None  # where in the images they look; None: everywhere


class _Stream(NamedTuple):
    """What one network makes of a batch."""

    taps: list[Tokens]  # one a stage, as compared
    features: Float[Tensor, "b c h w"]  # the last map, behind the final norm

    @property
    def pooled(self) -> Float[Tensor, "b c"]:
        return self.features.mean(dim=(2, 3))


class DDMIM(Method):
    """Fills in a masked image under the eyes of a teacher that sees all of it (github.com/SVC-WSY/ddmim, v9).

    The student's tokens are hidden as they enter its masked stages. The teacher, a moving average of the student,
    sees the full image. The student is to rebuild the masked pixels, to have the teacher's features after every
    stage, and to be told from the other images of the batch by the teacher's view of its own.

    Terms:
        reconstruction: Smooth L1 (beta 1) over the masked pixels of the normalised image.
        feature_stage_<i>: Smooth L1 between student and teacher at tap i, over all positions, both first normalised
            over channels; weights `feature_weights`.
        contrastive: InfoNCE of the student's projected, pooled features against the teacher's of the whole batch, on
            all devices; the features pooled are those evaluation reads.

    The hyper-parameters of the original, and where they are: image_size, depths, num_heads, window_size, mlp_ratio,
    dim_head (the width of the first stage): the backbone's. masking_ratio: `mask_generator.ratios`; of the original's
    four only the first was read, its stages 0 to 2 always masked. patch_size 16: `mask_generator.patch_size`; there
    it was only checked, the unit being one token. stagefactor: `feature_weights`. num_classes 1024:
    `projector.representation_features`. tau: `temperature`. alpha: `contrastive_weight`. ema_decay, ema_steps:
    `teacher.momentum`, `teacher.every_n_steps`, by default replaced by `teacher.time_constant`. lr, weight_decay: the
    optimizer's. encoder_stride: follows from the backbone. momentum and epsilon: nothing read them.

    Differs (`experiment=ddmim-v9_swinv2-tiny_52b-50e_in1k-224px` takes the first six back; the rest is everywhere):
        - Whole units of several tokens are hidden, a fixed number in each image: single tokens are filled in from
          their neighbours, and their masks do not nest.
        - The teacher copies the whole student, projector included, and rests in evaluation mode; the original
          averaged the stages only, with the student's own stem, norm and projector around them.
        - The average follows every optimizer step by a time constant in images.
        - Taps are normalised over channels, so their scale cannot drift.
        - The reconstruction is averaged over masked pixels, not over all.
        - The contrast has no negative of similarity 0, and the projector an activation behind its first layer.
        - timm merges patches where a stage begins, the original where it ends. The tensors compared are the same: what
          enters the next stage, merged and not yet masked, and the last stage's output before the final norm.
        - Evaluation reads the pooled features of the final norm, not the 1024 numbers behind one more linear layer.
        - The denominator of the reconstruction is the number of masked values, without the 1e-5 usually added.
        - Held-out images are judged under fixed masks; the original drew new ones at each validation.

    Args:
        mask_generator: Its ratios say which stages are masked.
        head: Completed with the width and stride of the last stage; predicts the pixels.
        projector: Completed with the width of the pooled features.
        teacher: Completed with the networks it copies.
        reconstruction_weight, contrastive_weight: Factors of the terms; 0 leaves a term out of the computation.
        feature_weights: One factor a stage, shallow to deep; 0 leaves a stage out.
        temperature: Of the contrastive term.
        tap: "post_merge" compares what enters the next stage, "stage_out" what a stage puts out before merging.
        feature_norm: "layernorm" normalises taps over channels, "none" compares as they are.
        positions: Where taps are compared: "all", or "masked" or "visible" (at least half of the cell).
        fill: What masked tokens become: "zero", or a "learned" token for each masked stage.
        teacher_scope: "all" averages everything, "stages" the blocks and mergings only; the rest is then the
            student's own of the moment.
        reconstruction_mean: Mean over "masked" pixels, or over "all" pixels with zeros for the visible.
        extra_zero_logit: See `info_nce`.
        crops: Cuts two crops out of each image in training, the student's and the teacher's. Features are then
            compared where the crops overlap, the teacher's read at the student's positions, and the student rebuilds
            its own crop. None shows both the whole image.
        student_view, teacher_view: Change what a network sees in training, pixel by pixel in place, such as its
            colours; what the student has to rebuild keeps its own. None changes nothing.
        shared: See `Method`.

    Raises:
        ValueError: Numbers of stages disagree, the masks do not fit the backbone, or all terms are off; in training,
            a single image has nothing to be contrasted with.
    """

    mask_generator: StageMaskGenerator

    def __init__(
        self,
        *,
        backbone: MaskedBackbone,
        mask_generator: StageMaskGenerator,
        head: Callable[..., PixelShuffleHead],
        projector: Callable[..., Projector],
        teacher: Callable[..., EMATeacher],
        reconstruction_weight: float = 1.0,
        feature_weights: Sequence[float] = (1.0, 1.0, 1.0, 0.1),
        contrastive_weight: float = 1.0,
        temperature: float = 0.05,
        tap: str = "post_merge",
        feature_norm: str = "layernorm",
        positions: str = "all",
        fill: str = "zero",
        teacher_scope: str = "all",
        reconstruction_mean: str = "masked",
        extra_zero_logit: bool = False,
        crops: Callable[[Images], tuple[View, View]] | None = None,
        student_view: Callable[[Images], Images] | None = None,
        teacher_view: Callable[[Images], Images] | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(backbone=backbone, mask_generator=mask_generator, **shared)
        num_stages = len(backbone.stages)
        _require_one_a_stage("method.mask_generator.ratios", mask_generator.ratios, num_stages)
        _require_one_a_stage("method.feature_weights", feature_weights, num_stages)
        for name, value, choices in (
            ("tap", tap, ("post_merge", "stage_out")),
            ("feature_norm", feature_norm, FEATURE_NORMS),
            ("positions", positions, ("all", "masked", "visible")),
            ("fill", fill, ("zero", "learned")),
            ("teacher_scope", teacher_scope, ("all", "stages")),
            ("reconstruction_mean", reconstruction_mean, ("masked", "all")),
        ):
            _require_choice(name, value, choices)
        weights = {"reconstruction_weight": reconstruction_weight, "contrastive_weight": contrastive_weight}
        weights |= {f"feature_weights[{stage}]": weight for stage, weight in enumerate(feature_weights)}
        _require_weights(weights)
        self.reconstruction_weight = reconstruction_weight
        self.feature_weights = list(feature_weights)
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature
        self.tap = tap
        self.feature_norm = feature_norm
        self.positions = positions
        self.reconstruction_mean = reconstruction_mean
        self.extra_zero_logit = extra_zero_logit
        self.crops = crops
        self.student_view = student_view
        self.teacher_view = teacher_view
        self.masked_stages = [stage for stage, ratio in enumerate(mask_generator.ratios) if ratio]

        last = backbone.stages[-1]
        self.head: PixelShuffleHead | None = None
        if reconstruction_weight:
            self.head = head(in_channels=last.channels, stride=last.stride, image_channels=backbone.in_channels)
        self.projector = projector(in_features=last.channels) if contrastive_weight else None
        self.fill_tokens = nn.ParameterDict()
        if fill == "learned":
            for stage in self.masked_stages:
                token = nn.Parameter(torch.empty(backbone.stages[stage].channels))
                self.fill_tokens[str(stage)] = nn.init.trunc_normal_(token, std=0.02)
        self.teacher: EMATeacher | None = None
        if contrastive_weight or any(feature_weights):
            is_averaged = self._is_of_a_stage if teacher_scope == "stages" else lambda _: True
            self.teacher = teacher(self.student_networks(), is_averaged=is_averaged)
        self._images_in_step = 0
        self._is_first_step = False
        self._hidden_at_stages(mask_generator(torch.empty(1, backbone.in_channels, *backbone.image_size)))

    def forward(self, images: Images, mask: PatchMask | None = None) -> MethodOutput:
        mask = self.mask_generator(images) if mask is None else mask
        views = self._views(images) if self.training else _Views(images, images, images, None)
        student = self._encode(self.backbone, views.student, self._hidden_at_stages(mask))
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self._encode(self.teacher["backbone"], views.teacher, None)

        loss = torch.zeros((), device=images.device)
        terms: dict[str, Tensor] = {}
        monitors: dict[str, Tensor] = {}
        prediction = None
        if self.head is not None:
            prediction = self.head(student.features).float()
            terms["reconstruction"] = self._reconstruction(prediction, views.target, mask)
            loss = loss + self.reconstruction_weight * terms["reconstruction"]
        if teacher is not None:
            for stage, weight in enumerate(self.feature_weights):
                if weight:
                    term = self._feature_distance(stage, student, teacher, mask, views.boxes)
                    terms[f"feature_stage_{stage}"] = term
                    loss = loss + weight * term
        if teacher is not None and self.projector is not None:
            terms["contrastive"], monitors["contrastive_accuracy"] = self._contrast(student, teacher)
            loss = loss + self.contrastive_weight * terms["contrastive"]
        if teacher is not None and not self.training:
            monitors |= _compare(student, teacher)
        return MethodOutput(loss=loss, terms=terms, mask=mask, prediction=prediction, monitors=monitors)

    def on_train_start(self) -> None:
        self._is_first_step = True

    def on_train_batch_start(self, batch: ImageBatch, batch_idx: int) -> None:
        self._images_in_step += len(batch.image) * self.trainer.world_size

    def optimizer_step(self, epoch: int, batch_idx: int, *arguments: Any, **settings: Any) -> None:
        super().optimizer_step(epoch, batch_idx, *arguments, **settings)
        if self.teacher is not None:
            if self._is_first_step and self.trainer.is_global_zero:
                _warn_of_a_slow_teacher(self.teacher, self._images_in_step, self.trainer.estimated_stepping_batches)
            self._is_first_step = False
            step_of_epoch = batch_idx // self.trainer.accumulate_grad_batches
            self.teacher.update(self.student_networks(), num_images=self._images_in_step, step_of_epoch=step_of_epoch)
        self._images_in_step = 0

    def on_weights_loaded(self, names: Collection[str]) -> None:
        """Lets the teacher begin as the student it now is a copy of, where the file holds no teacher."""
        if self.teacher is not None and not any(name.startswith("teacher.") for name in names):
            self.teacher.copy_student(self.student_networks())

    def student_networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {"backbone": self.backbone}
        if self.projector is not None:
            networks["projector"] = self.projector
        return networks

    def _views(self, images: Images) -> _Views:
        own, theirs, boxes = images, images, None
        if self.crops is not None:
            (own, own_box), (theirs, their_box) = self.crops(images)
            boxes = own_box, their_box
        student = self.student_view(own) if self.student_view is not None else own
        teacher = self.teacher_view(theirs) if self.teacher_view is not None else theirs
        return _Views(own, student, teacher, boxes)

    def _encode(self, backbone: MaskedBackbone, images: Images, hidden: Mapping[int, Tensor] | None) -> _Stream:
        last = len(backbone.stages)
        taps = []

        def edit(stage: int, tokens: Tokens) -> Tokens:
            if (stage > 0 and self.tap == "post_merge") or stage == last:
                taps.append(tokens)
            if not hidden or stage not in hidden:
                return tokens
            if str(stage) in self.fill_tokens:
                return torch.where(hidden[stage], self.fill_tokens[str(stage)].to(tokens.dtype), tokens)
            return tokens.masked_fill(hidden[stage], 0.0)

        maps = backbone.forward_features(images, edit)
        if self.tap == "stage_out":
            taps = [feature_map.permute(0, 2, 3, 1) for feature_map in maps[:-1]] + taps
        return _Stream(taps, maps[-1])

    def _hidden_at_stages(self, mask: PatchMask) -> dict[int, Bool[Tensor, "b h w 1"]]:
        masks = stage_masks(mask, len(self.backbone.stages), self.masked_stages)
        hidden = {}
        for stage, stage_mask in enumerate(masks):
            if stage_mask is not None:
                stride = self.backbone.stages[stage].stride
                if stage == 0 and not are_whole_cells(stage_mask.patch_size, stride):
                    raise ValueError(
                        f"mask unit of {stage_mask.patch_size} px is not a whole number of the backbone's {stride} px "
                        f"tokens; use a multiple of {stride}"
                    )
                hidden[stage] = stage_mask.at_stride(stride, coarse="nearest").unsqueeze(-1)
        return hidden

    def _reconstruction(self, prediction: Images, images: Images, mask: PatchMask) -> Float[Tensor, ""]:
        errors = F.smooth_l1_loss(prediction, images.float(), reduction="none")
        if self.reconstruction_mean == "all":
            return (errors * mask.at_pixels()).mean()
        return masked_mean(errors, mask.at_pixels())

    def _feature_distance(
        self, stage: int, student: _Stream, teacher: _Stream, mask: PatchMask, boxes: _Boxes | None
    ) -> Float[Tensor, ""]:
        where, target = None, teacher.taps[stage]
        if boxes is not None:
            own, theirs = boxes
            target, where = resample_into_box(target, theirs, own)
        if self.positions != "all":
            cell = _masked_fraction(mask, student.taps[stage])
            chosen = cell >= 0.5 if self.positions == "masked" else cell < 0.5
            where = chosen if where is None else where & chosen
        return feature_distance(student.taps[stage], target, norm=self.feature_norm, where=where)

    def _contrast(self, student: _Stream, teacher: _Stream) -> tuple[Tensor, Tensor]:
        assert self.projector is not None
        assert self.teacher is not None
        queries = self.projector(student.pooled)
        with torch.no_grad():
            keys = self.teacher["projector"](teacher.pooled)
        if self.training:
            keys, positives = gather_keys(keys)
            if len(keys) < 2:
                raise ValueError(
                    "the contrastive term tells an image from the others of its batch, and this batch has one image; "
                    "use a larger global_batch_size, fewer accumulated batches, or method.contrastive_weight=0"
                )
        else:  # held-out batches may differ in size between processes
            positives = torch.arange(len(keys), device=keys.device)
        return info_nce(queries, keys, positives, temperature=self.temperature, extra_zero_logit=self.extra_zero_logit)

    def _is_of_a_stage(self, name: str) -> bool:
        network, _, parameter = name.partition(".")
        return network == "backbone" and 1 <= self.backbone.layer_id(parameter) <= self.backbone.num_blocks


def _masked_fraction(mask: PatchMask, tap: Tokens) -> Float[Tensor, "b h w"]:
    """Measures the masked fraction of each position of a map."""
    return F.adaptive_avg_pool2d(mask.masked.float().unsqueeze(1), (tap.shape[1], tap.shape[2])).squeeze(1)


@torch.no_grad()
def _compare(student: _Stream, teacher: _Stream) -> dict[str, Float[Tensor, ""]]:
    """Measures agreement and variety of the two streams, by which a collapse is seen."""
    monitors = {
        f"cosine_stage_{stage}": F.cosine_similarity(own.float(), theirs.float(), dim=-1).mean()
        for stage, (own, theirs) in enumerate(zip(student.taps, teacher.taps, strict=True))
    }
    for name, stream in (("student", student), ("teacher", teacher)):
        pooled = stream.pooled.float()
        rank = effective_rank(pooled)
        monitors[f"{name}_std"] = pooled.std(dim=0, correction=0).mean()
        monitors[f"{name}_effective_rank"] = rank
        monitors[f"{name}_rank_fraction"] = rank / max(1, min(len(pooled) - 1, pooled.shape[1]))
    return monitors


def effective_rank(features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Counts the directions features spread over, their mean removed; 1 where all are equal.

    It is exp of the entropy of the singular values, divided by their sum (Roy and Vetterli, 2007).
    """
    values = torch.linalg.svdvals(features.float() - features.float().mean(dim=0))
    shares = values / values.sum().clamp(min=1e-12)
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank


def _warn_of_a_slow_teacher(teacher: EMATeacher, num_images: int, num_steps: float) -> None:
    total, memory = num_images * num_steps, teacher.memory(num_images)
    if total < _FEWEST_MEMORIES * memory:
        given = "" if teacher.momentum is None else "method.teacher.momentum=null method.teacher.every_n_steps=1 "
        advised = f"{given}method.teacher.time_constant={max(num_images, total / _PUBLISHED_MEMORIES):.2g}"
        _log.warning(
            f"the teacher averages the student over {memory:,.0f} images, and this run has {total:,.0f}, so it will "
            f"hardly follow it; set {advised}, about the fraction of this run that it is of the published one"
        )


def _require_one_a_stage(name: str, values: Sequence[float], num_stages: int) -> None:
    if len(values) != num_stages:
        raise ValueError(
            f"{name}={list(values)} has {len(values)} numbers, but the backbone has {num_stages} stages; "
            "give one number a stage"
        )


def _require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"method.{name}={value} does not exist; use {' or '.join(choices)}")


def _require_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if weight < 0:
            raise ValueError(f"method.{name}={weight} is below 0; a term is switched off by 0")
    if not any(weights.values()):
        raise ValueError("all terms of method=ddmim are switched off; give one a weight above 0")
