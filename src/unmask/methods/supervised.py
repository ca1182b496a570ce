"""Supervised training: from scratch as the baseline of every comparison, or from pre-trained weights as fine-tuning."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unmask.methods.backbone_module import BackboneModule
from unmask.optim.configure import configure_optimizer
from unmask.optim.param_groups import layer_decay_groups, require_weight_decay_policy
from unmask.types import ImageBatch, Images


class Supervised(BackboneModule):
    """Trains a backbone and a classifier with labels (the recipe MAE and SimMIM share, MAE A.2).

    Fine-tuning runs this very class, so it differs from training from scratch in the starting weights, the form of
    the backbone (`MaskedBackbone.prepare_for_finetuning`) and the layer decay alone. Stochastic depth belongs to the
    backbone, random erasing to the data's augmentation.

    Differs:
        - Mixup and cutmix pair an image with the one half a batch away, where timm pairs it with its mirror: with an
          even number of images on each device the pairs, and so the run, are the same on any number of devices. Of an
          odd number, and of a step that is accumulated, pairs stay within what a device computes at a time.

    Args:
        num_classes: Number of classes.
        head: Completed with the width of the pooled features and the number of classes.
        layer_decay: Factor of the learning rate from one block to the one before it, in (0, 1]; 1 is off,
            None is the default of the backbone's family.
        mixup, cutmix: Beta-distribution parameters; 0 is off. Where both are on, each batch takes one of them, with
            equal chance.
        label_smoothing: Fraction of the target spread over all classes.
        weight_decay_policy: What weight decay applies to, see `unmask.optim.param_groups.is_decayed`.
        shared: See `BackboneModule`.

    Raises:
        ValueError: There are no classes to learn, or the policy is unknown; in training, batch norm has a single image
            a step.
    """

    is_classifier: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_classes: int,
        head: Callable[..., nn.Module],
        layer_decay: float | None = 1.0,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        label_smoothing: float = 0.1,
        weight_decay_policy: str = "weights",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if num_classes < 2:
            raise ValueError(
                f"supervised training needs labeled images of at least 2 classes, the data has {num_classes}; "
                "use a labeled data set, or pre-train without labels by method=mae or method=simmim"
            )
        require_weight_decay_policy(weight_decay_policy)
        self.weight_decay_policy = weight_decay_policy
        self.head = head(in_features=self.backbone.embed_dim, num_classes=num_classes)
        self.layer_decay = self.backbone.default_layer_decay if layer_decay is None else layer_decay
        self.mix = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            prob=1.0 if mixup or cutmix else 0.0,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )
        self.training_loss = SoftTargetCrossEntropy()
        self.held_out_loss = torch.nn.CrossEntropyLoss()
        self.output_order: Tensor | None
        self.register_buffer("output_order", None, persistent=False)

    def forward(self, images: Images) -> Float[Tensor, "b classes"]:
        logits: Tensor = self.head(self.backbone.forward_pooled(images))
        return logits.float()

    def reorder_outputs(self, order: Int[Tensor, " classes"]) -> None:
        """Lets validation and test compare the output numbered `order[k]` with label k.

        Args:
            order: Each output once.
        """
        self.register_buffer("output_order", order.to(self.device), persistent=False)

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
        self.log_training({"loss": loss}, batch, batch_idx)
        return loss

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._judge("val", batch, ranks=(1,))

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._judge("test", batch, ranks=(1, 5))

    def _judge(self, split: str, batch: ImageBatch, *, ranks: Sequence[int]) -> None:
        """Adds the loss and, for each rank, the fraction of images whose class is among the likeliest so many."""
        logits = self(batch.image)
        logits = logits if self.output_order is None else logits[:, self.output_order]
        readings = {"loss": self.held_out_loss(logits, batch.label)}
        for rank in ranks:
            likeliest = logits.topk(min(rank, logits.shape[1]), dim=1).indices
            readings[f"top{rank}"] = (likeliest == batch.label[:, None]).any(dim=1).double().mean()
        self.add_held_out(split, readings, batch)

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        optimizer = self.optimizer_factory
        peak = optimizer([{"params": [torch.nn.Parameter(torch.empty(0))]}]).defaults["lr"]
        groups = layer_decay_groups(
            self,
            layer_id=self._layer_id,
            num_layers=self.backbone.num_blocks + 1,
            layer_decay=self.layer_decay,
            lr=peak,
            weight_decay_policy=self.weight_decay_policy,
        )
        return configure_optimizer(self, groups, optimizer, self.schedule_factory)

    def _layer_id(self, parameter_name: str) -> int:
        backbone_name = parameter_name.removeprefix("backbone.")
        is_head = backbone_name == parameter_name
        return self.backbone.num_blocks + 1 if is_head else self.backbone.layer_id(backbone_name)

    def _mix(self, images: Images, labels: Int[Tensor, " b"]) -> tuple[Images, Float[Tensor, "b classes"]]:
        """Mixes each image with the one half a batch away; of an odd number the last image counts twice.

        timm mixes with the mirror, so the second half is reversed before and after.
        """
        count, half = len(images), (len(images) + 1) // 2
        first = torch.arange(half, device=images.device)
        order = torch.cat([first, 2 * half - 1 - first])
        taken = order.clamp(max=count - 1)
        mixed, targets = self.mix(images[taken], labels[taken])
        return mixed[order][:count], targets[order][:count]  # the order is its own inverse
