"""What the methods share whose encoder computes the visible mask units alone."""

from collections.abc import Callable

from unmask.backbones.base import VisibleTokenBackbone
from unmask.heads.mae_decoder import MAEDecoder
from unmask.heads.stage_expansion import StageExpansion
from unmask.heads.stage_fusion import StageFusion
from unmask.patches import PatchMask, are_whole_cells, patch_grid, patch_sides, patch_text


def build_decoder(decoder: Callable[..., MAEDecoder], backbone: VisibleTokenBackbone) -> MAEDecoder:
    """Completes a decoder with the width of its encoder and the geometry of the patches that this puts out."""
    return decoder(
        encoder_dim=backbone.embed_dim,
        num_prefix_tokens=backbone.num_prefix_tokens,
        grid=patch_grid(backbone.image_size, backbone.patch_size),
        patch_size=backbone.patch_size,
        image_channels=backbone.in_channels,
    )


def build_fusion(backbone: VisibleTokenBackbone) -> StageExpansion | StageFusion | None:
    """What brings the stages of a backbone to tokens of its patches, where the last one does not put them out."""
    last, fused = backbone.stages[-1], backbone.stages[: backbone.num_fused_stages]
    if fused:
        return StageFusion(stages=fused, last=last)
    (factor, _) = patch_grid(patch_sides(last.stride), backbone.patch_size)
    return StageExpansion(channels=last.channels, factor=factor) if factor > 1 else None


def cell_of(backbone: VisibleTokenBackbone) -> int | None:
    """Side, in units, of the squares of which a mask leaves one unit visible; None where masks are free."""
    return backbone.visible_cell if backbone.visible_cell > 1 else None


def require_visible_units(mask: PatchMask, backbone: VisibleTokenBackbone, method: str) -> None:
    """Refuses masks whose visible part the backbone cannot compute alone.

    Args:
        mask: Of some images.
        backbone: Of the method.
        method: Its name, in the message.

    Raises:
        ValueError: A block is not whole mask units of the backbone, or masks are not of the kind it can leave out.
    """
    own, cell = backbone.visible_unit_size, cell_of(backbone)
    setting = own if isinstance(own, int) else f"[{own[0]},{own[1]}]"
    if not are_whole_cells(mask.patch_size, own):
        raise ValueError(
            f"{method} masks whole units of its backbone: blocks of {patch_text(mask.patch_size)} px are not a whole "
            f"number of {patch_text(own)} px units; set method.mask_generator.patch_size={setting} or a multiple"
        )
    if cell is not None and (mask.patch_size, mask.visible_cell) != (own, cell):
        raise ValueError(
            f"a backbone that attends in windows leaves units out where one of each {cell}x{cell} units of "
            f"{patch_text(own)} px is visible; set method.mask_generator.patch_size={setting} "
            f"method.mask_generator.cell={cell} method.mask_generator.ratio={1 - 1 / cell**2:g}"
        )
