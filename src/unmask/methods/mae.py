"""MAE: masked autoencoders."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.backbones.base import MaskedBackbone, VisibleTokenBackbone
from unmask.heads.mae_decoder import MAEDecoder
from unmask.losses.masked import masked_mean
from unmask.methods.base import Method
from unmask.patches import PatchMask, are_whole_cells, patch_grid, patch_sides, patch_text, patchify, unpatchify
from unmask.targets.pixels import normalize_patches, patch_statistics, restore_patches
from unmask.types import Images, MethodOutput, PixelStatistics


class MAE(Method):
    """Encodes only the visible patches and decodes the pixels of the masked ones (arXiv:2111.06377).

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
        shared: See `Method`; what is masked at a time is one patch of the backbone or a block of whole patches.

    Raises:
        ValueError: The backbone cannot skip tokens, a masked block is not whole patches of it, or a choice is unknown.
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
        backbone.initialize_as_mae()
        self.patch_mask(self.mask_generator(torch.empty(1, backbone.in_channels, *backbone.image_size)))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return (*super().blocks, *self.decoder.blocks)

    def forward(self, images: Images, mask: PatchMask | None = None) -> MethodOutput:
        mask = self.mask_generator(images) if mask is None else mask
        patch_mask = self.patch_mask(mask)
        predicted = self.predict_patches(images, patch_mask)

        patches = patchify(images.float(), patch_mask.patch_size)
        target = normalize_patches(patches) if self.norm_pix_loss else patches
        errors, masked = (predicted - target).square(), patch_mask.masked.flatten(1).unsqueeze(2)
        pixel_mse = masked_mean(errors, masked) if self.reconstruction_mean == "masked" else (errors * masked).mean()
        pixels = restore_patches(predicted, like=patches) if self.norm_pix_loss else predicted
        prediction = unpatchify(pixels, patch_mask.patch_size, self.grid)
        return MethodOutput(loss=pixel_mse, terms={"pixel_mse": pixel_mse}, mask=mask, prediction=prediction)

    def predict_patches(self, images: Images, mask: PatchMask) -> Float[Tensor, "b n d"]:
        """Predicts all patches in float32, in the space of the target, channel fastest."""
        visible = self.patch_mask(mask).visible_indices()
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

    def patch_mask(self, mask: PatchMask) -> PatchMask:
        """Says which of the backbone's patches a mask of larger blocks masks.

        Raises:
            ValueError: A block is not whole patches.
        """
        own = self.backbone.patch_size
        if not are_whole_cells(mask.patch_size, own):
            setting = own if isinstance(own, int) else f"[{own[0]},{own[1]}]"
            raise ValueError(
                f"MAE masks whole patches of its backbone: blocks of {patch_text(mask.patch_size)} px are not a whole "
                f"number of {patch_text(own)} px patches; set method.mask_generator.patch_size={setting} or a multiple"
            )
        per_block = math.prod(patch_sides(mask.patch_size)) // math.prod(patch_sides(own))
        num_masked = None if mask.num_masked is None else mask.num_masked * per_block
        return PatchMask(mask.at_stride(own), own, num_masked)
