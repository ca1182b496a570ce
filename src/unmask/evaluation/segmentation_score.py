"""How well pixels and patches are classified."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

_IGNORED = 255
_NUM_CLASSES = 255  # numbers of an 8-bit mask that are classes


class SegmentationScore:
    """Counts, batch by batch, which classes pixels have and which are predicted."""

    def __init__(self) -> None:
        self.confusion = torch.zeros(_NUM_CLASSES, _NUM_CLASSES, dtype=torch.long)  # (in the mask, predicted)
        self.patch_hits = 0
        self.num_patches = 0

    def add_pixels(self, predicted: Int[Tensor, "b height width"], masks: Shaped[Tensor, "b height width"]) -> None:
        """Counts the pixels that have a class."""
        has_class = masks != _IGNORED
        pairs = masks[has_class].long() * _NUM_CLASSES + predicted[has_class]
        self.confusion += pairs.bincount(minlength=_NUM_CLASSES**2).view(_NUM_CLASSES, _NUM_CLASSES).cpu()

    def add_patches(self, predicted: Int[Tensor, "b rows cols"], classes: Int[Tensor, "b rows cols"]) -> None:
        """Counts the patches that have a class."""
        has_class = classes != _IGNORED
        self.patch_hits += int((predicted[has_class] == classes[has_class]).sum())
        self.num_patches += int(has_class.sum())

    def metrics(self) -> dict[str, float]:
        """Measures in percent what was counted.

        Raises:
            ValueError: No pixel had a class.
        """
        total = int(self.confusion.sum())
        if not total:
            raise ValueError("no pixel of the test masks has a class; 255 means none")
        hits = self.confusion.diagonal()
        union = self.confusion.sum(dim=0) + self.confusion.sum(dim=1) - hits
        intersection_over_union = (hits / union)[union > 0]
        return {
            "miou": 100.0 * float(intersection_over_union.double().mean()),
            "pixel_accuracy": 100.0 * int(hits.sum()) / total,
            "patch_accuracy": 100.0 * self.patch_hits / max(self.num_patches, 1),
        }
