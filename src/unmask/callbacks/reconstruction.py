"""Pictures of what a method reconstructs as it learns."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure

from unmask.callbacks.asked_of_modules import HoldsImagesOut, MasksImages
from unmask.callbacks.panel import Reconstruction, enlarged_bytes, reconstruction_panel, reconstruction_pixels
from unmask.callbacks.pictures import figure_pixels, keep_figure
from unmask.callbacks.trainer_state import require_positive
from unmask.eval_mode import eval_mode
from unmask.types import ImageBatch

_ROWS_LOGGED_AS = "panels/reconstruction_rows"
_LOGGED_AS = "panels/reconstruction"  # no scalar's name, such as that of DDMIM's term


class ReconstructionPanel(Callback):
    """Draws the same held-out images under the same masks as training goes on.

    A picture is written to `<run directory>/panels/epoch_0010.png`, named by the epochs done, and handed to every
    logger that takes pictures; the last one is drawn as training ends. Modules without reconstructions (no
    `held_out_mask`, or a prediction of None) are left alone.

    Args:
        num_images: Held-out images drawn, spread evenly over the validation split.
        every_n_epochs: Epochs between pictures.

    Raises:
        ValueError: A number is not positive; as training begins, the data module serves no held-out images.
    """

    def __init__(self, num_images: int = 8, every_n_epochs: int = 1) -> None:
        require_positive("num_images", num_images)
        require_positive("every_n_epochs", every_n_epochs)
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs
        self._batch: ImageBatch | None = None
        self._drawn_at_step: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batch, self._drawn_at_step = None, None
        if not isinstance(pl_module, MasksImages):
            return
        datamodule: object = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(datamodule, HoldsImagesOut):
            raise ValueError(
                "reconstruction panels need a data module with held-out images, as Trainer.fit(datamodule=...) takes; "
                "pass one, or leave ReconstructionPanel out of the callbacks"
            )
        self._batch = datamodule.held_out_images(self.num_images)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs_done = trainer.current_epoch + 1
        if epochs_done % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, epochs_done)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._drawn_at_step:
            self._draw(trainer, pl_module, trainer.current_epoch)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, epochs_done: int) -> None:
        if self._batch is None:
            return
        self._drawn_at_step = trainer.global_step
        # Every process computes: a sharded or distributed model waits for the others in its forward.
        computed = _reconstruct(trainer, pl_module, self._batch)
        if computed is not None and trainer.is_global_zero:
            shown, loss = computed
            figure = reconstruction_panel(
                shown, title=type(pl_module).__name__, subtitle=_subtitle(shown, loss, trainer, epochs_done)
            )
            keep_figure(figure, Path(trainer.default_root_dir) / "panels" / f"epoch_{epochs_done:04d}.png")
            _send_to_loggers(figure, trainer, caption=_caption(pl_module, trainer, epochs_done))
            _send_rows(shown, self._batch.index.tolist(), trainer, epochs_done)


def _caption(pl_module: LightningModule, trainer: Trainer, epochs_done: int) -> str:
    return f"{type(pl_module).__name__}, epoch {epochs_done}, step {trainer.global_step:,}"


def _subtitle(shown: Reconstruction, loss: float, trainer: Trainer, epochs_done: int) -> str:
    masked = float(shown.mask.masked.float().mean())
    return (
        f"epoch {epochs_done}  ·  step {trainer.global_step:,}  ·  {masked:.0%} of each image masked  ·  "
        f"loss {loss:.4f}"
    )


def _reconstruct(trainer: Trainer, pl_module: Any, batch: ImageBatch) -> tuple[Reconstruction, float] | None:
    """What the module makes of the images, and its loss; None where it masks or predicts nothing."""
    precision = trainer.precision_plugin
    images, index = batch.image.to(pl_module.device), batch.index.to(pl_module.device)
    mask = pl_module.held_out_mask(images, index)
    if mask is None:
        return None
    with eval_mode(pl_module), torch.no_grad(), precision.forward_context():
        output = trainer.model(precision.convert_input(images), mask)  # type: ignore[misc]
    if output.prediction is None:
        return None
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    shown = reconstruction_pixels(
        images,
        mask,
        output.prediction,
        pixel_mean=datamodule.pixel_mean,
        pixel_std=datamodule.pixel_std,
        borrowed=pl_module.borrowed_statistics(images),
    )
    return shown, output.loss.item()


def _send_to_loggers(figure: Figure, trainer: Trainer, *, caption: str) -> None:
    pixels = figure_pixels(figure)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(_LOGGED_AS, pixels, trainer.global_step, dataformats="HWC")
        elif hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(key=_LOGGED_AS, images=[pixels], step=trainer.global_step, caption=[caption])


def _send_rows(shown: Reconstruction, indices: Sequence[int], trainer: Trainer, epochs_done: int) -> None:
    """Hands a table, a row an image, to every logger that takes tables of pictures: there one scrolls and sorts."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            picture = import_module("wandb").Image
            composite = shown.composite if shown.estimated_composite is None else shown.estimated_composite
            columns = {
                "image": shown.image,
                "masked": shown.masked,
                "prediction": shown.prediction,
                "composite": composite,
            }
            rows = [
                [epochs_done, index, *(picture(enlarged_bytes(pixels[row], 1)) for pixels in columns.values())]
                for row, index in enumerate(indices)
            ]
            logger.log_table(
                key=_ROWS_LOGGED_AS, columns=["epoch", "val image", *columns], data=rows, step=trainer.global_step
            )
