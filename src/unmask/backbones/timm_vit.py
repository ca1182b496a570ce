"""ViT of timm, editable in groups of blocks and able to skip masked tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unmask.backbones.base import Pooling, StageFusion, VisibleTokenBackbone
from unmask.backbones.create import create_timm_model
from unmask.backbones.drop_path import set_drop_path
from unmask.backbones.initialize import initialize_as_mae
from unmask.backbones.sequence import (
    NUM_PREFIX_TOKENS,
    TIMM_POOLINGS,
    SequenceBackbone,
    as_grid,
    pool_blocks,
    run_stages,
)
from unmask.backbones.settings import TimmSettings, require_pooling, takes
from unmask.backbones.timm_spec import TimmSpec
from unmask.patches import as_patch_size, patch_sides, require_whole_patches
from unmask.positions import sincos_positions, sinusoid_positions
from unmask.types import Images, StageEdit

_PLAIN = "vit_tiny_patch16_224"
_TIMM_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class ViTSettings(TimmSettings):
    """Settings of `TimmViT`."""

    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    norm_eps: float | None = None
    positions: Literal["sincos", "sinusoid", "learned"] = "sincos"
    num_stages: int | None = None
    norm_after_pooling: bool = False
    pooling: Literal["mean", "cls"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_pooling(self.pooling)
        if self.norm_eps is not None and not 0.0 <= self.norm_eps <= 1.0:
            raise ValueError(f"model.norm_eps must lie in [0, 1], got {self.norm_eps}")
        patch_size = as_patch_size(self.patch_size)
        require_whole_patches(*self.size, patch_size)
        self.require_few_tokens(patch_size)
        if self.positions not in ("sincos", "sinusoid", "learned"):
            raise ValueError(f"positions must be 'sincos', 'sinusoid' or 'learned', got {self.positions!r}")


class TimmViT(SequenceBackbone, VisibleTokenBackbone):
    """A Vision Transformer (arXiv:2010.11929) of timm with a class token.

    Without an edit it equals timm's own forward bitwise. An edit at stage 0 sees the patch embeddings before
    positions are added (where SimMIM mixes in its mask token), at later stages the patch tokens between blocks.

    Args:
        name: timm's name, which sets width, depth, heads; no weights are loaded.
        image_size: Side, or (height, width), in pixels.
        patch_size: Side of a patch, or its (height, width), pixels.
        embed_dim, depth, num_heads, mlp_ratio: Replace the values of `name`; the last is the width of an MLP's hidden
            layer over `embed_dim`.
        norm_eps: Added to variances by every LayerNorm; None is timm's 1e-6. Weights of other programs may need theirs.
        positions: "sincos" fixes MAE's 2-D sine-cosine positions, "sinusoid" 1-D ones over the class token and the
            patches in row-major order, "learned" trains them.
        num_stages: Equal groups of blocks that count as stages; None takes 4, or the next smaller number that divides
            the depth.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        norm_after_pooling: Pool the patch tokens first and normalize the mean, as MAE's fine-tuning does; otherwise
            the final norm is applied to every token.
        pooling: What evaluation and classifiers read: "mean" over the patch tokens, or "cls", the class token.
        in_channels: Of the images.
        pixel_mean, pixel_std: Statistics of each channel, in 0..1, its images are normalized with.

    Raises:
        ValueError: The image is not whole patches, the depth not whole stages, timm has no such model, or it has other
            tokens than one class token in front of the patches.
    """

    default_layer_decay = 0.65  # MAE's code for ViT-B
    vit: Any  # timm's model

    @takes(ViTSettings)
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._settings = chosen = ViTSettings(**settings)
        self.patch_size = as_patch_size(chosen.patch_size)
        self.vit = create_timm_model(
            chosen.name,
            family="vit",
            classes=(VisionTransformer,),
            norm_eps=chosen.norm_eps,
            **chosen.timm_arguments(),
        )
        if self.vit.cls_token is None or self.vit.num_prefix_tokens != NUM_PREFIX_TOKENS:
            raise ValueError(
                f"{chosen.name} has no class token alone in front of its patches; use a plain ViT such as {_PLAIN}"
            )
        self.num_prefix_tokens = NUM_PREFIX_TOKENS
        self._take_sizes(self.patch_size)
        if chosen.positions == "sincos":
            self._fix_positions(sincos_positions(self.vit.embed_dim, self.grid, num_prefix_tokens=NUM_PREFIX_TOKENS))
        elif chosen.positions == "sinusoid":
            self._fix_positions(sinusoid_positions(self.vit.embed_dim, self.vit.pos_embed.shape[1]))

    @property
    def transformer(self) -> Any:
        return self.vit

    def forward_layers(self, images: Images) -> Iterator[Mapping[Pooling, Float[Tensor, "b d"]]]:
        """Pools the tokens after every block."""
        return pool_blocks(
            self._enter_blocks(self.vit.patch_embed(images)),
            self.vit.blocks,
            norm=self.vit.norm,
            norm_after_pooling=self.norm_after_pooling,
        )

    def forward_visible(
        self, images: Images, visible: Int[Tensor, "b k"], fusion: StageFusion | None = None
    ) -> Float[Tensor, "b prefix_plus_k d"]:
        assert fusion is None  # its stages are alike
        patches = self._embed_patches_at(images, visible)
        positions = self.vit.pos_embed[0, self.num_prefix_tokens :]
        patches = patches + positions[visible]
        prefix = self.vit.cls_token + self.vit.pos_embed[:, : self.num_prefix_tokens]
        tokens = torch.cat([prefix.expand(len(images), -1, -1), patches], dim=1)
        tokens = self.vit.norm_pre(self.vit.pos_drop(tokens))
        encoded: Tensor = self.vit.norm(self.vit.blocks(tokens))
        return encoded

    def prepare_for_finetuning(self, *, drop_path_rate: float) -> None:
        """Frees the positions and puts a fresh norm behind the pooling (MAE's `fc_norm`); the old norm is dropped."""
        self.vit.pos_embed.requires_grad_(True)
        self.vit.norm.reset_parameters()
        self.norm_after_pooling = True
        set_drop_path(self.vit.blocks, drop_path_rate)
        self._settings = replace(self._settings, drop_path_rate=drop_path_rate, norm_after_pooling=True)

    def to_timm(self) -> TimmSpec:
        """Describes this backbone to timm, which averages the patches before or behind the norm as this one does.

        Its positions can be trained, also where they are fixed here.
        """
        if self._settings.norm_eps not in (None, _TIMM_NORM_EPS):
            raise ValueError(
                f"timm's ViT adds {_TIMM_NORM_EPS:g} to variances, this one norm_eps={self._settings.norm_eps:g}; "
                "export it by format=torch_export or format=onnx, which keep the computation itself"
            )
        arguments = {
            **self._settings.timm_sizes(),
            "global_pool": TIMM_POOLINGS[self.pooling],
            "fc_norm": self.norm_after_pooling,
        }
        return TimmSpec(self._settings.name, arguments, self._weights_for_timm(), classifier="head")

    def initialize_as_mae(self) -> None:
        initialize_as_mae(self.vit, patch_embedding=self.vit.patch_embed.proj.weight)
        nn.init.normal_(self.vit.cls_token, std=0.02)

    def _stage_tokens(self, images: Images, edit: StageEdit | None) -> list[Float[Tensor, "b n d"]]:
        tokens = self.vit.patch_embed(images)
        if edit is not None:
            tokens = edit(0, as_grid(tokens, self.grid)).flatten(1, 2)
        tokens = self._enter_blocks(tokens)
        starts = range(0, self.num_blocks, self._blocks_per_stage)
        stages = [self.vit.blocks[start : start + self._blocks_per_stage] for start in starts]
        return run_stages(tokens, stages, grid=self.grid, edit=edit)

    def _enter_blocks(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b prefix_plus_n d"]:
        tokens: Tensor = self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(patches)))
        return tokens

    def _embed_patches_at(self, images: Images, visible: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """Embeds the chosen patches alone: their pixels are laid side by side as one image a patch high."""
        rows, cols = self.grid
        height, width = patch_sides(self.patch_size)
        tiles = images.unflatten(3, (cols, width)).unflatten(2, (rows, height))  # b c rows p cols p
        tiles = tiles.permute(0, 2, 4, 1, 3, 5)  # b rows cols c p p, still a view
        image_number = torch.arange(len(images), device=images.device)[:, None]
        chosen = tiles[image_number, visible // cols, visible % cols]  # b k c p p: only these pixels are copied
        strip = chosen.permute(0, 2, 3, 1, 4).flatten(3)  # b c p k*p
        embedded: Tensor = self.vit.patch_embed.proj(strip).flatten(2).transpose(1, 2)
        return embedded

    def _fix_positions(self, positions: Float[Tensor, "1 n d"]) -> None:
        self.vit.pos_embed.requires_grad_(False).copy_(positions)
