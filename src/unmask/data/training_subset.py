"""Which of the training images are used."""

from jaxtyping import Int
from torch import Tensor

from unmask.data.dataset import ImageDataset
from unmask.data.splits import hold_out


class TrainingSubset:
    """All training images, those chosen of them, or a fraction of these.

    Args:
        dataset: The whole training split.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self._whole = self._chosen = dataset

    def choose(self, positions: Int[Tensor, " m"] | None) -> ImageDataset:
        """Keeps the images at `positions` of the whole split, in rising order; None brings all back."""
        self._chosen = self._whole if positions is None else self._whole.subset(positions)
        return self._chosen

    def limit(self, fraction: float, *, seed: int) -> ImageDataset:
        """Keeps a fraction of the chosen images, at least one, evenly over the classes; calling it again starts anew.

        Args:
            fraction: In (0, 1]; 1 keeps all.
            seed: Key of which ones are kept.
        """
        if fraction >= 1.0:
            return self._chosen
        _, kept = hold_out(self._chosen.labels, max(1, round(fraction * len(self._chosen))), seed=seed)
        return self._chosen.subset(kept)
