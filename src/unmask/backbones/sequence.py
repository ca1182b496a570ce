"""Backbones whose tokens form one sequence: the class token, then the patches row by row."""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.backbones.base import MaskedBackbone, Pooling
from unmask.patches import PatchSize, patch_grid
from unmask.types import FeatureStage, Images, StageEdit

NUM_PREFIX_TOKENS = 1  # the class token
TIMM_POOLINGS: Mapping[Pooling, str] = {"mean": "avg", "cls": "token"}  # timm's words


class SequenceBackbone(MaskedBackbone):
    """What the plain transformers of timm share: equal blocks over one sequence of tokens, and a norm behind them."""

    grid: tuple[int, int]  # patches: rows, columns
    norm_after_pooling: bool  # pool the patch tokens first and normalize the mean, as fine-tuning does

    _settings: Any  # of the class, a `TimmSettings`

    @property
    @abstractmethod
    def transformer(self) -> Any:
        """The model of timm."""

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"kind": type(self).__name__, **self._settings.as_record()}

    def _take_sizes(self, patch_size: PatchSize) -> None:
        """Sets what is read off the settings and timm's model, once both are there."""
        chosen = self._settings
        self.image_size = chosen.size
        self.num_blocks = len(self.transformer.blocks)
        self._blocks_per_stage = blocks_per_stage(self.num_blocks, chosen.num_stages)
        self.grid = patch_grid(self.image_size, patch_size)
        stage = FeatureStage(self.transformer.embed_dim, patch_size)
        self.stages = (stage,) * (self.num_blocks // self._blocks_per_stage)
        self.norm_after_pooling = chosen.norm_after_pooling
        self.pooling = chosen.pooling
        self.in_channels = chosen.in_channels
        self.pixel_mean, self.pixel_std = chosen.means, chosen.deviations

    @abstractmethod
    def _stage_tokens(self, images: Images, edit: StageEdit | None) -> list[Float[Tensor, "b n d"]]:
        """Computes what each stage puts out, before the final norm."""

    def forward_features(self, images: Images, edit: StageEdit | None = None) -> list[Float[Tensor, "b c h w"]]:
        maps = self._stage_tokens(images, edit)
        maps[-1] = self.transformer.norm(maps[-1])
        return [as_map(tokens, self.grid) for tokens in maps]

    def forward_pooled(self, images: Images) -> Float[Tensor, "b d"]:
        """Averages the patch tokens, the class token left out (MAE's `global_pool`); or takes the class token."""
        tokens = self._stage_tokens(images, None)[-1]
        if self.pooling == "cls":
            pooled: Tensor = self.transformer.norm(tokens[:, 0])
        elif self.norm_after_pooling:
            pooled = self.transformer.norm(tokens[:, NUM_PREFIX_TOKENS:].mean(dim=1))
        else:
            pooled = self.transformer.norm(tokens)[:, NUM_PREFIX_TOKENS:].mean(dim=1)
        return pooled

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return tuple(self.transformer.blocks)

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(f"block {number}" for number in range(1, self.num_blocks + 1))

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        return ("mean", "max", "cls")

    def layer_id(self, parameter_name: str) -> int:
        """Numbers as `MaskedBackbone.layer_id`; a table that all blocks share counts with the final norm (SimMIM)."""
        name = parameter_name.partition(".")[2]  # behind the name of timm's model
        if name.startswith("patch_embed.") or name in ("pos_embed", "cls_token"):
            return 0
        block = re.match(r"blocks\.(\d+)\.", name)
        return int(block[1]) + 1 if block else self.num_blocks + 1

    def _weights_for_timm(self) -> dict[str, Tensor]:
        """Calls the norm behind the pooling `fc_norm`, as timm does."""
        norm = "fc_norm." if self.norm_after_pooling else "norm."
        weights = self.transformer.state_dict()
        return {re.sub(r"^norm\.", norm, name): weight for name, weight in weights.items()}


def pool_blocks(
    tokens: Float[Tensor, "b n d"],
    blocks: Iterable[Callable[[Tensor], Tensor]],
    *,
    norm: Callable[[Tensor], Tensor],
    norm_after_pooling: bool,
) -> Iterator[Mapping[Pooling, Float[Tensor, "b d"]]]:
    """Runs blocks and pools what each puts out in every way of `SequenceBackbone.poolings`.

    Tokens are as the next block reads them; those of the last block are normalized before pooling or after it.
    """
    *early, last = blocks
    for block in early:
        tokens = block(tokens)
        yield _pool(tokens)
    tokens = last(tokens)
    if norm_after_pooling:
        yield {pooling: norm(vector) for pooling, vector in _pool(tokens).items()}
    else:
        yield _pool(norm(tokens))


def blocks_per_stage(num_blocks: int, num_stages: int | None) -> int:
    """Divides blocks into equal stages; None takes 4 stages, or the next smaller number that divides the depth.

    Raises:
        ValueError: The depth is not that many equal stages.
    """
    if num_stages is None:
        num_stages = next(count for count in (4, 3, 2, 1) if num_blocks % count == 0)
    if num_blocks % num_stages:
        raise ValueError(f"{num_blocks} blocks are not {num_stages} equal stages; change num_stages or depth")
    return num_blocks // num_stages


def as_grid(patches: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b h w d"]:
    """Lays patches out in their (rows, cols)."""
    laid_out: Tensor = patches.unflatten(1, grid)
    return laid_out


def as_map(tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b d h w"]:
    """Makes a feature map of a sequence, the class token left out."""
    return as_grid(tokens[:, NUM_PREFIX_TOKENS:], grid).permute(0, 3, 1, 2).contiguous()


def run_stages(
    tokens: Float[Tensor, "b n d"],
    stages: Sequence[Callable[[Tensor], Tensor]],
    *,
    grid: tuple[int, int],
    edit: StageEdit | None,
) -> list[Float[Tensor, "b n d"]]:
    """Runs the stages one after another and returns what each puts out.

    Patches are edited as they enter the second stage and each later one, and once more behind the last; the class token
    is left as it is. What enters the first stage was edited before positions were added.
    """
    maps = []
    for index, stage in enumerate(stages):
        if edit is not None and index > 0:
            tokens = _edited(edit, index, tokens, grid)
        tokens = stage(tokens)
        maps.append(tokens)
    if edit is not None:
        maps[-1] = _edited(edit, len(stages), tokens, grid)
    return maps


def _edited(
    edit: StageEdit, stage: int, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]
) -> Float[Tensor, "b n d"]:
    prefix, patches = tokens[:, :NUM_PREFIX_TOKENS], tokens[:, NUM_PREFIX_TOKENS:]
    return torch.cat([prefix, edit(stage, as_grid(patches, grid)).flatten(1, 2)], dim=1)


def _pool(tokens: Float[Tensor, "b n d"]) -> dict[Pooling, Float[Tensor, "b d"]]:
    patches = tokens[:, NUM_PREFIX_TOKENS:]
    return {"mean": patches.mean(dim=1), "max": patches.amax(dim=1), "cls": tokens[:, 0]}
