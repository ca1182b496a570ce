"""DDMIM with a student that computes the visible part of an image alone."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from unmask.backbones.base import MaskedBackbone
from unmask.backbones.timm_swin import TimmSwin
from unmask.heads.mae_decoder import MAEDecoder
from unmask.methods.ddmim import DDMIM
from unmask.methods.ddmim_terms import Encoded, Tokens
from unmask.methods.visible_units import build_decoder, build_fusion, cell_of, require_visible_units
from unmask.patches import PatchMask, PatchSize, patch_grid, unpatchify
from unmask.types import Images


class SparseDDMIM(DDMIM):
    """DDMIM on a Swin or Swin V2 whose student leaves masked units out, as MAE does; the teacher sees all of an image.

    One of each 2 x 2 units is visible (arXiv:2205.10063, sec. 3.1), and the visible ones, moved together, are the
    student's image: a quarter of the tokens in every stage, where `DDMIM` computes them all. The three terms are those
    of `DDMIM`, and what is not said here holds as it does there.

    Differs:
        - No token is masked, in no stage: there are no mask tokens but the decoder's, and one mask for all stages.
        - The reconstruction is predicted by MAE's decoder, as in `MAE` on a Swin, not by one layer.
        - Features are compared where the student has tokens: the teacher's map is read at the visible units, and of
          maps whose cells are larger than a unit 2 x 2 cells, of which a token of the student has its units, are
          averaged.
        - Three quarters of an image are masked where the original masked half.

    Args:
        backbone: A Swin or Swin V2.
        mask_generator: With `cell`, of the backbone's mask units.
        decoder: As of `MAE`; None where there is no reconstruction.
        zero_init_residual: As of `DDMIM`; false needs no mask tokens here.
        settings: As of `DDMIM`, but for `mask_value`; `reconstruction.head` is null.

    Raises:
        ValueError: The backbone cannot leave units out, masks are not of the kind it can leave out, a setting is of
            `DDMIM` alone, or as for `DDMIM`.
    """

    backbone: TimmSwin

    def __init__(
        self,
        *,
        backbone: MaskedBackbone,
        decoder: Callable[..., MAEDecoder] | None = None,
        zero_init_residual: bool = True,
        **settings: Any,
    ) -> None:
        if not isinstance(backbone, TimmSwin):
            raise ValueError(
                "method=ddmim_sparse leaves masked units out of every stage, which a Swin or Swin V2 can do; use "
                "model=swinv2_tiny, model=swin_tiny or another of them, or method=ddmim with this backbone"
            )
        if "mask_value" in settings:
            raise ValueError("method=ddmim_sparse has no masked tokens, which method.mask_value fills; leave it out")
        super().__init__(backbone=backbone, mask_value="left out", zero_init_residual=zero_init_residual, **settings)
        if (decoder is None) != (self.reconstruction is None):
            raise ValueError(
                "method.decoder predicts the pixels of method.reconstruction: "
                + ("give it settings" if decoder is None else "set method.decoder=null too")
            )
        self.decoder = None if decoder is None else build_decoder(decoder, backbone)
        self.expansion = None if decoder is None else build_fusion(backbone)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return (*super().blocks, *(() if self.decoder is None else self.decoder.blocks))

    @property
    def mask_unit_size(self) -> PatchSize:
        return self.backbone.visible_unit_size

    @property
    def mask_cell(self) -> int | None:
        return cell_of(self.backbone)

    def _prepare_masking(self, mask_value: str) -> None:
        if self.reconstruction is not None and self.reconstruction.head is not None:
            raise ValueError(
                "method=ddmim_sparse predicts pixels by method.decoder; set method.reconstruction.head=null"
            )
        if self.features is not None and self.features.positions != "all":
            raise ValueError(
                "method=ddmim_sparse has features of visible units alone; set method.features.positions=all"
            )

    def _require_fitting_masks(self, mask: PatchMask) -> None:
        require_visible_units(mask, self.backbone, "sparse DDMIM")

    def _encode_by_student(self, images: Images, mask: PatchMask) -> Encoded:
        self._require_fitting_masks(mask)
        return self._record(partial(self.backbone.forward_visible_features, images, mask.visible_indices()))

    def _predict_pixels(self, student: Encoded, mask: PatchMask, *, is_drawn: bool) -> Images:
        assert self.decoder is not None
        visible, masked = mask.visible_indices(), None if is_drawn else mask.masked_indices()
        tokens = self.backbone.tokens_of_units(student.features, visible, self.expansion)
        patches = self.decoder(tokens, visible, predicted=masked).float()
        grid = patch_grid(self.backbone.image_size, self.backbone.patch_size)
        if masked is not None:
            every = patches.new_zeros(len(patches), math.prod(grid), patches.shape[2])
            patches = every.scatter(1, masked[..., None].expand_as(patches), patches)
        return unpatchify(patches, self.backbone.patch_size, grid)

    def _read_for_student(self, teachers: Tokens, mask: PatchMask) -> Float[Tensor, "b _h _w c"]:
        maps = self.backbone.read_visible(teachers.permute(0, 3, 1, 2), mask.visible_indices())
        return maps.permute(0, 2, 3, 1)
