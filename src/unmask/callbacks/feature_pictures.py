"""What the features tell apart, as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from PIL import Image
from torch import Tensor

from unmask.callbacks.held_out_features import pooled_features
from unmask.callbacks.optional_file import write_optional
from unmask.callbacks.panel import as_shown
from unmask.callbacks.trainer_state import require_positive
from unmask.eval_mode import eval_mode
from unmask.types import Images

FEATURES_FOLDER, NEIGHBORS_FOLDER = "features", "neighbors"
_FEWEST_CELLS = 4  # along the shorter side of a map that is worth drawing
_SIDE, _GAP = 112, 4  # pixels of an image, and between two
_QUANTILE = 0.02  # of the values at either end, drawn as the extreme colors


class FeaturePictures(Callback):
    """Draws, as training goes on, the features of the same held-out images: of patches as colors, and who is near whom.

    `<run directory>/features/epoch_0010.png` shows images and, below each, its deepest map of features of at least four
    cells to a side (else the finest there is), the first three principal components over all patches drawn as red,
    green and blue; the components are turned so that colors change as little as they can from one picture to the next.
    `neighbors/epoch_0010.png` shows in each row an image and those of some held-out images whose pooled features are
    most alike by cosine, the nearest first. Whole images are read, in eval mode; training is the same with the pictures
    as without. It stands before the callbacks that write checkpoints, which hold the colors.

    Args:
        num_images: Drawn, spread evenly over those read.
        num_read: Held-out images read, among which neighbors are sought.
        num_neighbors: Of each image.
        every_n_epochs: Epochs between pictures; the last ones are drawn as training ends.

    Raises:
        ValueError: A number is not positive.
    """

    def __init__(
        self, *, num_images: int = 6, num_read: int = 96, num_neighbors: int = 5, every_n_epochs: int = 1
    ) -> None:
        require_positive("num_images", num_images)
        require_positive("num_read", num_read)
        require_positive("num_neighbors", num_neighbors)
        require_positive("every_n_epochs", every_n_epochs)
        self.num_images, self.num_read, self.num_neighbors = num_images, num_read, num_neighbors
        self.every_n_epochs = every_n_epochs
        self._images: Images | None = None
        self._shown: Images | None = None
        self._colors: Tensor | None = None  # of the last picture
        self._drawn_at_step: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images, self._drawn_at_step = None, None
        if isinstance(trainer.strategy, FSDPStrategy):  # a part of a sharded network cannot be asked for features
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._images = data.held_out_images(self.num_read).image.cpu()
        pixels = as_shown(self._images, pixel_mean=data.pixel_mean, pixel_std=data.pixel_std)
        self._shown = _fitted(pixels, mode="bilinear")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs_done = trainer.current_epoch + 1
        if epochs_done % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, epochs_done)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._drawn_at_step:
            self._draw(trainer, pl_module, trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"colors": self._colors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._colors = state_dict["colors"]

    def _draw(self, trainer: Trainer, pl_module: LightningModule, epochs_done: int) -> None:
        if self._images is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self._shown is not None
        self._drawn_at_step = trainer.global_step
        count = min(self.num_images, len(self._images))
        step = len(self._images) // count
        drawn = torch.arange(count) * (step + (step >= count))  # one more: data may go round their classes in step
        maps, pooled = self._read(trainer, pl_module, drawn)
        if not (torch.isfinite(maps).all() and torch.isfinite(pooled).all()):  # others say so; there is nothing to see
            return
        colors = color_patches(maps, like=self._colors)
        self._colors = colors
        if not trainer.is_global_zero:
            return
        folder, name = Path(trainer.default_root_dir), f"epoch_{epochs_done:04d}.png"
        painted = _fitted(_stretched(colors), mode="nearest")
        _save(_sheet([list(self._shown[drawn]), list(painted)]), folder / FEATURES_FOLDER / name)
        near = nearest(pooled, drawn, count=self.num_neighbors)
        rows = [[self._shown[own], *self._shown[others]] for own, others in zip(drawn, near, strict=True)]
        _save(_sheet(rows), folder / NEIGHBORS_FOLDER / name)

    def _read(
        self, trainer: Trainer, pl_module: LightningModule, drawn: Int[Tensor, " k"]
    ) -> tuple[Float[Tensor, "k c h w"], Float[Tensor, "b d"]]:
        """The map of features of the images drawn, and the pooled features of all."""
        assert self._images is not None
        module: Any = pl_module
        backbone, plugin = module.exported_backbone, trainer.precision_plugin
        with eval_mode(backbone), torch.no_grad(), plugin.forward_context():
            maps = backbone.forward_features(plugin.convert_input(self._images[drawn].to(pl_module.device)))
        fine = [found for found in maps if min(found.shape[2:]) >= _FEWEST_CELLS]
        return (fine[-1] if fine else maps[0]).float().cpu(), pooled_features(trainer, pl_module, self._images)


def color_patches(
    maps: Float[Tensor, "k c h w"], *, like: Float[Tensor, "earlier 3 rows cols"] | None = None
) -> Float[Tensor, "k 3 h w"]:
    """The first three principal components over all patches, each of deviation 1 unless it is the same everywhere.

    Args:
        maps: Features of patches.
        like: Earlier components of the same images, which the new ones are turned towards (orthogonal Procrustes,
            Schoenemann 1966): components of alike variance may change places, and their signs mean nothing.
    """
    patches = maps.movedim(1, -1).flatten(0, 2)  # patches, channels
    patches = patches - patches.mean(dim=0)
    count, channels = patches.shape
    if count <= channels:  # the smaller of the two matrices that have these components
        components = torch.linalg.eigh(patches @ patches.T).eigenvectors[:, -3:].flip(1)
    else:
        components = patches @ torch.linalg.eigh(patches.T @ patches).eigenvectors[:, -3:].flip(1)
    components = F.pad(components, (0, 3 - components.shape[1]))
    components = components / components.std(dim=0, correction=0).clamp(min=1e-6)
    if like is not None and like.shape == (len(maps), 3, *maps.shape[2:]):
        earlier = like.movedim(1, -1).flatten(0, 2)
        left, _, right = torch.linalg.svd(components.T @ earlier)
        components = components @ left @ right
    colors: Tensor = components.view(len(maps), *maps.shape[2:], 3).movedim(-1, 1)
    return colors


def nearest(features: Float[Tensor, "b d"], queries: Int[Tensor, " k"], *, count: int) -> Int[Tensor, "k neighbors"]:
    """The numbers of the features most alike by cosine, the nearest first, without the query itself."""
    unit = F.normalize(features, dim=1)
    likeness = unit[queries] @ unit.T
    likeness[torch.arange(len(queries)), queries] = -torch.inf
    numbers: Tensor = likeness.topk(min(count, len(features) - 1), dim=1).indices
    return numbers


def _stretched(colors: Float[Tensor, "k 3 h w"]) -> Float[Tensor, "k 3 h w"]:
    flat = colors.movedim(1, 0).flatten(1)
    low, high = (flat.quantile(part, dim=1)[:, None, None] for part in (_QUANTILE, 1.0 - _QUANTILE))
    return ((colors - low) / (high - low).clamp(min=1e-6)).clamp(0.0, 1.0)


def _fitted(images: Float[Tensor, "b 3 h w"], *, mode: str) -> Float[Tensor, "b 3 side side2"]:
    """Resizes to a longer side of 112 px."""
    height, width = images.shape[2:]
    scale = _SIDE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(images, size, mode=mode, **({"antialias": True} if mode == "bilinear" else {}))


def _sheet(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Rows of images on white, in 0..1, the first of each row a little apart from the others."""
    height, width = rows[0][0].shape[1:]
    columns = max(map(len, rows))
    sheet = torch.ones(3, len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            top, left = number * (height + _GAP), column * (width + _GAP)
            sheet[:, top : top + height, left : left + width] = picture
    return Image.fromarray((sheet.movedim(0, -1) * 255).round().to(torch.uint8).numpy())


def _save(picture: Image.Image, path: Path) -> None:
    """Writes a picture that the run goes on without."""
    write_optional(path, lambda partial: picture.save(partial, format="PNG"))
