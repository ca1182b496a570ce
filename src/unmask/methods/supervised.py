"""Supervised training: from scratch as the baseline of every comparison, or from pre-trained weights as fine-tuning."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unmask.backbones.attention import prefer_fast_attention
from unmask.backbones.base import MaskedBackbone
from unmask.methods.split_means import SplitMeans
from unmask.optim.configure import configure_optimizer
from unmask.optim.param_groups import layer_decay_groups
from unmask.types import ImageBatch, Images, OptimizerFactory, ScheduleFactory


class Supervised(LightningModule):
    """Trains a backbone and a classifier with labels (the recipe MAE and SimMIM share, MAE A.2).

    Fine-tuning runs this very class, so it differs from training from scratch in the starting weights, the form of
    the backbone (`MaskedBackbone.prepare_for_finetuning`) and the layer decay alone. Stochastic depth belongs to the
    backbone, random erasing to the data's augmentation.

    Args:
        backbone: Trained as it is.
        num_classes: Number of classes.
        head: Completed with the width of the pooled features and the number of classes.
        optimizer: Completed with parameter groups.
        schedule: Completed with the optimizer and the number of steps.
        layer_decay: Factor of the learning rate from one block to the one before it, in (0, 1]; 1 is off.
        mixup, cutmix: Beta-distribution parameters; 0 is off. Where both are on, each batch takes one of them, with
            equal chance.
        label_smoothing: Fraction of the target spread over all classes.
        init_from: As of `Method`.

    Raises:
        ValueError: There are no classes to learn; in training, batch norm has a single image a step.
    """

    def __init__(
        self,
        *,
        backbone: MaskedBackbone,
        num_classes: int,
        head: Callable[..., nn.Module],
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        layer_decay: float = 1.0,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        label_smoothing: float = 0.1,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f"supervised training needs labelled images of at least 2 classes, the data has {num_classes}; "
                "use a labelled data set, or pre-train without labels by method=mae or method=simmim"
            )
        self.backbone = backbone
        self.head = head(in_features=backbone.embed_dim, num_classes=num_classes)
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.layer_decay = layer_decay
        self.init_from = init_from
        self.mix = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            prob=1.0 if mixup or cutmix else 0.0,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )
        self.training_loss = SoftTargetCrossEntropy()
        self.held_out_loss = torch.nn.CrossEntropyLoss()
        self._held_out_means = SplitMeans()

    def forward(self, images: Images) -> Float[Tensor, "b classes"]:
        logits: Tensor = self.head(self.backbone.forward_pooled(images))
        return logits.float()

    @property
    def exported_backbone(self) -> MaskedBackbone:
        """The backbone whose weights are worth keeping."""
        return self.backbone

    def on_weights_loaded(self, names: Collection[str]) -> None:
        """As of `Method`."""

    @property
    def exported_classifier(self) -> nn.Module:
        """What turns pooled features into logits."""
        return self.head

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Float[Tensor, ""]:
        if len(batch.image) == 1 and any(isinstance(part, _BatchNorm) for part in self.modules()):
            raise ValueError(
                "batch norm compares the images of a step, and this step has one on each device; use a larger "
                "global_batch_size, fewer accumulated batches, or head=linear"
            )
        images, targets = self._mix(batch.image, batch.label)
        loss: Tensor = self.training_loss(self(images), targets)
        self.log("train/loss", loss.detach(), batch_size=len(images))
        return loss

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._add_held_out("val", batch, ranks=(1,))

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._add_held_out("test", batch, ranks=(1, 5))

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self._held_out_means.take())

    def on_test_epoch_end(self) -> None:
        self.log_dict(self._held_out_means.take())

    def _add_held_out(self, split: str, batch: ImageBatch, *, ranks: Sequence[int]) -> None:
        """Adds the loss and, for each rank, the fraction of images whose class is among the likeliest so many."""
        logits = self(batch.image)
        readings = {f"{split}/loss": self.held_out_loss(logits, batch.label)}
        for rank in ranks:
            likeliest = logits.topk(min(rank, logits.shape[1]), dim=1).indices
            readings[f"{split}/top{rank}"] = (likeliest == batch.label[:, None]).any(dim=1).double().mean()
        self._held_out_means.add(readings, batch.is_counted.sum())

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        optimizer = self.optimizer_factory
        peak = optimizer([{"params": [torch.nn.Parameter(torch.empty(0))]}]).defaults["lr"]
        groups = layer_decay_groups(
            self,
            layer_id=self._layer_id,
            num_layers=self.backbone.num_blocks + 1,
            layer_decay=self.layer_decay,
            lr=peak,
        )
        return configure_optimizer(self, groups, optimizer, self.schedule_factory)

    def on_fit_start(self) -> None:
        is_bfloat16 = str(self.trainer.precision).startswith("bf16")
        prefer_fast_attention(self, device=self.device, is_bfloat16=is_bfloat16)

    def _layer_id(self, parameter_name: str) -> int:
        backbone_name = parameter_name.removeprefix("backbone.")
        is_head = backbone_name == parameter_name
        return self.backbone.num_blocks + 1 if is_head else self.backbone.layer_id(backbone_name)

    def _mix(self, images: Images, labels: Int[Tensor, " b"]) -> tuple[Images, Float[Tensor, "b classes"]]:
        """Mixes each image with its mirror in the batch; timm wants an even batch, so an odd one repeats its last."""
        count = len(images)
        if count % 2:
            images, labels = torch.cat([images, images[-1:]]), torch.cat([labels, labels[-1:]])
        mixed, targets = self.mix(images.clone(), labels)  # timm writes into what it is given
        return mixed[:count], targets[:count]
