"""What a method and an evaluation may ask of a backbone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.backbones.timm_spec import TimmSpec
from unmask.patches import PatchSize
from unmask.types import FeatureStage, Images, StageEdit

Pooling = Literal["mean", "max", "cls"]  # over the patches; "cls" takes the class token instead

StageFusion = Callable[[Sequence[Float[Tensor, "b k _h _w _c"]]], Float[Tensor, "b k h w d"]]
"""What stages put out for each of k visible units, shallow to deep, the last one at the end -> one map of each unit."""

_SIMMIM_STD = 0.02  # SimMIM's code


class MaskedBackbone(nn.Module, ABC):
    """A backbone in stages whose tokens can be edited as they enter each stage.

    It knows nothing of masks: a method masks tokens through the edit, evaluation passes none.
    """

    can_skip_tokens: ClassVar[bool] = False  # whether it is a `VisibleTokenBackbone`
    has_separate_patches: ClassVar[bool] = True  # whether a token of the first stage sees its own pixels alone
    default_layer_decay: ClassVar[float]  # of the rate from one block to the one before it, in fine-tuning
    stages: tuple[FeatureStage, ...]  # shallow to deep; ViT: equal groups of blocks at one stride
    image_size: tuple[int, int]  # height, width of the images it takes, pixels
    num_blocks: int  # transformer blocks over all stages
    in_channels: int  # of the images
    pixel_mean: tuple[float, ...]  # statistics of each channel its images are normalized with, in 0..1
    pixel_std: tuple[float, ...]
    pooling: Pooling = "mean"  # by which `forward_pooled` pools the last layer
    visible_cell: int = 1  # side, in units, of squares that have one visible unit each where units are left out; 1: any

    @abstractmethod
    def forward_features(self, images: Images, edit: StageEdit | None = None) -> list[Float[Tensor, "b c h w"]]:
        """Computes one feature map a stage; the last has passed the final norm."""

    @abstractmethod
    def forward_pooled(self, images: Images) -> Float[Tensor, "b d"]:
        """Computes the one vector an image that evaluation reads, from the full image."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, shallow to deep: what is compiled, or computed again in the backward pass."""
        return ()

    @property
    def num_heads(self) -> int:
        """Attention heads of the first block."""
        first: Any = self.blocks[0]
        return int(first.attn.num_heads)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """What `forward_layers` goes through, shallow to deep; names end in a number counted from 1."""
        return tuple(f"stage {number}" for number in range(1, len(self.stages) + 1))

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The ways `forward_layers` pools each layer."""
        return ("mean", "max")

    def forward_layers(self, images: Images) -> Iterator[Mapping[Pooling, Float[Tensor, "b d"]]]:
        """Pools one layer after another, from the full image, in every way of `poolings`.

        The last layer has passed the final norm; pooled by `pooling` it is what `forward_pooled` computes.
        """
        for feature_map in self.forward_features(images):
            yield {"mean": feature_map.mean(dim=(2, 3)), "max": feature_map.amax(dim=(2, 3))}

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What rebuilds it: the `kind`, the name of the class, and the constructor's arguments as plain values."""

    @abstractmethod
    def layer_id(self, parameter_name: str) -> int:
        """Numbers a parameter by depth for layer-wise learning rates.

        0 is the stem, i + 1 block i, num_blocks + 1 the rest. The numbering is the one SimMIM and MAE share; a merging
        of patches counts with the block before it.
        """

    @property
    def embed_dim(self) -> int:
        return self.stages[-1].channels

    @property
    def mask_unit_size(self) -> PatchSize:
        """The smallest part of an image, in pixels, that can be masked: a token of the first stage."""
        return self.stages[0].stride

    @property
    def visible_unit_size(self) -> PatchSize:
        """The smallest part of an image, in pixels, that can be left out where that is possible: a mask unit."""
        return self.mask_unit_size

    @abstractmethod
    def prepare_for_finetuning(self, *, drop_path_rate: float) -> None:
        """Turns the pre-trained form into the one its paper fine-tunes, with stochastic depth of its own."""

    def initialize_as_simmim(self, mask_token: nn.Parameter) -> None:
        """Draws the mask token, and all weights afresh where SimMIM's code starts them in another way than timm does.

        As for Swin and Swin V2, weights stay and the token comes from a normal of deviation 0.02.
        """
        nn.init.trunc_normal_(mask_token, std=_SIMMIM_STD)

    def open_residuals(self) -> None:
        """Sets branches to full strength that this architecture starts at 0, as Swin V2 does; nothing elsewhere."""

    def to_timm(self) -> TimmSpec:
        """Describes this backbone to timm.

        Raises:
            ValueError: timm builds no network that computes the same.
        """
        raise ValueError(
            f"{type(self).__name__} has no counterpart in timm; export it by format=torch_export or format=onnx, "
            "which keep the computation itself"
        )


class VisibleTokenBackbone(MaskedBackbone):
    """A backbone that can also leave masked units out altogether, as MAE needs."""

    can_skip_tokens: ClassVar[bool] = True
    patch_size: PatchSize  # pixels that a token stands for as it is put out; a mask unit is one patch or several
    num_prefix_tokens: int  # class and register tokens in front of the patches
    num_fused_stages: int = 0  # first stages that a decoder is given beside the last one

    @abstractmethod
    def forward_visible(
        self, images: Images, visible: Int[Tensor, "b k"], fusion: StageFusion | None = None
    ) -> Float[Tensor, "b prefix_plus_n d"]:
        """Encodes the mask units at the row-major indices `visible`; no block computes anything for the others.

        Args:
            images: Masked pixels may hold anything.
            visible: Each index once.
            fusion: Combines the first `num_fused_stages` stages with the last one in front of the final norm; None
                takes the last alone.

        Returns:
            The prefix tokens, then the patches of each unit row by row, unit after unit in the order of `visible`.
        """

    @abstractmethod
    def initialize_as_mae(self) -> None:
        """Draws all weights afresh as MAE does (A.1: Xavier uniform)."""
