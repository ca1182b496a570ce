"""DDMIM: masked image modeling with self-distillation at every stage."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unmask.backbones.base import MaskedBackbone
from unmask.masking.base import MaskGenerator
from unmask.masking.stages import StageMaskGenerator, stage_masks
from unmask.methods.base import Method, require_separate_patches
from unmask.methods.ddmim_monitors import agreement_and_spread
from unmask.methods.ddmim_terms import (
    ContrastTerm,
    Encoded,
    ReconstructionTerm,
    StageFeatureTerm,
    Tokens,
    require_choice,
    require_one_a_stage,
)
from unmask.methods.ddmim_views import Views, whole_images
from unmask.patches import PatchMask, are_whole_cells
from unmask.targets.ema_teacher import EMATeacher
from unmask.types import ImageBatch, Images, MethodOutput, PixelStatistics, StageEdit

MaskedTokens = Mapping[int, Bool[Tensor, "b h w 1"]]
"""By stage: which tokens are masked as they enter it."""

_FEWEST_TIME_CONSTANTS = 5  # of the teacher in a run, below which a line warns; ours
_PUBLISHED_TIME_CONSTANTS = 38  # v9's 1.664e6 images in 50 epochs of ImageNet

_log = logging.getLogger("unmask")


class DDMIM(Method):
    """Reconstructs a masked image and distills a teacher that sees all of it (github.com/SVC-WSY/ddmim, v9).

    The student's tokens are masked as they enter its masked stages. The teacher, an exponential moving average of the
    student, sees the full image. With x the image, M its mask, s and t the features of student and teacher,
    `loss = w_r reconstruction(x, s, M) + sum_i w_i feature_stage_i(s, t) + w_c contrastive(s, t)`.

    Terms:
        reconstruction: Smooth L1 (beta 1) over the masked pixels of the normalized image (`ReconstructionTerm`).
        feature_stage_<i>: Smooth L1 between student and teacher at feature point i, over all positions, both first
            normalized over channels (`StageFeatureTerm`).
        contrastive: InfoNCE of the student's projected, pooled features against the teacher's of the whole batch, on
            all devices (`ContrastTerm`); the features pooled are those evaluation reads.

    The hyper-parameters of the original, and where they are: image_size, depths, num_heads, window_size, mlp_ratio,
    dim_head (the width of the first stage): the backbone's. masking_ratio: `mask_generator.ratios`; of the original's
    four only the first was read, its stages 0 to 2 always masked. patch_size 16: `mask_generator.patch_size`; there
    it was only checked, and single tokens were masked. stagefactor: `features.weights`. num_classes 1024:
    `contrast.projector.representation_features`. tau: `contrast.temperature`. alpha: `contrast.weight`. ema_decay,
    ema_steps: `teacher.momentum`, `teacher.every_n_steps`, by default replaced by `teacher.time_constant`. lr,
    weight_decay: the optimizer's. encoder_stride: follows from the backbone. momentum and epsilon: nothing read them.

    Differs (`experiment=ddmim-v9_swinv2-tiny_52b-50e_in1k-224px` restores the first seven; the rest holds everywhere):
        - Patches of several tokens are masked, a fixed number in each image: single tokens can be interpolated from
          their neighbors, and their masks do not nest.
        - The teacher averages the whole student, projector included, and is in eval mode; the original averaged the
          stages only, used the student's own stem, norm and projector around them, and dropped paths.
        - The average follows every optimizer step by a time constant in images.
        - Features are normalized over channels before they are compared, so their scale cannot drift.
        - The reconstruction is averaged over masked pixels, not over all.
        - The contrast has no extra negative of similarity 0, and the projector an activation after its first layer.
        - The projector's layers start from a truncated normal; the original's last two start as torch draws them.
        - timm merges patches where a stage begins, the original where it ends. The tensors compared are the same: what
          enters the next stage, merged and not yet masked, and the last stage's output before the final norm.
        - Evaluation reads the pooled features of the final norm, not the 1024 numbers after one more linear layer.
        - The denominator of the reconstruction is the number of masked values, without the 1e-5 usually added.
        - Validation and test use fixed masks; the original drew new ones at each validation.
        - On small sets (`unmask.small_sets`) the configuration gives the reconstruction 20 times its weight and
          normalizes its target over half an image, and learned tokens replace masked ones.
        - Bernoulli masks never mask all patches of an image or none.
        - The views' random numbers are drawn for the images of all devices, so any number of devices sees the same
          views.

    Args:
        mask_generator: Its ratios say which stages are masked.
        reconstruction, features, contrast: The terms, completed with the backbone; None leaves a term out of the loss.
        teacher: Completed with the networks it copies; None where neither `features` nor `contrast` needs one.
        views: Makes the student's and the teacher's view of each training image. With crops, features are compared
            where the two overlap, the teacher's read at the student's positions, and the student reconstructs its own
            crop. None shows both the same image.
        mask_value: What masked tokens become: "zero", or a "learned" mask token for each masked stage.
        zero_init_residual: As for `SimMIM`; false takes learned mask tokens, since the cosines of tokens that are 0
            have no bounded gradient.
        shared: See `Method`.

    Raises:
        ValueError: Numbers of stages disagree, the backbone's patches overlap, the masks do not fit it, all terms are
            None, the teacher is missing or not needed, or branches start open on masked tokens that are 0.
    """

    has_moving_targets: ClassVar[bool] = True

    def __init__(
        self,
        *,
        backbone: MaskedBackbone,
        mask_generator: MaskGenerator,
        reconstruction: Callable[..., ReconstructionTerm] | None = None,
        features: Callable[..., StageFeatureTerm] | None = None,
        contrast: Callable[..., ContrastTerm] | None = None,
        teacher: Callable[..., EMATeacher] | None = None,
        views: Callable[[Images], Views] | None = None,
        mask_value: str = "zero",
        zero_init_residual: bool = True,
        **shared: Any,
    ) -> None:
        super().__init__(backbone=backbone, mask_generator=mask_generator, **shared)
        require_separate_patches(backbone, "ddmim")
        if not zero_init_residual:
            if mask_value == "zero":
                raise ValueError(
                    "method.zero_init_residual=false with method.mask_value=zero has gradients without bound; "
                    "set method.mask_value=learned or method.zero_init_residual=true"
                )
            backbone.open_residuals()
        self.views = views

        self.reconstruction = None if reconstruction is None else reconstruction(backbone=backbone)
        self.features = None if features is None else features(backbone=backbone)
        self.contrast = None if contrast is None else contrast(backbone=backbone)
        terms = [term for term in (self.reconstruction, self.features, self.contrast) if term is not None]
        if not terms:
            raise ValueError("method=ddmim has no loss term; keep reconstruction, features or contrast")
        self.weights = {name: weight for term in terms for name, weight in term.weights.items()}
        self.feature_point = "post_merge" if self.features is None else self.features.feature_point

        self.mask_tokens = nn.ParameterDict()
        self._prepare_masking(mask_value)
        _require_teacher_if_needed(teacher, is_needed=features is not None or contrast is not None)
        self.teacher = None if teacher is None else teacher(self.student_networks(), is_of_a_stage=self._is_of_a_stage)
        self._images_in_step = 0
        self._is_first_step = False
        self._require_fitting_masks(mask_generator(torch.empty(1, backbone.in_channels, *backbone.image_size)))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        teacher: MaskedBackbone | None = None if self.teacher is None else self.teacher["backbone"]
        return (*super().blocks, *(() if teacher is None else teacher.blocks))

    def forward(self, images: Images, mask: PatchMask | None = None, *, is_drawn: bool = True) -> MethodOutput:
        """Computes the loss; what serves the picture of the prediction alone is left out unless it `is_drawn`."""
        mask = self.mask_generator(images) if mask is None else mask
        views = self.views(images) if self.views is not None and self.training else whole_images(images)
        student = self._encode_by_student(views.student, mask)
        teacher = self._encode_by_teacher(views.teacher)

        terms: dict[str, Float[Tensor, ""]] = {}
        monitors: dict[str, Float[Tensor, ""]] = {}
        prediction = None
        if self.reconstruction is not None:
            predicted = self._predict_pixels(student, mask, is_drawn=is_drawn)
            terms["reconstruction"] = self.reconstruction(predicted, views.target, mask)
            prediction = self.reconstruction.target.restore(predicted, like=views.target) if is_drawn else None
        if self.features is not None and teacher is not None:
            read = partial(self._read_for_student, mask=mask)
            terms |= self.features(student, teacher, mask, views.boxes, read)  # feature_stage_<i>
        if self.contrast is not None and teacher is not None:
            terms["contrastive"], monitors["contrastive_accuracy"] = self.contrast(student, self._keys(teacher))
        if teacher is not None and not self.training:
            points = [self._read_for_student(point, mask) for point in teacher.feature_points]
            monitors |= agreement_and_spread(student, Encoded(points, teacher.features))

        loss = torch.zeros((), device=images.device)
        for name, term in terms.items():
            loss = loss + self.weights[name] * term
        return MethodOutput(loss=loss, terms=terms, mask=mask, prediction=prediction, monitors=monitors)

    def training_output(self, images: Images, mask: PatchMask | None = None) -> MethodOutput:
        output: MethodOutput = self(images, mask, is_drawn=False)
        return output

    def borrowed_statistics(self, images: Images) -> PixelStatistics | None:
        return None if self.reconstruction is None else self.reconstruction.target.borrowed_statistics(images)

    def on_train_start(self) -> None:
        self._is_first_step = True

    def on_train_batch_start(self, batch: ImageBatch, batch_idx: int) -> None:
        self._images_in_step += len(batch.image) * self.trainer.world_size

    def optimizer_step(self, epoch: int, batch_idx: int, *arguments: Any, **settings: Any) -> None:
        super().optimizer_step(epoch, batch_idx, *arguments, **settings)
        is_made = any(parameter.grad is not None for parameter in self.parameters())  # a skipped step has no gradient
        if self.teacher is not None and is_made:
            if self._is_first_step and self.trainer.is_global_zero:
                _warn_of_a_slow_teacher(self.teacher, self._images_in_step, self.trainer.estimated_stepping_batches)
            self._is_first_step = False
            step_of_epoch = batch_idx // self.trainer.accumulate_grad_batches
            self.teacher.update(self.student_networks(), num_images=self._images_in_step, step_of_epoch=step_of_epoch)
        self._images_in_step = 0

    def on_weights_loaded(self, names: Collection[str]) -> Sequence[str]:
        """Makes the teacher a copy of the student that was loaded, where the file's own teacher was not loaded."""
        if self.teacher is None:
            return ()
        if any(name.startswith("teacher.") for name in names):
            return ("teacher: loaded from the file",)
        self.teacher.copy_student(self.student_networks())
        return ("teacher: a copy of the student as loaded",)

    def student_networks(self) -> dict[str, nn.Module]:
        """The networks the teacher averages, by name."""
        networks: dict[str, nn.Module] = {"backbone": self.backbone}
        if self.contrast is not None:
            networks["projector"] = self.contrast.projector
        return networks

    def _prepare_masking(self, mask_value: str) -> None:
        """Checks the masks of stages and makes what is put in the place of masked tokens."""
        if self.reconstruction is not None and self.reconstruction.head is None:
            raise ValueError("method.reconstruction.head is null; give it a head that predicts the pixels")
        if not isinstance(self.mask_generator, StageMaskGenerator):
            raise ValueError(
                f"method=ddmim masks tokens in stages, and method.mask_generator is a "
                f"{type(self.mask_generator).__name__}; use StageMaskGenerator, or method=ddmim_sparse, which leaves "
                "masked units out"
            )
        ratios = self.mask_generator.ratios
        require_one_a_stage("method.mask_generator.ratios", ratios, len(self.backbone.stages))
        require_choice("mask_value", mask_value, ("zero", "learned"))
        self.masked_stages = [stage for stage, ratio in enumerate(ratios) if ratio]
        if mask_value == "learned":
            for stage in self.masked_stages:
                token = nn.Parameter(torch.empty(self.backbone.stages[stage].channels))
                self.mask_tokens[str(stage)] = nn.init.trunc_normal_(token, std=0.02)

    def _require_fitting_masks(self, mask: PatchMask) -> None:
        """Refuses masks of which the student can make nothing."""
        self._masked_tokens(mask)

    def _encode_by_student(self, images: Images, mask: PatchMask) -> Encoded:
        masked = self._masked_tokens(mask)

        def put_mask_tokens(stage: int, tokens: Tokens) -> Tokens:
            if stage not in masked:
                return tokens
            if str(stage) in self.mask_tokens:
                return torch.where(masked[stage], self.mask_tokens[str(stage)].to(tokens.dtype), tokens)
            return tokens.masked_fill(masked[stage], 0.0)

        return self._record(partial(self.backbone.forward_features, images), put_mask_tokens)

    def _predict_pixels(self, student: Encoded, mask: PatchMask, *, is_drawn: bool) -> Images:
        """Predicts the pixels of what the student sees, as the target is normalized, in float32.

        Those that are visible may be anything unless they are `is_drawn`: the loss reads the masked ones.
        """
        assert self.reconstruction is not None
        assert self.reconstruction.head is not None
        predicted: Images = self.reconstruction.head(student.features)
        return predicted.float()

    def _read_for_student(self, teachers: Tokens, mask: PatchMask) -> Float[Tensor, "b _h _w c"]:
        """What a map of the teacher holds at the positions that the student's map of the stage has."""
        return teachers

    def _record(
        self, compute: Callable[[StageEdit], list[Float[Tensor, "b c h w"]]], edit: StageEdit | None = None
    ) -> Encoded:
        """Computes the stages under an edit and keeps the features that are compared, which are not edited yet."""
        last = len(self.backbone.stages)
        feature_points = []

        def record_and_edit(stage: int, tokens: Tokens) -> Tokens:
            if (stage > 0 and self.feature_point == "post_merge") or stage == last:
                feature_points.append(tokens)
            return tokens if edit is None else edit(stage, tokens)

        maps = compute(record_and_edit)
        if self.feature_point == "stage_out":
            feature_points = [feature_map.permute(0, 2, 3, 1) for feature_map in maps[:-1]] + feature_points
        return Encoded(feature_points, maps[-1])

    @torch.no_grad()
    def _encode_by_teacher(self, images: Images) -> Encoded | None:
        if self.teacher is None:
            return None
        return self._record(partial(self.teacher["backbone"].forward_features, images))

    @torch.no_grad()
    def _keys(self, teacher: Encoded) -> Float[Tensor, "b e"]:
        """Projects the teacher's features by the teacher's own projector."""
        assert self.teacher is not None
        keys: Tensor = self.teacher["projector"](teacher.pooled)
        return keys

    def _masked_tokens(self, mask: PatchMask) -> MaskedTokens:
        masked = {}
        for stage, stage_mask in enumerate(stage_masks(mask, len(self.backbone.stages), self.masked_stages)):
            if stage_mask is not None:
                stride = self.backbone.stages[stage].stride
                if stage == 0 and not are_whole_cells(stage_mask.patch_size, stride):
                    raise ValueError(
                        f"masked patches of {stage_mask.patch_size} px are not a whole number of the backbone's "
                        f"{stride} px tokens; set method.mask_generator.patch_size to a multiple of {stride}"
                    )
                masked[stage] = stage_mask.at_stride(stride, coarse="nearest").unsqueeze(-1)
        return masked

    def _is_of_a_stage(self, name: str) -> bool:
        network, _, parameter = name.partition(".")
        return network == "backbone" and 1 <= self.backbone.layer_id(parameter) <= self.backbone.num_blocks


def _require_teacher_if_needed(teacher: Callable[..., EMATeacher] | None, *, is_needed: bool) -> None:
    if teacher is None and is_needed:
        raise ValueError(
            "method.features and method.contrast compare the student with a teacher, and method.teacher is null; "
            "give it settings, or set both terms to null"
        )
    if teacher is not None and not is_needed:
        raise ValueError(
            "method.features and method.contrast are null, so nothing is compared with the teacher; "
            "set method.teacher=null too"
        )


def _warn_of_a_slow_teacher(teacher: EMATeacher, num_images: int, num_steps: float) -> None:
    total, time_constant = num_images * num_steps, teacher.time_constant_of(num_images)
    if total < _FEWEST_TIME_CONSTANTS * time_constant:
        given = "" if teacher.momentum is None else "method.teacher.momentum=null method.teacher.every_n_steps=1 "
        advised = f"{given}method.teacher.time_constant={max(num_images, total / _PUBLISHED_TIME_CONSTANTS):.2g}"
        _log.warning(
            f"the teacher averages the student over {time_constant:,.0f} images, and this run has {total:,.0f}, so it "
            f"will hardly follow it; set {advised}, about the fraction of this run that it is of the published one"
        )
