"""What every masked-image-modelling method has in common."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, final

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from torch import Tensor, nn

from unmask.backbones.attention import prefer_fast_attention
from unmask.backbones.base import MaskedBackbone
from unmask.masking.base import MaskGenerator
from unmask.methods.split_means import SplitMeans
from unmask.optim.configure import configure_optimizer
from unmask.optim.param_groups import WEIGHT_DECAY_POLICIES, decay_groups
from unmask.patches import PatchMask
from unmask.randomness import sample_keys
from unmask.types import ImageBatch, Images, MethodOutput, OptimizerFactory, PixelStatistics, ScheduleFactory


class Method(LightningModule, ABC):
    """A method draws masks, computes its paper's loss and names its terms; this class does the rest.

    Args:
        backbone: What is pre-trained and kept.
        mask_generator: Draws the masks, keyed by (seed, epoch, sample) in training and by (seed, sample) in
            validation, whose loss is therefore comparable from epoch to epoch.
        optimizer: Completed with parameter groups.
        schedule: Completed with the optimizer and the number of steps.
        seed: Key of the masks.
        shared_masks: In training, all images of an optimizer step have one mask, on every device, in place of one each.
        weight_decay_policy: What weight decay applies to, a rule of `unmask.optim.param_groups.is_decayed`.
        init_from: Path of the weights the run starts from, of this program or another; read by the command, not here,
            and never when a finished run is rebuilt.

    Raises:
        ValueError: The masks do not fit the backbone's images, or the rule is unknown.
    """

    def __init__(
        self,
        *,
        backbone: MaskedBackbone,
        mask_generator: MaskGenerator,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        seed: int = 0,
        shared_masks: bool = False,
        weight_decay_policy: str = "weights",
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        if weight_decay_policy not in WEIGHT_DECAY_POLICIES:
            raise ValueError(
                f"method.weight_decay_policy must be one of {', '.join(WEIGHT_DECAY_POLICIES)}, got "
                f"{weight_decay_policy!r}"
            )
        self.backbone = backbone
        self.mask_generator = mask_generator
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.seed = seed
        self.shared_masks = shared_masks
        self.weight_decay_policy = weight_decay_policy
        self.init_from = init_from
        self._held_out_means = SplitMeans()

    @abstractmethod
    def forward(self, images: Images, mask: PatchMask | None = None) -> MethodOutput:
        """Computes the loss; with a mask given nothing is random but the backbone's own stochastic depth."""

    @property
    def exported_backbone(self) -> MaskedBackbone:
        """The backbone whose weights are worth keeping."""
        return self.backbone

    def on_weights_loaded(self, names: Collection[str]) -> None:
        """Called when weights of a file, those named of the `state_dict`, have replaced the ones drawn."""

    @property
    def exported_classifier(self) -> nn.Module | None:
        """What turns pooled features into logits; None where nothing is classified."""
        return None

    def borrowed_statistics(self, images: Images) -> PixelStatistics | None:
        """The true mean and deviation that `MethodOutput.prediction` was restored with; None if it is raw output."""
        return None

    @final
    def training_step(self, batch: ImageBatch, batch_idx: int) -> Float[Tensor, ""]:
        output: MethodOutput = self(batch.image, self._training_mask(batch))
        readings = {**output.terms, **output.monitors}
        logged = {f"train/{name}": reading.detach() for name, reading in readings.items()}
        self.log_dict({"train/loss": output.loss.detach(), **logged}, batch_size=len(batch.image))
        return output.loss

    @final
    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._log_held_out("val", batch)

    @final
    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._log_held_out("test", batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self._held_out_means.take())

    def on_test_epoch_end(self) -> None:
        self.log_dict(self._held_out_means.take())

    @final
    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        return configure_optimizer(
            self,
            decay_groups(self, weight_decay_policy=self.weight_decay_policy),
            self.optimizer_factory,
            self.schedule_factory,
        )

    @final
    def on_fit_start(self) -> None:
        is_bfloat16 = str(self.trainer.precision).startswith("bf16")
        prefer_fast_attention(self, device=self.device, is_bfloat16=is_bfloat16)

    def held_out_mask(self, images: Images, index: Int[Tensor, " b"]) -> PatchMask:
        """Draws the masks under which held-out images are always judged and drawn."""
        return self.mask_generator(images, sample_keys(self.seed, "held-out-mask", 0, index))

    def _training_mask(self, batch: ImageBatch) -> PatchMask:
        drawn_for = torch.full_like(batch.index, self.global_step) if self.shared_masks else batch.index
        keys = sample_keys(self.seed, "train-mask", self.current_epoch, drawn_for)
        return self.mask_generator(batch.image, keys)

    def _log_held_out(self, split: str, batch: ImageBatch) -> None:
        output = self(batch.image, self.held_out_mask(batch.image, batch.index))
        readings = {**output.terms, **output.monitors}
        logged = {f"{split}/{name}": reading for name, reading in readings.items()}
        self._held_out_means.add({f"{split}/loss": output.loss, **logged}, batch.is_counted.sum())
