"""Swin and Swin V2 of timm, editable at the door of each stage."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from unmask.backbones.base import StageFusion, VisibleTokenBackbone
from unmask.backbones.create import create_timm_model
from unmask.backbones.drop_path import set_drop_path
from unmask.backbones.initialize import initialize_as_mae
from unmask.backbones.settings import TimmSettings, require_square_patch, takes
from unmask.backbones.swin_blocks import take_second_grid
from unmask.backbones.timm_spec import TimmSpec
from unmask.patches import patch_grid
from unmask.types import FeatureStage, Images, StageEdit

_MAX_STAGES = 8
_STAGES_OF_TIMM = 4  # of all its models
_MAX_PAIRS = 2**28  # of tokens that share a window: a GiB of masks


@dataclass(frozen=True, kw_only=True)
class SwinSettings(TimmSettings):
    """Settings of `TimmSwin`."""

    patch_size: int = 4
    window_size: int = 7
    embed_dim: int | None = None
    depths: Sequence[int] | None = None
    num_heads: Sequence[int] | None = None
    pretrained_window_sizes: Sequence[int] | None = None
    always_partition: bool = False

    def __post_init__(self) -> None:
        require_square_patch(self.patch_size)
        super().__post_init__()
        num_stages = _STAGES_OF_TIMM if self.depths is None else len(self.depths)
        if not num_stages:
            raise ValueError("model.depths must list the blocks of each stage, of one stage at least; got []")
        if self.num_heads is not None and len(self.num_heads) < num_stages:
            raise ValueError(
                f"model.num_heads={list(self.num_heads)} must have one number for each of {num_stages} stages"
            )
        if num_stages > _MAX_STAGES:
            raise ValueError(f"model.depths has {num_stages} stages; each halves the grid, and {_MAX_STAGES} are most")
        self.require_few_tokens(self.patch_size)
        rows, cols = patch_grid(self.size, self.patch_size)
        if rows * cols * self.window_size**2 > _MAX_PAIRS:
            raise ValueError(
                f"{rows} x {cols} tokens in windows of {self.window_size} are too large for any network; "
                "use smaller windows"
            )
        _require_whole_windows(self.size, self.patch_size, self.window_size, num_stages)
        if self.always_partition:
            self._require_whole_or_half_windows(num_stages)
        windows = self.pretrained_window_sizes
        if windows is not None and not (self.name.startswith("swinv2_") and len(windows) == num_stages):
            raise ValueError(
                f"pretrained_window_sizes={list(windows)} must be one window for each of {num_stages} "
                f"stages of a Swin V2; the model is {self.name}"
            )

    def timm_sizes(self) -> Mapping[str, Any]:
        sizes = {**super().timm_sizes()}
        if self.always_partition:
            sizes["always_partition"] = True
        num_stages = len(self.depths or ())
        if num_stages > _STAGES_OF_TIMM and self.name.startswith("swinv2_"):  # timm has no default for more
            sizes.setdefault("pretrained_window_sizes", [0] * num_stages)
        return sizes

    def _require_whole_or_half_windows(self, num_stages: int) -> None:
        """Refuses grids on which timm, which shifts and then pads, differs from programs that pad and then shift."""
        window = self.window_size
        grids = [side // (self.patch_size * 2**stage) for side in self.size for stage in range(num_stages)]
        misfits = [grid for grid in grids if grid % window and 2 * grid != window]
        if misfits or self.name.startswith("swinv2_"):
            found = f"a stage of {misfits[0]} tokens a side" if misfits else f"the model {self.name}"
            raise ValueError(
                f"model.always_partition=true takes a Swin (not V2) whose stages are whole windows or half a window of "
                f"{window} tokens a side, and this is {found}; use another window_size or image_size, or leave it out"
            )


class TimmSwin(VisibleTokenBackbone):
    """A Swin (arXiv:2103.14030) or Swin V2 (arXiv:2111.09883) transformer of timm.

    Without an edit it equals timm's `forward_intermediates(norm=True)` bitwise. timm merges patches at the start of
    a stage, so an edit at stage s > 0 sees the tokens after merging.

    Where units are left out, one of each 2 x 2 is visible, and the visible ones, moved together, are an image of half
    the height and width (UM-MAE, arXiv:2205.10063, sec. 3.1): windows and relative positions are those of this image.
    A unit is half a token of the last stage a side. Windows larger than a grid of this image shrink to it with the
    relative positions they have, and grids that are not whole windows are padded.

    Args:
        name: timm's name, which sets width, depths, heads and version; no weights are loaded.
        image_size: Side, or (height, width), in pixels.
        patch_size: Side of a token of the first stage, pixels.
        window_size: Tokens along the side of an attention window. A stage whose grid is no larger than the window
            attends globally.
        embed_dim, depths, num_heads, mlp_ratio: Replace the values of `name`; `embed_dim` is the width of the first
            stage, `mlp_ratio` the width of an MLP's hidden layer over that of its stage.
        pretrained_window_sizes: Swin V2 alone: the window of each stage in pre-training, where that was another than
            `window_size`; positions are then measured in those windows (arXiv:2111.09883, sec. 3.3).
        always_partition: Swin alone: a stage whose grid is no larger than the window keeps its shifts, and one of half
            the window is padded to it, its table being of the whole window; mmpretrain's `pad_small_map`, by which its
            Swin-L of SimMIM was trained.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        in_channels: Of the images.
        pixel_mean, pixel_std: Statistics of each channel, in 0..1, its images are normalized with.

    Raises:
        ValueError: The grid of some stage is not a whole number of windows (timm would pad in silence), timm has no
            such model, `pretrained_window_sizes` are not one a stage of a Swin V2, or `always_partition` meets a stage
            that is neither whole windows nor half a window.
    """

    default_layer_decay = 0.9  # SimMIM's 100-epoch recipe of Swin-B
    num_prefix_tokens = 0
    visible_cell = 2
    swin: Any  # timm's model

    @takes(SwinSettings)
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._settings = chosen = SwinSettings(**settings)
        self.image_size = chosen.size
        self.swin = create_timm_model(
            chosen.name,
            family="swin",
            classes=(SwinTransformer, SwinTransformerV2),
            **chosen.timm_arguments(),
        )
        self.depths = [len(stage.blocks) for stage in self.swin.layers]
        self.num_blocks = sum(self.depths)
        self.stages = tuple(FeatureStage(info["num_chs"], info["reduction"]) for info in self.swin.feature_info)
        self.in_channels = chosen.in_channels
        self.pixel_mean, self.pixel_std = chosen.means, chosen.deviations
        self.patch_size = self.visible_unit_size
        for number, stage in enumerate(self.swin.layers):
            for block in stage.blocks:
                take_second_grid(block, self._grid_of_visible(chosen.patch_size << number))

    @property
    def visible_unit_size(self) -> int:
        return self._settings.patch_size << max(len(self.depths) - 2, 0)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"kind": type(self).__name__, **self._settings.as_record()}

    def forward_features(self, images: Images, edit: StageEdit | None = None) -> list[Float[Tensor, "b c h w"]]:
        maps = self._stage_maps(self.swin.patch_embed(images), edit)
        return [feature_map.permute(0, 3, 1, 2).contiguous() for feature_map in maps]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return tuple(block for stage in self.swin.layers for block in stage.blocks)

    def forward_pooled(self, images: Images) -> Float[Tensor, "b d"]:
        """Averages the tokens of the final LayerNorm, as SimMIM's classifier does."""
        return self.forward_features(images)[-1].mean(dim=(2, 3))

    def forward_visible(
        self, images: Images, visible: Int[Tensor, "b k"], fusion: StageFusion | None = None
    ) -> Float[Tensor, "b k d"]:
        """Encodes one visible unit of each 2 x 2; see `VisibleTokenBackbone.forward_visible`.

        A token of the last stage is of 2 x 2 units. `fusion` is given its map, normalized, as that of one large unit,
        and returns one of a token for each unit, rows and columns beyond the units being left out; None repeats it.
        """
        return self.tokens_of_units(self.forward_visible_features(images, visible)[-1], visible, fusion)

    def forward_visible_features(
        self, images: Images, visible: Int[Tensor, "b k"], edit: StageEdit | None = None
    ) -> list[Float[Tensor, "b c h w"]]:
        """Computes one feature map a stage of the image of visible units, of half the height and width.

        Args:
            images: Masked pixels may hold anything.
            visible: Row-major indices of the visible units, one of each 2 x 2.
            edit: As of `forward_features`, on the tokens of the smaller image.
        """
        small = self._moved_together(images, self._unit_of_cell(visible))
        tokens = self.swin.patch_embed.norm(self.swin.patch_embed.proj(small).permute(0, 2, 3, 1))
        return [feature_map.permute(0, 3, 1, 2) for feature_map in self._stage_maps(tokens, edit)]

    def tokens_of_units(
        self, last: Float[Tensor, "b d h w"], visible: Int[Tensor, "b k"], fusion: StageFusion | None = None
    ) -> Float[Tensor, "b k d"]:
        """Makes a token of each visible unit of the last of `forward_visible_features`, in the order of `visible`."""
        tokens = last.permute(0, 2, 3, 1)
        if fusion is None:
            factor = min(len(self.depths), 2)  # units along a token of the last stage
            by_unit = tokens.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
        else:
            by_unit = fusion([tokens[:, None]])[:, 0]
        rows, cols = self._grid_of_visible(self.visible_unit_size)
        encoded: Tensor = by_unit[:, :rows, :cols].flatten(1, 2)
        return encoded.gather(1, self._cells(visible)[..., None].expand(-1, -1, encoded.shape[2]))

    def read_visible(
        self, whole: Float[Tensor, "b c h w"], visible: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b c h_half w_half"]:
        """Reads a feature map of the whole image where its visible units are, as `forward_visible_features` lays them.

        A cell of a map that is larger than a unit is of no unit alone: 2 x 2 of them, from which a token of the smaller
        image has its units, are averaged.
        """
        if whole.shape[2] * self.visible_unit_size < self.image_size[0]:
            return F.avg_pool2d(whole, 2, ceil_mode=True)
        return self._moved_together(whole, self._unit_of_cell(visible))

    def initialize_as_mae(self) -> None:
        """Draws linear layers and the first convolution by Xavier's uniform; Swin V2's branches start open."""
        initialize_as_mae(self.swin, patch_embedding=self.swin.patch_embed.proj.weight)
        self.open_residuals()

    def prepare_for_finetuning(self, *, drop_path_rate: float) -> None:
        """Sets stochastic depth; SimMIM fine-tunes Swin in the form it pre-trains."""
        set_drop_path(self.blocks, drop_path_rate)
        self._settings = replace(self._settings, drop_path_rate=drop_path_rate)

    def open_residuals(self) -> None:
        """Starts the gains behind Swin V2's branches at 1; timm and the original start them at 0."""
        if isinstance(self.swin, SwinTransformerV2):
            for block in self.blocks:
                for norm in (block.get_submodule("norm1"), block.get_submodule("norm2")):
                    nn.init.ones_(norm.get_parameter("weight"))

    def to_timm(self) -> TimmSpec:
        """Describes this backbone to timm, which averages the tokens of the final norm as this one does."""
        arguments = {**self._settings.timm_sizes(), "global_pool": "avg"}
        return TimmSpec(self._settings.name, arguments, self.swin.state_dict(), classifier="head.fc")

    def layer_id(self, parameter_name: str) -> int:
        name = parameter_name.removeprefix("swin.")
        if name.startswith("patch_embed."):
            return 0
        block = re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name)
        if block:
            return sum(self.depths[: int(block[1])]) + int(block[2]) + 1
        merging = re.match(r"layers\.(\d+)\.downsample\.", name)
        if merging:
            return sum(self.depths[: int(merging[1])])
        return self.num_blocks + 1

    def _stage_maps(
        self, tokens: Float[Tensor, "b h w c"], edit: StageEdit | None
    ) -> list[Float[Tensor, "b _h _w _c"]]:
        """Computes what each stage puts out of the embedded patches; the last has passed the final norm."""
        maps = []
        for index, stage in enumerate(self.swin.layers):
            tokens = stage.downsample(tokens)
            if edit is not None:
                tokens = edit(index, tokens)
            for block in stage.blocks:
                tokens = block(tokens)
            maps.append(tokens)
        if edit is not None:
            tokens = edit(len(maps), tokens)
        maps[-1] = self.swin.norm(tokens)
        return maps

    def _grid_of_visible(self, stride: int) -> tuple[int, int]:
        """Tokens of a stage in the image of visible units, which a merging rounds up."""
        height, width = (side // 2 for side in self.image_size)
        return -(-height // stride), -(-width // stride)

    def _cells(self, visible: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
        """Row-major indices of the squares of 2 x 2 units that visible units are of."""
        cols = self.image_size[1] // self.visible_unit_size
        return visible // cols // 2 * (cols // 2) + visible % cols // 2

    def _unit_of_cell(self, visible: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
        """The visible unit of each square of 2 x 2, row-major."""
        return torch.empty_like(visible).scatter_(1, self._cells(visible), visible)

    def _moved_together(
        self, maps: Float[Tensor, "b c h w"], unit_of_cell: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b c h_half w_half"]:
        """The image, or map of an image, of half the sides made of one unit for each cell of 2 x 2."""
        rows, cols = (side // self.visible_unit_size for side in self.image_size)
        tiles = maps.unflatten(3, (cols, -1)).unflatten(2, (rows, -1)).permute(0, 2, 4, 1, 3, 5)
        of_image = torch.arange(len(maps), device=maps.device)[:, None]
        chosen = tiles[of_image, unit_of_cell // cols, unit_of_cell % cols]  # b k c p p
        chosen = chosen.unflatten(1, (rows // 2, cols // 2)).permute(0, 3, 1, 4, 2, 5)
        small: Tensor = chosen.flatten(4).flatten(2, 3)
        return small


def _require_whole_windows(image_size: tuple[int, int], patch_size: int, window_size: int, num_stages: int) -> None:
    if all(_fits(side, patch_size, window_size, num_stages) for side in image_size):
        return
    height, width = image_size
    one_window = patch_size * 2 ** (num_stages - 1) * window_size
    sides = [
        side
        for side in range(1, 2 * max(*image_size, one_window) + 1)
        if _fits(side, patch_size, window_size, num_stages)
    ]
    nearest = sorted(sorted(sides, key=lambda side: abs(side - max(image_size)))[:2])
    windows = [w for w in range(2, 33) if all(_fits(side, patch_size, w, num_stages) for side in image_size)]
    window_hint = f"; at {height}x{width} window_size {_or(windows)} fits" if windows else ""
    raise ValueError(
        f"image_size {height}x{width} with patch_size {patch_size} and window_size {window_size} leaves a stage that "
        f"is not whole windows; use image_size {_or(nearest)}{window_hint}"
    )


def _fits(side: int, patch_size: int, window_size: int, num_stages: int) -> bool:
    if side % (patch_size * 2 ** (num_stages - 1)):
        return False
    grids = [side // (patch_size * 2**stage) for stage in range(num_stages)]
    return all(grid % window_size == 0 or grid <= window_size for grid in grids)


def _or(values: Sequence[int]) -> str:
    return " or ".join(map(str, values))
