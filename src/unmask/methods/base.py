"""What every masked-image-modeling method has in common."""

from abc import abstractmethod
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.backbones.base import MaskedBackbone
from unmask.masking.base import MaskGenerator
from unmask.methods.backbone_module import BackboneModule
from unmask.optim.configure import configure_optimizer
from unmask.optim.param_groups import decay_groups, require_weight_decay_policy
from unmask.patches import PatchMask
from unmask.randomness import sample_keys
from unmask.types import ImageBatch, Images, MethodOutput


class Method(BackboneModule):
    """A method draws masks, computes its paper's loss and names its terms; this class does the rest.

    Args:
        mask_generator: Draws the masks, keyed by (seed, epoch, sample) in training and by (seed, sample) in
            validation, whose loss is therefore comparable from epoch to epoch.
        seed: Key of the masks.
        shared_masks: In training, all images of an optimizer step have one mask, on every device, in place of one each.
        weight_decay_policy: What weight decay applies to, see `unmask.optim.param_groups.is_decayed`.
        shared: See `BackboneModule`.

    Raises:
        ValueError: The masks do not fit the backbone's images, or the policy is unknown.
    """

    def __init__(
        self,
        *,
        mask_generator: MaskGenerator,
        seed: int = 0,
        shared_masks: bool = False,
        weight_decay_policy: str = "weights",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        require_weight_decay_policy(weight_decay_policy)
        self.mask_generator = mask_generator
        self.seed = seed
        self.shared_masks = shared_masks
        self.weight_decay_policy = weight_decay_policy

    @abstractmethod
    def forward(self, images: Images, mask: PatchMask | None = None) -> MethodOutput:
        """Computes the loss; with a mask given nothing is random but the backbone's own stochastic depth."""

    def training_output(self, images: Images, mask: PatchMask | None = None) -> MethodOutput:
        """Computes what a training step needs: the output of `forward`, whose prediction may be left out."""
        output: MethodOutput = self(images, mask)
        return output

    @final
    def training_step(self, batch: ImageBatch, batch_idx: int) -> Float[Tensor, ""]:
        output = self.training_output(batch.image, self.training_mask(batch))
        self.log_training({"loss": output.loss, **output.terms, **output.monitors}, batch, batch_idx)
        return output.loss

    @final
    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._log_held_out("val", batch)

    @final
    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._log_held_out("test", batch)

    @final
    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        return configure_optimizer(
            self,
            decay_groups(self, weight_decay_policy=self.weight_decay_policy),
            self.optimizer_factory,
            self.schedule_factory,
        )

    def draw_masks(self, images: Images, keys: Int[Tensor, " b"] | None = None) -> PatchMask:
        return self.mask_generator(images, keys)

    def held_out_mask(self, images: Images, index: Int[Tensor, " b"]) -> PatchMask:
        return self.draw_masks(images, sample_keys(self.seed, "held-out-mask", 0, index))

    def training_mask(self, batch: ImageBatch) -> PatchMask:
        """Draws the masks of a training batch, other ones in every epoch."""
        drawn_for = torch.full_like(batch.index, self.global_step) if self.shared_masks else batch.index
        return self.draw_masks(batch.image, sample_keys(self.seed, "train-mask", self.current_epoch, drawn_for))

    def _log_held_out(self, split: str, batch: ImageBatch) -> None:
        output: MethodOutput = self(batch.image, self.held_out_mask(batch.image, batch.index))
        self.add_held_out(split, {"loss": output.loss, **output.terms, **output.monitors}, batch)


def require_separate_patches(backbone: MaskedBackbone, method: str) -> None:
    """Refuses a backbone in which replacing a masked token would leave its pixels to be seen by the tokens around it.

    Args:
        backbone: To be masked by editing its tokens.
        method: As the configuration names the one that does so.

    Raises:
        ValueError: Tokens are computed from more than their own pixels.
    """
    if not backbone.has_separate_patches:
        raise ValueError(
            f"method={method} replaces masked tokens, and a {type(backbone).__name__} also reads their pixels through "
            "the tokens around them; use method=mae with this backbone, or a model=swin_*, swinv2_* or vit_*"
        )
