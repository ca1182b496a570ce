"""The splits of a source that have been read, and which of the training images are used."""

from collections.abc import Callable, Mapping

from jaxtyping import Int
from torch import Tensor

from unmask.data.dataset import ImageDataset
from unmask.data.files.splits import Split
from unmask.data.splits import hold_out


class LoadedSplits:
    """Reads each split once; of the training split it serves all images, those chosen, or a fraction of these.

    Args:
        load: Reads a split; raises a ValueError where there is none.
        replaced: Data sets that take the place of what `load` would read.
    """

    def __init__(
        self, load: Callable[[Split], ImageDataset], replaced: Mapping[Split, ImageDataset] | None = None
    ) -> None:
        self._load = load
        self._datasets: dict[Split, ImageDataset] = dict(replaced or {})
        self._whole: ImageDataset | None = None  # training split, once a part of it has been asked for
        self._chosen: ImageDataset | None = None

    def __contains__(self, split: Split) -> bool:
        return split in self._datasets

    def __getitem__(self, split: Split) -> ImageDataset:
        if split not in self._datasets:
            self._datasets[split] = self._load(split)
        return self._datasets[split]

    def with_dataset(self, split: Split, dataset: ImageDataset) -> "LoadedSplits":
        """The same splits with another data set as one of them; these stay as they are."""
        return LoadedSplits(self._load, self._datasets | {split: dataset})

    def choose_training(self, positions: Int[Tensor, " m"] | None) -> None:
        """Keeps the training images at `positions` of the whole split for every later use; None brings all back."""
        whole = self._remembered_whole()
        self._chosen = whole if positions is None else whole.subset(positions)
        self._datasets["train"] = self._chosen

    def limit_training(self, fraction: float, *, seed: int = 0) -> None:
        """Keeps a fraction of the chosen training images for every later use; calling it again starts anew.

        At least one image is kept, and they are spread evenly over the classes.

        Args:
            fraction: In (0, 1]; 1 keeps all.
            seed: Key of which ones are kept.
        """
        whole = self._remembered_whole()
        chosen = whole if self._chosen is None else self._chosen
        if fraction < 1.0:
            _, kept = hold_out(chosen.labels, max(1, round(fraction * len(chosen))), seed=seed)
            chosen = chosen.subset(kept)
        self._datasets["train"] = chosen

    def _remembered_whole(self) -> ImageDataset:
        if self._whole is None:
            self._whole = self["train"]
        return self._whole

    def fingerprints(self) -> dict[str, str]:
        """Names the content of each split that has been read, as far as it has been limited."""
        return {split: dataset.fingerprint for split, dataset in self._datasets.items()}
