from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning import LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.image import imread
from torch import nn

from unmask.callbacks.panel import reconstruction_panel
from unmask.callbacks.reconstruction import ReconstructionPanel

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


@pytest.fixture
def drawn(monkeypatch):
    """Collects what panels are drawn from."""
    calls = []

    def draw(reconstruction, **lines):
        calls.append((reconstruction, lines))
        return reconstruction_panel(reconstruction, **lines)

    monkeypatch.setattr("unmask.callbacks.reconstruction.reconstruction_panel", draw)
    return calls


def panels(folder):
    return sorted(path.name for path in folder.glob("panels/*"))


def test_images_and_masks_stay_the_same_while_predictions_change(make_mae, make_data, make_trainer, tmp_path, drawn):
    method, data = make_mae(), make_data()
    make_trainer(ReconstructionPanel(num_images=4)).fit(method, datamodule=data)
    (first, first_lines), (second, second_lines) = drawn

    assert panels(tmp_path) == ["epoch_0001.png", "epoch_0002.png"]
    stored = data.dataset("val").images[[0, 2, 5, 7]] / 255.0  # evenly over ten
    torch.testing.assert_close(first.image, stored)
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.mask.masked, second.mask.masked)
    judged = method.held_out_mask(torch.empty(10, 3, 32, 32), torch.arange(10))
    assert torch.equal(first.mask.masked, judged.masked[[0, 2, 5, 7]])
    assert not torch.allclose(first.prediction, second.prediction)

    assert first_lines["title"] == "MAE"
    with torch.no_grad():
        batch = data.held_out_images(4)
        loss = method.eval()(batch.image, method.held_out_mask(batch.image, batch.index)).loss.item()
    assert first_lines["subtitle"].startswith("epoch 1  ·  step 6  ·  75% of each image masked  ·  loss ")
    assert second_lines["subtitle"] == f"epoch 2  ·  step 12  ·  75% of each image masked  ·  loss {loss:.4f}"
    assert first.estimated_prediction is not None


def test_prediction_is_the_trained_methods_own(make_simmim, make_data, make_trainer, drawn):
    method, data = make_simmim(), make_data(image_size=64)
    make_trainer(ReconstructionPanel(num_images=3), max_epochs=1, limit_train_batches=1).fit(method, datamodule=data)
    batch = data.held_out_images(3)
    with torch.no_grad():
        expected = method.eval()(batch.image, method.held_out_mask(batch.image, batch.index)).prediction
    mean, std = (torch.tensor(part)[:, None, None] for part in (data.pixel_mean, data.pixel_std))
    torch.testing.assert_close(drawn[0][0].prediction, (expected * std + mean).clamp(0, 1))


@pytest.mark.parametrize(("every_n_epochs", "expected"), [(2, [2, 3]), (3, [3]), (5, [3])])
def test_draws_every_few_epochs_and_once_at_the_end(fit, tmp_path, every_n_epochs, expected):
    callback = ReconstructionPanel(num_images=1, every_n_epochs=every_n_epochs)
    fit(callback, max_epochs=3, limit_train_batches=1, limit_val_batches=0)
    assert panels(tmp_path) == [f"epoch_{epoch:04d}.png" for epoch in expected]


def test_predicts_in_evaluation_mode_without_gradients_and_training_goes_on(fit, make_mae):
    method, modes = make_mae(), []
    method.register_forward_hook(lambda *_: modes.append((method.training, torch.is_grad_enabled())))
    fit(ReconstructionPanel(num_images=1), limit_train_batches=1, limit_val_batches=0, method=method)
    assert modes == [(True, True), (False, False)] * 2


def test_more_images_than_there_are_draws_all(fit, drawn):
    fit(ReconstructionPanel(num_images=64), max_steps=1)
    assert len(drawn[0][0].image) == 10


def test_every_logger_that_takes_pictures_gets_the_one_on_disk(fit, tmp_path):
    board = Mock(spec=TensorBoardLogger, save_dir=str(tmp_path), name="", version="")
    pictures = CSVLogger(tmp_path / "pictures")
    pictures.log_image = Mock()  # as Weights & Biases' logger has it
    fit(
        ReconstructionPanel(num_images=2),
        logger=[board, pictures, CSVLogger(tmp_path / "csv")],
        max_epochs=1,
        limit_val_batches=0,
    )

    written = (imread(tmp_path / "panels" / "epoch_0001.png")[..., :3] * 255).round().astype(np.uint8)
    (tag, picture, step), options = board.experiment.add_image.call_args
    assert (tag, step, options) == ("panels/reconstruction", 6, {"dataformats": "HWC"})
    assert (picture == written).all()
    sent = pictures.log_image.call_args.kwargs
    assert (sent["key"], sent["step"], len(sent["images"])) == ("panels/reconstruction", 6, 1)
    assert sent["caption"] == ["MAE, epoch 1, step 6"]
    assert (sent["images"][0] == written).all()


class Regression(LightningModule):
    """Something else to train, without reconstructions."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return self.linear(batch.image.mean(dim=(2, 3))).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*no `validation_step`")
def test_modules_without_reconstructions_are_left_alone(fit, make_mae, make_data, make_trainer, tmp_path):
    make_trainer(ReconstructionPanel(), max_steps=1).fit(Regression(), datamodule=make_data())

    method = make_mae()
    method.register_forward_hook(lambda module, inputs, output: replace(output, prediction=None))
    fit(ReconstructionPanel(), max_steps=1, method=method)
    assert panels(tmp_path) == []


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`")
def test_settings_that_cannot_work_are_refused(make_mae, make_data, make_trainer):
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        ReconstructionPanel(num_images=0)
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1, got 0"):
        ReconstructionPanel(every_n_epochs=0)
    data = make_data()
    with pytest.raises(ValueError, match="leave ReconstructionPanel out"):
        make_trainer(ReconstructionPanel()).fit(make_mae(), data.train_dataloader())
