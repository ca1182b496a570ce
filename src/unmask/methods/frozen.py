"""A classifier trained on a frozen backbone."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.methods.supervised import Supervised
from unmask.optim.configure import configure_optimizer
from unmask.optim.param_groups import decay_groups
from unmask.types import Images

Pool = Literal["auto", "mean", "max", "cls"]


class FrozenBackbone(Supervised):
    """Trains a classifier alone, by cross-entropy with hard labels; the backbone is frozen and in eval mode throughout.

    The final norm of pre-training stays. A head that reads patches gets those of the last feature map, class token
    left out.

    Differs: MAE's code leaves the whole network in training mode, which changes nothing in a ViT without stochastic
    depth; here no mode of the backbone can matter.

    Args:
        pool: What a head of pooled features reads: "mean" or "max" over the patches, "cls" the class token; "auto" is
            the class token where the backbone has one, else the mean.
        settings: `backbone`, `num_classes`, `head`, `optimizer` and `schedule`, see `Supervised`.

    Raises:
        ValueError: The backbone cannot be pooled so, or batch normalization would see a single image.
    """

    def __init__(self, *, pool: Pool = "mean", **settings: Any) -> None:
        super().__init__(**settings, mixup=0.0, cutmix=0.0, label_smoothing=0.0)
        poolings = self.backbone.poolings
        self.pool = ("cls" if "cls" in poolings else "mean") if pool == "auto" else pool
        if self.pool not in poolings:
            raise ValueError(
                f"{type(self.backbone).__name__} cannot be pooled by pool={pool!r}; "
                f"use one of {', '.join(('auto', *poolings))}"
            )
        self.backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "FrozenBackbone":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Images) -> Float[Tensor, "b classes"]:
        logits: Tensor = self.head(self.features(images))
        return logits.float()

    @property
    def what_is_read(self) -> str:
        """Names the features in a protocol line."""
        return "patches" if self.head.reads_patches else self.pool

    @property
    def exported_classifier(self) -> nn.Module:
        """What turns pooled features into logits.

        Raises:
            ValueError: The head reads something else than the pooled features a backbone is exported with.
        """
        if self.what_is_read != self.backbone.pooling:
            raise ValueError(
                f"this classifier reads {self.what_is_read}, the exported backbone gives {self.backbone.pooling}; "
                "export the backbone alone by classifier=false"
            )
        return super().exported_classifier

    @torch.no_grad()
    def features(self, images: Images) -> Float[Tensor, "b *n d"]:
        """Computes what the head reads."""
        if self.head.reads_patches:
            return self.backbone.forward_features(images)[-1].flatten(2).transpose(1, 2)
        *_, last = self.backbone.forward_layers(images)
        return last[self.pool]

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        return configure_optimizer(self, decay_groups(self.head), self.optimizer_factory, self.schedule_factory)
