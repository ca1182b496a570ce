"""BEiT's transformer of timm, which SimMIM pre-trains as its ViT."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.models.beit import Beit
from torch import Tensor, nn

from unmask.backbones.base import Pooling
from unmask.backbones.create import create_timm_model
from unmask.backbones.drop_path import set_drop_path
from unmask.backbones.sequence import (
    TIMM_POOLINGS,
    SequenceBackbone,
    as_grid,
    pool_blocks,
    run_stages,
)
from unmask.backbones.settings import TimmSettings, require_pooling, require_square_patch, takes
from unmask.backbones.timm_spec import TimmSpec
from unmask.patches import require_whole_patches
from unmask.types import Images, StageEdit

_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"


_STD = 0.02  # SimMIM's code
_MAX_TOKENS = 2**13  # each pair of them has a number in a table: half a GiB


@dataclass(frozen=True, kw_only=True)
class BeitSettings(TimmSettings):
    """Settings of `TimmBeit`."""

    patch_size: int = 16
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    relative_bias: str = "shared"
    layer_scale: float = 0.1
    num_stages: int | None = None
    norm_after_pooling: bool = False
    pooling: Literal["mean", "cls"] = "mean"

    def __post_init__(self) -> None:
        require_square_patch(self.patch_size)
        super().__post_init__()
        require_pooling(self.pooling)
        require_whole_patches(*self.size, self.patch_size)
        self.require_few_tokens(self.patch_size, _MAX_TOKENS)
        if self.relative_bias not in ("shared", "per_block"):
            raise ValueError(f"relative_bias must be 'shared' or 'per_block', got {self.relative_bias!r}")

    def timm_sizes(self) -> Mapping[str, Any]:
        is_shared = self.relative_bias == "shared"
        return {
            **super().timm_sizes(),
            "use_abs_pos_emb": False,
            "use_shared_rel_pos_bias": is_shared,
            "use_rel_pos_bias": not is_shared,
            "init_values": self.layer_scale,
        }


class TimmBeit(SequenceBackbone):
    """The Vision Transformer of BEiT (arXiv:2106.08254), without absolute positions, as SimMIM's official ViT-B.

    Attention adds a learned bias for each relative position, one table for all blocks in pre-training and one a block
    in fine-tuning; queries and values have biases, keys none; each branch is scaled by a learned vector. Without an
    edit it equals timm's own forward bitwise. An edit at stage 0 sees the patch embeddings, before the class token
    joins them; at later stages the patch tokens between blocks.

    Args:
        name: timm's name, which sets width, depth, heads; no weights are loaded.
        image_size: Side, or (height, width), in pixels.
        patch_size: Side of a patch, pixels.
        embed_dim, depth, num_heads, mlp_ratio: Replace the values of `name`; the last is the width of an MLP's hidden
            layer over `embed_dim`.
        relative_bias: "shared" has one table of relative positions, "per_block" one a block.
        layer_scale: Where the learned scale of each branch starts; 0.1 in SimMIM's configuration of ViT-B.
        num_stages: Equal groups of blocks that count as stages; None takes 4, or the next smaller number that divides
            the depth.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        norm_after_pooling: Pool the patch tokens first and normalize the mean, as fine-tuning does; otherwise the
            final norm is applied to every token.
        pooling: What evaluation and classifiers read: "mean" over the patch tokens, or "cls", the class token.
        in_channels: Of the images.
        pixel_mean, pixel_std: Statistics of each channel, in 0..1, its images are normalized with.

    Raises:
        ValueError: The image is not whole patches, the depth not whole stages, or timm has no such model.
    """

    default_layer_decay = 0.65  # SimMIM's recipe of ViT-B
    beit: Any  # timm's model

    @takes(BeitSettings)
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._settings = BeitSettings(**settings)
        self.patch_size = self._settings.patch_size
        self.beit = self._create()
        self._take_sizes(self.patch_size)

    @property
    def transformer(self) -> Any:
        return self.beit

    def forward_layers(self, images: Images) -> Iterator[Mapping[Pooling, Float[Tensor, "b d"]]]:
        """Pools the tokens after every block."""
        tokens, shared_bias = self._enter_blocks(self.beit.patch_embed(images))
        return pool_blocks(
            tokens,
            [partial(block, shared_rel_pos_bias=shared_bias) for block in self.beit.blocks],
            norm=self.beit.norm,
            norm_after_pooling=self.norm_after_pooling,
        )

    def initialize_as_simmim(self, mask_token: nn.Parameter) -> None:
        """Draws as SimMIM's code pre-trains its ViT: normals of deviation 0.02 truncated there, at one deviation.

        What is left has the deviation 0.0108. Those of the last layer of each branch of block n = 1, 2 ... are
        divided by sqrt(2 n), as in BEiT. The bias of the patch embedding starts at 0.
        """
        draw = partial(nn.init.trunc_normal_, std=_STD, a=-_STD, b=_STD)
        draw(mask_token)
        draw(self.beit.cls_token)
        for module in self.beit.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                draw(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.beit.fix_init_weight()

    def prepare_for_finetuning(self, *, drop_path_rate: float) -> None:
        """Gives each block its own copy of the shared table and puts a fresh norm behind the pooling (`fc_norm`)."""
        if self._settings.relative_bias == "shared":
            self._spread_relative_bias()
        self.beit.norm.reset_parameters()
        self.norm_after_pooling = True
        set_drop_path(self.beit.blocks, drop_path_rate)
        self._settings = replace(self._settings, drop_path_rate=drop_path_rate, norm_after_pooling=True)

    def to_timm(self) -> TimmSpec:
        """Describes this backbone to timm, which averages the patches before or behind the norm as this one does."""
        arguments = {
            **self._settings.timm_sizes(),
            "global_pool": TIMM_POOLINGS[self.pooling],
            "use_fc_norm": self.norm_after_pooling,
        }
        return TimmSpec(self._settings.name, arguments, self._weights_for_timm(), classifier="head")

    def _create(self) -> Any:
        chosen = self._settings
        return create_timm_model(
            chosen.name, family="beit", classes=(Beit,), use_fc_norm=False, **chosen.timm_arguments()
        )

    def _spread_relative_bias(self) -> None:
        weights = self.beit.state_dict()
        table = weights.pop(_SHARED_TABLE)
        weights |= {f"blocks.{block}.attn.relative_position_bias_table": table for block in range(self.num_blocks)}
        self._settings = replace(self._settings, relative_bias="per_block")
        per_block = self._create()
        per_block.load_state_dict(weights)
        self.beit = per_block.to(table.device).train(self.beit.training)

    def _stage_tokens(self, images: Images, edit: StageEdit | None) -> list[Float[Tensor, "b n d"]]:
        patches = self.beit.patch_embed(images)
        if edit is not None:
            patches = edit(0, as_grid(patches, self.grid)).flatten(1, 2)
        tokens, shared_bias = self._enter_blocks(patches)

        def stage(first: int, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
            for block in self.beit.blocks[first : first + self._blocks_per_stage]:
                tokens = block(tokens, shared_rel_pos_bias=shared_bias)
            return tokens

        stages = [partial(stage, first) for first in range(0, self.num_blocks, self._blocks_per_stage)]
        return run_stages(tokens, stages, grid=self.grid, edit=edit)

    def _enter_blocks(
        self, patches: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b prefix_plus_n d"], Float[Tensor, "heads tokens tokens"] | None]:
        """Puts the class token in front; the second is the relative bias all blocks share, where they do."""
        tokens = torch.cat([self.beit.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        shared_bias = None if self.beit.rel_pos_bias is None else self.beit.rel_pos_bias()
        return self.beit.pos_drop(tokens), shared_bias
