"""MAE: masked autoencoders."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.backbones.base import MaskedBackbone, VisibleTokenBackbone
from unmask.heads.mae_decoder import MAEDecoder
from unmask.methods.base import Method
from unmask.methods.visible_units import build_decoder, build_fusion, cell_of, require_visible_units
from unmask.patches import (
    PatchMask,
    PatchSize,
    patch_grid,
    patches_of_units,
    patchify,
    take_tokens,
    unpatchify,
)
from unmask.targets.pixels import normalize_patches, patch_statistics, restore_patches
from unmask.types import Images, MethodOutput, PixelStatistics


class MAE(Method):
    """Encodes only the visible patches and decodes the pixels of the masked ones (arXiv:2111.06377).

    Terms:
        pixel_mse: Mean squared error over the masked patches (sec. 3), against each patch normalized by its own mean
            and deviation where `norm_pix_loss` (sec. 4.1, "w/ norm"), weight 1.

    Differs:
        - Visible patches enter the encoder in row-major order, not shuffled: attention does not depend on it.
        - On a hierarchical backbone (Hiera, arXiv:2306.00989, sec. 3.1) whole mask units are left out and a decoder
          gets all stages joined by `StageFusion`, as in its paper's code, whose decoder has learned positions in place
          of sines and cosines, and whose ratio is 0.6.
        - On a Swin or Swin V2 one of each 2 x 2 units is visible (UM-MAE, arXiv:2205.10063), and `StageExpansion` makes
          a token of each unit of those of the last stage. There is no secondary masking; UM-MAE leads into the decoder
          by one layer, which here is the expansion and the decoder's own. The configured decoder has one block: the
          paper's eight would take longer than a quarter of a Swin-T.
        - Class and mask token are not weight-decayed unless `weight_decay_policy="tokens"`; the official code
          decays them.

    Args:
        backbone: A backbone that can skip masked tokens: ViT, Hiera, Swin or Swin V2.
        decoder: Completed with the encoder's width and the geometry of its patches.
        norm_pix_loss: Per-patch normalization of the target; on in every released model.
        reconstruction_mean: Mean over "masked" pixels, or over "all" pixels with zeros for the visible.
        shared: See `Method`; what is masked at a time is a mask unit of the backbone (of a ViT one patch) or a block of
            whole ones.

    Raises:
        ValueError: The backbone cannot skip tokens, a masked block is not whole units of it, masks are not of the kind
            that it can leave out, or a choice is unknown.
    """

    backbone: VisibleTokenBackbone

    def __init__(
        self,
        *,
        backbone: MaskedBackbone,
        decoder: Callable[..., MAEDecoder],
        norm_pix_loss: bool = True,
        reconstruction_mean: str = "masked",
        **shared: Any,
    ) -> None:
        if not backbone.can_skip_tokens:
            raise ValueError(
                "method=mae leaves masked tokens out, which a ViT, Hiera, Swin or Swin V2 can do; use model=vit_tiny, "
                "model=swin_tiny or another of them, or method=simmim with this backbone"
            )
        backbone = cast("VisibleTokenBackbone", backbone)
        super().__init__(backbone=backbone, **shared)
        if reconstruction_mean not in ("masked", "all"):
            raise ValueError(f"method.reconstruction_mean must be 'masked' or 'all', got {reconstruction_mean!r}")
        self.norm_pix_loss = norm_pix_loss
        self.reconstruction_mean = reconstruction_mean
        self.grid = patch_grid(backbone.image_size, backbone.patch_size)
        self.decoder = build_decoder(decoder, backbone)
        self.fusion = build_fusion(backbone)
        backbone.initialize_as_mae()
        self.patch_mask(self.mask_generator(torch.empty(1, backbone.in_channels, *backbone.image_size)))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return (*super().blocks, *self.decoder.blocks)

    @property
    def mask_unit_size(self) -> PatchSize:
        return self.backbone.visible_unit_size

    @property
    def mask_cell(self) -> int | None:
        return cell_of(self.backbone)

    def forward(self, images: Images, mask: PatchMask | None = None, *, is_drawn: bool = True) -> MethodOutput:
        """Computes the loss; what serves the prediction of visible patches alone is left out unless it `is_drawn`."""
        mask = self.mask_generator(images) if mask is None else mask
        masked = self.patch_mask(mask).masked_indices()
        prediction = None
        if is_drawn:
            predicted = self.predict_patches(images, mask)
            prediction, predicted = self._picture(predicted, images), take_tokens(predicted, masked)
        else:
            predicted = self.predict_patches(images, mask, masked)
        pixel_mse = self._pixel_mse(predicted, images, masked)
        return MethodOutput(loss=pixel_mse, terms={"pixel_mse": pixel_mse}, mask=mask, prediction=prediction)

    def training_output(self, images: Images, mask: PatchMask | None = None) -> MethodOutput:
        output: MethodOutput = self(images, mask, is_drawn=False)
        return output

    def predict_patches(
        self, images: Images, mask: PatchMask, predicted: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """Predicts patches in float32, in the space of the target, channel fastest.

        Args:
            images: Of which the visible patches are read.
            mask: Of each image.
            predicted: Row-major indices of the patches that are predicted; None is all of them.
        """
        unit_size = self.mask_unit_size
        require_visible_units(mask, self.backbone, "MAE")
        units = mask.split(unit_size).visible_indices()
        visible = patches_of_units(units, grid=self.grid, unit_size=unit_size, patch_size=self.backbone.patch_size)
        encoded = self.backbone.forward_visible(images, units, self.fusion)
        numbers: Tensor = self.decoder(encoded, visible, predicted=predicted)
        return numbers.float()

    def borrowed_statistics(self, images: Images) -> PixelStatistics | None:
        if not self.norm_pix_loss:
            return None
        patches = patchify(images.float(), self.backbone.patch_size)
        mean, std = (
            unpatchify(statistic.expand_as(patches), self.backbone.patch_size, self.grid)
            for statistic in patch_statistics(patches)
        )
        return PixelStatistics(mean, std)

    def patch_mask(self, mask: PatchMask) -> PatchMask:
        """Says which of the patches that are predicted a mask of larger blocks masks.

        Raises:
            ValueError: A block is not whole mask units of the backbone.
        """
        require_visible_units(mask, self.backbone, "MAE")
        return mask.split(self.backbone.patch_size)

    def _pixel_mse(
        self, predicted: Float[Tensor, "b m d"], images: Images, masked: Int[Tensor, "b m"]
    ) -> Float[Tensor, ""]:
        target = take_tokens(patchify(images.float(), self.backbone.patch_size), masked)
        if self.norm_pix_loss:
            target = normalize_patches(target)
        errors = (predicted - target).square()
        num_images, num_masked, numbers = errors.shape
        num_averaged = num_masked if self.reconstruction_mean == "masked" else math.prod(self.grid)
        return errors.sum() / max(num_images * num_averaged * numbers, 1)

    def _picture(self, predicted: Float[Tensor, "b n d"], images: Images) -> Images:
        if self.norm_pix_loss:
            predicted = restore_patches(predicted, like=patchify(images.float(), self.backbone.patch_size))
        return unpatchify(predicted, self.backbone.patch_size, self.grid)
