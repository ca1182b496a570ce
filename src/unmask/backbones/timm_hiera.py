"""Hiera of timm, which computes the visible mask units alone."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.models.hiera import Hiera, Unroll
from torch import Tensor, nn

from unmask.backbones.base import Pooling, StageFusion, VisibleTokenBackbone
from unmask.backbones.create import create_timm_model
from unmask.backbones.drop_path import set_drop_path
from unmask.backbones.initialize import initialize_as_mae
from unmask.backbones.settings import TimmSettings, require_square_patch, takes
from unmask.backbones.timm_spec import TimmSpec
from unmask.patches import are_whole_cells, patch_grid
from unmask.types import FeatureStage, Images, StageEdit

_MAX_STAGES = 8
_MAX_TOKENS = 2**20
_PUBLISHED_STAGES = 4


@dataclass(frozen=True, kw_only=True)
class HieraSettings(TimmSettings):
    """Settings of `TimmHiera`. A stage that pools makes one token of two a side."""

    patch_size: int = 4
    embed_dim: int | None = None
    depths: Sequence[int] | None = None
    num_heads: int | None = None
    pool_last_stage: bool = False

    def __post_init__(self) -> None:
        require_square_patch(self.patch_size)
        super().__post_init__()
        if not 2 <= self.num_stages <= _MAX_STAGES:
            raise ValueError(f"model.depths has {self.num_stages} stage(s); a Hiera has 2 to {_MAX_STAGES}")
        self.require_few_tokens(self.patch_size, _MAX_TOKENS)
        self._require_whole_units()

    @property
    def num_stages(self) -> int:
        return _PUBLISHED_STAGES if self.depths is None else len(self.depths)

    @property
    def num_poolings(self) -> int:
        """Stages that begin by pooling: all behind the first, without the last in pre-training."""
        return self.num_stages - (1 if self.pool_last_stage else 2)

    @property
    def mask_unit_size(self) -> int:
        """Side in pixels of what is masked at a time: one token of the last stage where that pools."""
        return self.patch_size << (self.num_stages - 1)

    def timm_sizes(self) -> Mapping[str, Any]:
        """As of other backbones; attention is within mask units in the first half of the stages, as published."""
        sizes = {name: value for name, value in super().timm_sizes().items() if name not in ("patch_size", "depths")}
        num_local = self.num_stages // 2
        return {
            **sizes,
            **({} if self.depths is None else {"stages": list(self.depths)}),
            "patch_kernel": [2 * self.patch_size - 1] * 2,
            "patch_stride": [self.patch_size] * 2,
            "patch_padding": [self.patch_size - 1] * 2,
            "mask_unit_size": [1 << (self.num_stages - 1)] * 2,
            "mask_unit_attn": [stage < num_local for stage in range(self.num_stages)],
            "q_pool": self.num_poolings,
        }

    def _require_whole_units(self) -> None:
        unit = self.mask_unit_size
        if are_whole_cells(self.size, unit):
            return
        height, width = self.size
        fitting = [max(1, round(side / unit)) * unit for side in self.size]
        raise ValueError(
            f"{height}x{width} px images are not whole mask units of {unit} px ({unit // self.patch_size} tokens of "
            f"{self.patch_size} px a side, as {self.num_stages} stages need); use {fitting[0]}x{fitting[1]} px images, "
            "or another model.patch_size"
        )


class TimmHiera(VisibleTokenBackbone):
    """A Hiera (arXiv:2306.00989) of timm: stages whose tokens lie unit by unit, so that units can be left out.

    Whole images are encoded as timm's own `forward_intermediates` does, bitwise, and visible units as it does where it
    is given a mask. Its first convolution reads beyond a token's own pixels: masked pixels are set to 0 in front of it
    (sec. 3.1), and a mask token put in the place of a token would not mask it. An edit at stage 0 sees the tokens
    before positions are added, one at a later stage what the stage before put out, since a stage pools within its
    first block.

    Args:
        name: timm's name, which sets width, depths, heads and kind of positions; no weights are loaded.
        image_size: Side, or (height, width), in pixels.
        patch_size: Distance between tokens of the first stage, pixels; each is computed from a square of
            2 * patch_size - 1.
        embed_dim, depths, num_heads, mlp_ratio: Replace the values of `name`; `embed_dim` and `num_heads` are of the
            first stage and double with each, `mlp_ratio` is the width of an MLP's hidden layer over that of its stage.
        pool_last_stage: Whether the last stage begins by pooling, as in fine-tuning and in timm; the paper's code
            leaves that out in pre-training, where patches of the stage before are predicted.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        in_channels: Of the images.
        pixel_mean, pixel_std: Statistics of each channel, in 0..1, its images are normalized with.

    Raises:
        ValueError: The image is not whole mask units, the number of stages is none of a Hiera, or timm has no such
            model.
    """

    default_layer_decay = 0.65  # MAE's of ViT-B
    has_separate_patches = False
    num_prefix_tokens = 0
    hiera: Any  # timm's model

    @takes(HieraSettings)
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._settings = chosen = HieraSettings(**settings)
        self.image_size = chosen.size
        self.in_channels = chosen.in_channels
        self.pixel_mean, self.pixel_std = chosen.means, chosen.deviations
        self._take(self._create())

    def _take(self, hiera: Any) -> None:
        """Sets timm's model and what is read off it."""
        chosen = self._settings
        self.hiera = hiera
        self.num_blocks = len(hiera.blocks)
        widths = [info["num_chs"] for info in hiera.feature_info]
        if widths[0] % self.num_heads:
            raise ValueError(f"model.embed_dim={widths[0]} does not split into model.num_heads={self.num_heads}")
        strides = [chosen.patch_size << min(stage, chosen.num_poolings) for stage in range(len(widths))]
        self.stages = tuple(FeatureStage(width, stride) for width, stride in zip(widths, strides, strict=True))
        self.patch_size = strides[-1]
        self.num_fused_stages = chosen.num_poolings

    @property
    def mask_unit_size(self) -> int:
        return self._settings.mask_unit_size

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"kind": type(self).__name__, **self._settings.as_record()}

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return tuple(self.hiera.blocks)

    @property
    def num_heads(self) -> int:
        return int(self.hiera.blocks[0].attn.heads)

    def forward_features(self, images: Images, edit: StageEdit | None = None) -> list[Float[Tensor, "b c h w"]]:
        maps = self._stage_maps(images, edit)
        maps[-1] = self.hiera.head.norm(maps[-1])
        return [feature_map.permute(0, 3, 1, 2).contiguous() for feature_map in maps]

    def forward_pooled(self, images: Images) -> Float[Tensor, "b d"]:
        """Averages the tokens of the last stage and normalizes the mean, as timm does."""
        pooled: Tensor = self.hiera.forward_head(self.hiera.forward_features(images), pre_logits=True)
        return pooled

    def forward_layers(self, images: Images) -> Iterator[Mapping[Pooling, Float[Tensor, "b d"]]]:
        """Pools the tokens of every stage; those of the last are normalized behind the pooling."""
        *early, last = (feature_map.flatten(1, 2) for feature_map in self._stage_maps(images, None))
        for tokens in early:
            yield {"mean": tokens.mean(dim=1), "max": tokens.amax(dim=1)}
        norm = self.hiera.head.norm
        yield {"mean": norm(last.mean(dim=1)), "max": norm(last.amax(dim=1))}

    def forward_visible(
        self, images: Images, visible: Int[Tensor, "b k"], fusion: StageFusion | None = None
    ) -> Float[Tensor, "b n d"]:
        num_units = patch_grid(self.image_size, self.mask_unit_size)
        is_kept = torch.zeros(len(images), num_units[0] * num_units[1], dtype=torch.bool, device=images.device)
        is_kept = is_kept.scatter_(1, visible, True)
        tokens = self.hiera.patch_embed(images, mask=is_kept.unflatten(1, num_units).unsqueeze(1))
        tokens = self.hiera.unroll(self.hiera._pos_embed(tokens))
        by_unit = tokens.unflatten(1, (-1, is_kept.shape[1]))  # b tokens-of-a-unit units c
        chosen = visible[:, None, :, None].expand(-1, by_unit.shape[1], -1, by_unit.shape[3])
        tokens = by_unit.gather(2, chosen).flatten(1, 2)
        maps: list[Tensor] = []
        for block_number, block in enumerate(self.hiera.blocks):
            tokens = block(tokens)
            if block_number in self.hiera.stage_ends:
                maps.append(self.hiera.reroll(tokens, block_number, mask=is_kept))  # b k h w c
        last = maps[-1] if fusion is None else fusion([*maps[: self.num_fused_stages], maps[-1]])
        encoded: Tensor = self.hiera.head.norm(last.flatten(1, 3))
        return encoded

    def initialize_as_mae(self) -> None:
        """Draws linear layers and the first convolution by Xavier's uniform, as the paper's code; positions stay."""
        initialize_as_mae(self.hiera, patch_embedding=self.hiera.patch_embed.proj.weight)

    def prepare_for_finetuning(self, *, drop_path_rate: float) -> None:
        """Lets the last stage pool and puts a fresh norm behind the pooling of its tokens."""
        self._settings = replace(self._settings, pool_last_stage=True)
        pooling = self._create()
        pooling.load_state_dict(self.hiera.state_dict())
        pooling.head.norm.reset_parameters()
        self._take(pooling.to(self.hiera.patch_embed.proj.weight.device).train(self.hiera.training))
        set_drop_path(self.hiera.blocks, drop_path_rate)
        self._settings = replace(self._settings, drop_path_rate=drop_path_rate)

    def to_timm(self) -> TimmSpec:
        """Describes this backbone to timm, which normalizes the mean of the last tokens as this one does."""
        arguments = {**self._settings.timm_sizes(), "global_pool": "avg"}
        return TimmSpec(self._settings.name, arguments, self.hiera.state_dict(), classifier="head.fc")

    def layer_id(self, parameter_name: str) -> int:
        name = parameter_name.removeprefix("hiera.")
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block[1]) + 1
        return 0 if name.startswith(("patch_embed.", "pos_embed")) else self.num_blocks + 1

    def _create(self) -> Any:
        chosen = self._settings
        return create_timm_model(chosen.name, family="hiera", classes=(Hiera,), **chosen.timm_arguments())

    def _stage_maps(self, images: Images, edit: StageEdit | None) -> list[Float[Tensor, "b h w c"]]:
        """Computes what each stage puts out, before the final norm."""
        tokens = self.hiera.patch_embed(images)
        if edit is not None:
            tokens = edit(0, tokens.unflatten(1, self.hiera.tokens_spatial_shape)).flatten(1, 2)
        tokens = self.hiera.unroll(self.hiera._pos_embed(tokens))
        maps: list[Tensor] = []
        for block_number, block in enumerate(self.hiera.blocks):
            tokens = block(tokens)
            if block_number not in self.hiera.stage_ends:
                continue
            maps.append(self.hiera.reroll(tokens, block_number))
            if edit is not None:
                maps[-1], tokens = self._edited(edit, len(maps), maps[-1], block_number)
        return maps

    def _edited(
        self, edit: StageEdit, stage: int, feature_map: Float[Tensor, "b h w c"], block_number: int
    ) -> tuple[Float[Tensor, "b h w c"], Float[Tensor, "b n c"]]:
        """Edits what enters a stage; returns what the stage before has put out, and the tokens unit by unit.

        What is edited behind the last stage is what that stage puts out.
        """
        edited = edit(stage, feature_map)
        remaining, _ = self.hiera.reroll.schedule[block_number]
        unroll = Unroll(tuple(feature_map.shape[1:3]), (1, 1), remaining)
        return edited if stage == len(self.stages) else feature_map, unroll(edited.flatten(1, 2))
