"""MAE: masked autoencoders."""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.backbones.base import MaskedBackbone, VisibleTokenBackbone
from unmask.heads.mae_decoder import MAEDecoder
from unmask.losses.masked import masked_mean
from unmask.methods.base import Method
from unmask.patches import PatchMask, patch_grid, patch_text, patchify, unpatchify
from unmask.targets.pixels import normalise_patches, patch_statistics, restore_patches
from unmask.types import Images, MethodOutput, PixelStatistics


class MAE(Method):
    """Encodes the visible patches alone and decodes the pixels of the masked ones (arXiv:2111.06377).

    Terms:
        pixel_mse: Mean squared error over the masked patches (sec. 3), against each patch normalised by its own mean
            and deviation where `norm_pix_loss` (sec. 4.1, "w/ norm"), weight 1.

    Differs:
        - Visible patches enter the encoder in row-major order, not shuffled: attention does not depend on it.
        - Class and mask token are not weight-decayed unless `weight_decay_policy="tokens"`; the official code
          decays them.

    Args:
        backbone: A backbone that can skip masked tokens: ViT.
        decoder: Completed with the encoder's width and the geometry of its patches.
        norm_pix_loss: Per-patch normalisation of the target; on in every released model.
        reconstruction_mean: Mean over "masked" pixels, or over "all" pixels with zeros for the visible.
        shared: See `Method`; the mask unit must be the backbone's patch.

    Raises:
        ValueError: The backbone cannot skip tokens, the mask unit is not its patch, or a choice is unknown.
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
        if not hasattr(backbone, "forward_visible"):
            raise ValueError(
                "method=mae leaves masked tokens out, which only a ViT can do; use model=vit_tiny or another vit, "
                "or method=simmim with this backbone"
            )
        backbone = cast("VisibleTokenBackbone", backbone)
        super().__init__(backbone=backbone, **shared)
        if reconstruction_mean not in ("masked", "all"):
            raise ValueError(f"method.reconstruction_mean must be 'masked' or 'all', got {reconstruction_mean!r}")
        self.norm_pix_loss = norm_pix_loss
        self.reconstruction_mean = reconstruction_mean
        self.grid = patch_grid(backbone.image_size, backbone.patch_size)
        self.decoder = decoder(
            encoder_dim=backbone.embed_dim,
            num_prefix_tokens=backbone.num_prefix_tokens,
            grid=self.grid,
            patch_size=backbone.patch_size,
            image_channels=backbone.in_channels,
        )
        backbone.initialise_as_mae()
        self._require_own_patches(self.mask_generator(torch.empty(1, backbone.in_channels, *backbone.image_size)))

    def forward(self, images: Images, mask: PatchMask | None = None) -> MethodOutput:
        mask = self.mask_generator(images) if mask is None else mask
        self._require_own_patches(mask)
        predicted = self.predict_patches(images, mask)

        patches = patchify(images.float(), mask.patch_size)
        target = normalise_patches(patches) if self.norm_pix_loss else patches
        errors, masked = (predicted - target).square(), mask.masked.flatten(1).unsqueeze(2)
        pixel_mse = masked_mean(errors, masked) if self.reconstruction_mean == "masked" else (errors * masked).mean()
        pixels = restore_patches(predicted, like=patches) if self.norm_pix_loss else predicted
        prediction = unpatchify(pixels, mask.patch_size, self.grid)
        return MethodOutput(loss=pixel_mse, terms={"pixel_mse": pixel_mse}, mask=mask, prediction=prediction)

    def predict_patches(self, images: Images, mask: PatchMask) -> Float[Tensor, "b n d"]:
        """Predicts all patches in float32, in the space of the target, channel fastest."""
        visible = mask.visible_indices()
        predicted: Tensor = self.decoder(self.backbone.forward_visible(images, visible), visible)
        return predicted.float()

    def borrowed_statistics(self, images: Images) -> PixelStatistics | None:
        if not self.norm_pix_loss:
            return None
        patches = patchify(images.float(), self.backbone.patch_size)
        mean, std = (
            unpatchify(statistic.expand_as(patches), self.backbone.patch_size, self.grid)
            for statistic in patch_statistics(patches)
        )
        return PixelStatistics(mean, std)

    def _require_own_patches(self, mask: PatchMask) -> None:
        if mask.patch_size != self.backbone.patch_size:
            own = self.backbone.patch_size
            setting = own if isinstance(own, int) else f"[{own[0]},{own[1]}]"
            raise ValueError(
                f"MAE hides whole patches of its backbone: mask unit is {patch_text(mask.patch_size)} px, patches are "
                f"{patch_text(own)} px; set method.mask_generator.patch_size={setting}"
            )
