"""SimMIM: a simple framework for masked image modeling."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unmask.heads.pixel_shuffle import PixelShuffleHead
from unmask.losses.masked import masked_mean
from unmask.methods.base import Method, require_separate_patches
from unmask.patches import PatchMask, are_whole_cells, patch_text
from unmask.targets.local import PixelTarget
from unmask.types import Images, MethodOutput, PixelStatistics


class SimMIM(Method):
    """Predicts the raw pixels of masked patches with one linear layer (arXiv:2111.09886).

    Masked tokens are replaced by a learned mask token as they enter the backbone (sec. 3.1), which sees full-length
    sequences; the head turns each cell of the last feature map into pixels (sec. 3.3).

    Terms:
        pixel_l1: Mean absolute error over masked pixels of the normalized image (sec. 3.4), weight 1.

    Differs:
        - The denominator is the number of masked values; the official code adds 1e-5 to it (below 1e-9 relative).
        - On `model=vit_*` the backbone has absolute positions, and the mask token enters before they are added; the
          official ViT is `model=beit_base`, which has relative positions alone.
        - Tables of relative positions are not weight-decayed unless `weight_decay_policy="position_bias"`; the official
          code decays them in pre-training and, on ViT, the mask token too (`"mask_token_and_position_bias"`).
        - The gradient is clipped once an optimizer step; the official code clips at every accumulation step.
        - On small sets (`unmask.small_sets`) the configuration normalizes the target over half an image and opens Swin
          V2's branches; the paper's target is raw pixels.

    Args:
        head: Completed with the width and stride of the backbone's last stage.
        normalize_window: Side, pixels, of the window around a pixel whose mean and deviation normalize the target, as
            for Swin V2; null leaves the pixels as they are, as in the paper.
        zero_init_residual: Leave Swin V2's blocks identities at the start, as its code does: the norm behind each
            branch has gain 0. False starts these gains at 1; backbones without such norms start the same either way.
        shared: See `Method`.

    Raises:
        ValueError: A masked patch is not whole tokens, the backbone's patches overlap, or the window has no center.
    """

    def __init__(
        self,
        *,
        head: Callable[..., PixelShuffleHead],
        normalize_window: int | None = None,
        zero_init_residual: bool = True,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        require_separate_patches(self.backbone, "simmim")
        self.target = PixelTarget(normalize_window)
        last = self.backbone.stages[-1]
        self.head = head(in_channels=last.channels, stride=last.stride, image_channels=self.backbone.in_channels)
        self.mask_token = nn.Parameter(torch.empty(self.backbone.stages[0].channels))
        self.backbone.initialize_as_simmim(self.mask_token)
        if not zero_init_residual:
            self.backbone.open_residuals()
        self.masked_tokens(self.mask_generator(torch.empty(1, self.backbone.in_channels, *self.backbone.image_size)))

    def forward(self, images: Images, mask: PatchMask | None = None, *, is_drawn: bool = True) -> MethodOutput:
        """Computes the loss; the pixels of a prediction are restored from a normalized one only if it `is_drawn`."""
        mask = self.mask_generator(images) if mask is None else mask
        masked = self.masked_tokens(mask)

        def insert_mask_token(stage: int, tokens: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
            return torch.where(masked, self.mask_token.to(tokens.dtype), tokens) if stage == 0 else tokens

        predicted = self.head(self.backbone.forward_features(images, insert_mask_token)[-1]).float()
        errors = F.l1_loss(predicted, self.target(images), reduction="none")
        pixel_l1 = masked_mean(errors, mask.at_pixels())  # sec. 3.4
        prediction = self.target.restore(predicted, like=images) if is_drawn else None
        return MethodOutput(loss=pixel_l1, terms={"pixel_l1": pixel_l1}, mask=mask, prediction=prediction)

    def training_output(self, images: Images, mask: PatchMask | None = None) -> MethodOutput:
        output: MethodOutput = self(images, mask, is_drawn=False)
        return output

    def borrowed_statistics(self, images: Images) -> PixelStatistics | None:
        return self.target.borrowed_statistics(images)

    def masked_tokens(self, mask: PatchMask) -> Bool[Tensor, "b h w 1"]:
        """Says which of the tokens that enter the backbone a mask masks.

        Raises:
            ValueError: A patch of the mask is not whole tokens.
        """
        stride = self.backbone.stages[0].stride
        if not are_whole_cells(mask.patch_size, stride):
            raise ValueError(
                f"masked patches of {patch_text(mask.patch_size)} px are not a whole number of the backbone's "
                f"{patch_text(stride)} px tokens; set method.mask_generator.patch_size to a multiple of "
                f"{patch_text(stride)}"
            )
        return mask.at_stride(stride).unsqueeze(-1)
