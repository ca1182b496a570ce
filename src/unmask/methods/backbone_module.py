"""What every module that trains a backbone has in common."""

from abc import ABC
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from torch import Tensor, nn

from unmask.backbones.attention import prefer_fast_attention
from unmask.backbones.base import MaskedBackbone
from unmask.methods.split_means import SplitMeans
from unmask.patches import PatchMask, PatchSize
from unmask.types import ImageBatch, Images, OptimizerFactory, PixelStatistics, ScheduleFactory

Readings = Mapping[str, Float[Tensor, ""]]


class BackboneModule(LightningModule, ABC):
    """Holds a backbone and how it is trained, and logs means over the images of all devices.

    `train/*` is the mean over the images of an optimizer step, on all devices and in all accumulated batches, `val/*`
    and `test/*` that over all images of the split, however they were divided.

    Args:
        backbone: What is trained and kept.
        optimizer: Completed with parameter groups.
        schedule: Completed with the optimizer and the number of steps.
        init_from: Path of the weights the run starts from, of this program or another; read by the command, not here,
            and never when a finished run is rebuilt.
    """

    is_classifier: ClassVar[bool] = False  # whether `forward` gives logits
    has_moving_targets: ClassVar[bool] = False  # set by a network trained along; losses of two epochs do not compare

    def __init__(
        self,
        *,
        backbone: MaskedBackbone,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.init_from = init_from
        self._held_out_means = SplitMeans()
        self._step_sums: dict[str, Tensor] = {}
        self._step_images = 0

    @property
    def exported_backbone(self) -> MaskedBackbone:
        """The backbone whose weights are worth keeping."""
        return self.backbone

    @property
    def exported_classifier(self) -> nn.Module | None:
        """What turns pooled features into logits; None where nothing is classified."""
        return None

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks of all its networks, which `trainer.compile` and the like apply to."""
        return self.backbone.blocks

    @property
    def mask_unit_size(self) -> PatchSize:
        """The smallest part of an image, in pixels, that this method can mask."""
        return self.backbone.mask_unit_size

    @property
    def mask_cell(self) -> int | None:
        """Side, in units, of the squares in each of which a mask must leave one unit visible; None: it need not."""
        return None

    def on_weights_loaded(self, names: Collection[str]) -> Sequence[str]:
        """Called when weights of a file, those named of the `state_dict`, have replaced the ones drawn.

        Returns:
            What became of networks that no file fills, a line each.
        """
        return ()

    def borrowed_statistics(self, images: Images) -> PixelStatistics | None:
        """The true mean and deviation that `MethodOutput.prediction` was restored with; None if it is raw output."""
        return None

    def draw_masks(self, images: Images, keys: Int[Tensor, " b"] | None = None) -> PatchMask | None:
        """Draws one mask an image, by key or from torch's generator; None where the module masks nothing."""
        return None

    def held_out_mask(self, images: Images, index: Int[Tensor, " b"]) -> PatchMask | None:
        """Draws the masks under which validation and test images are always judged and drawn; None likewise."""
        return None

    def on_fit_start(self) -> None:
        is_bfloat16 = str(self.trainer.precision).startswith("bf16")
        prefer_fast_attention(self, device=self.device, is_bfloat16=is_bfloat16)

    def log_training(self, readings: Readings, batch: ImageBatch, batch_idx: int) -> None:
        """Logs `train/<name>` for the optimizer step this batch belongs to.

        Devices are asked for their sums at the steps that are logged alone, once for all readings.
        """
        num_images = len(batch.image)
        named = {f"train/{name}": reading.detach() for name, reading in readings.items()}
        is_alone = self.trainer.world_size == 1
        if is_alone and self.trainer.accumulate_grad_batches == 1:
            self.log_dict(named, batch_size=num_images)
        elif is_alone or (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for name, reading in named.items():
                self._step_sums[name] = self._step_sums.get(name, 0.0) + reading.float() * num_images
            self._step_images += num_images
            if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch:
                self.log_dict(self._take_step_means(), batch_size=num_images)

    def add_held_out(self, split: str, readings: Readings, batch: ImageBatch) -> None:
        """Adds a batch's means to those logged as `<split>/<name>` once the split has been read on all devices."""
        named = {f"{split}/{name}": reading for name, reading in readings.items()}
        self._held_out_means.add(named, batch.is_counted.sum())

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self._held_out_means.take())

    def on_test_epoch_end(self) -> None:
        self.log_dict(self._held_out_means.take())

    def _take_step_means(self) -> dict[str, Tensor]:
        sums = torch.stack([*self._step_sums.values(), torch.full((), self._step_images, device=self.device)])
        total = self.trainer.strategy.reduce(sums, reduce_op="sum")
        means = dict(zip(self._step_sums, total[:-1] / total[-1], strict=True))
        self._step_sums, self._step_images = {}, 0
        return means
