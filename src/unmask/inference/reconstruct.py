"""The picture masked image modeling is known by: what a method makes of the masked parts of given images."""

import logging
from pathlib import Path

import torch

from unmask.backbones.base import MaskedBackbone
from unmask.callbacks.panel import reconstruction_panel, reconstruction_pixels
from unmask.callbacks.pictures import save_figure
from unmask.data.files.splits import Split
from unmask.inference.base import Checkpoint, FindImages, Inference
from unmask.methods.backbone_module import BackboneModule
from unmask.randomness import sample_keys

_log = logging.getLogger("unmask")


class Reconstruct(Inference):
    """Draws images, what was masked of them, and what the method makes of it, into `reconstruction.png`.

    Args:
        image: An image file, a folder or a list; None takes the split of the data.
        split: Which split.
        num_images: Rows of the picture at most; of more images they are spread evenly.
        seed: Key of the masks.
        crop_pct: See `ImageDataModule.crop_pct`; None: of the checkpoint's data, else 0.875.

    Raises:
        ValueError: `num_images` is not positive, the checkpoint's method masks or predicts nothing, or an image cannot
            be read.
    """

    def __init__(
        self,
        *,
        image: str | None,
        split: Split = "test",
        num_images: int = 8,
        seed: int = 0,
        crop_pct: float | None = None,
    ) -> None:
        if num_images < 1:
            raise ValueError(f"eval.num_images must be at least 1, got {num_images}")
        self.image, self.split, self.num_images = image, split, num_images
        self.seed, self.crop_pct = seed, crop_pct

    def load(self, checkpoint: Checkpoint) -> tuple[BackboneModule, MaskedBackbone]:
        method = checkpoint.load_module()
        if method.is_classifier:
            raise ValueError(
                f"{checkpoint.path} holds a classifier, which masks nothing; name a checkpoint of pre-training"
            )
        return method, method.exported_backbone

    def run(self, model: BackboneModule, find: FindImages, *, run_dir: Path, device: torch.device) -> None:
        shown = find(self.image, self.split)
        chosen = evenly_spaced(len(shown), self.num_images)
        batches = list(shown.part(chosen).batches(device))
        images = torch.cat([batch.image for batch in batches])
        keys = sample_keys(self.seed, "shown-mask", 0, torch.arange(len(images), device=device))
        output = model(images, model.draw_masks(images, keys))
        if output.prediction is None:
            raise ValueError(f"this {type(model).__name__} predicts no pixels; there is nothing to reconstruct")
        backbone = model.exported_backbone
        drawn = reconstruction_pixels(
            images,
            output.mask,
            output.prediction,
            pixel_mean=backbone.pixel_mean,
            pixel_std=backbone.pixel_std,
            borrowed=model.borrowed_statistics(images),
        )
        masked = output.mask.at_pixels().float().mean().item()
        figure = reconstruction_panel(
            drawn,
            title=f"{type(model).__name__}: {len(images)} image(s)",
            subtitle=f"{masked:.0%} of each image masked  ·  seed {self.seed}  ·  loss {output.loss.item():.4f}",
        )
        path = run_dir / "reconstruction.png"
        save_figure(figure, path)
        _log.info("\n".join(f"row {row + 1}: {shown.name(index)}" for row, index in enumerate(chosen)))
        _log.info(f"loss {output.loss.item():.4f}; picture in {path}")


def evenly_spaced(total: int, count: int) -> list[int]:
    """Takes up to `count` numbers below `total`, evenly apart."""
    count = min(count, total)
    return [number * total // count for number in range(count)]
