import csv
import logging
import math
from functools import partial

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from unmask.callbacks.exact_resume import ExactResume
from unmask.callbacks.nonfinite_guard import NonfiniteGuard
from unmask.callbacks.reference import write_reference
from unmask.callbacks.run_settings import RunSettings
from unmask.callbacks.verdict import RunVerdict, read_verdicts

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]
EPOCHS, STEPS = 6, 8  # an epoch
SETTINGS = {"global_batch_size": 8}


class FrozenBackbone(Callback):
    """A rate of 0 for the backbone; the decoder learns."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.backbone.parameters():
            parameter.grad = None


@pytest.fixture
def plain_images():
    """Images of one color each, brighter towards the right: a small network learns to continue them at once."""
    from unmask.data.augmentation.transforms import Augmentation  # noqa: PLC0415
    from unmask.data.datamodule import ImageDataModule  # noqa: PLC0415
    from unmask.data.dataset import InMemoryDataset  # noqa: PLC0415

    class Colors(ImageDataModule):
        holds_images_in_memory = True

        def load_split(self, split):
            size = {"train": 8 * STEPS, "val": 16}[split]
            color = torch.rand(size, 3, 1, 1, generator=torch.Generator().manual_seed(size))
            images = (200 * color + torch.arange(32.0) + torch.zeros(32, 1)).to(torch.uint8)
            labels = (torch.arange(size) % 3).to(torch.int64)
            return InMemoryDataset(images, labels, ("one", "two", "three"))

    return partial(
        Colors,
        image_size=32,
        pixel_mean=(0.5,) * 3,
        pixel_std=(0.25,) * 3,
        augmentation=Augmentation(scale=(0.8, 1.0)),
        global_batch_size=8,
    )


@pytest.fixture
def train(make_mae, make_vit, make_trainer, plain_images, tmp_path):
    def run(name, *callbacks, behind=(), seed=0, lr=1e-2, reference=None, method=None, ckpt_path=None, **changes):
        torch.manual_seed(seed)
        if method is None:
            method = make_mae(
                backbone=make_vit(depth=2),
                optimizer=partial(AdamW, lr=lr),
                schedule=_cosine,
                seed=seed,
                norm_pix_loss=False,
            )
        verdict = RunVerdict(reference=reference)
        folder = tmp_path / name
        trainer = make_trainer(
            RunSettings(settings=SETTINGS, fingerprints={}),
            NonfiniteGuard(folder=folder, spike_factor=None),
            *callbacks,
            verdict,
            *behind,
            **{
                "max_epochs": EPOCHS,
                "default_root_dir": folder,
                "logger": CSVLogger(folder, name="", version="csv"),
                "log_every_n_steps": 2,
            }
            | changes,
        )
        trainer.fit(method, datamodule=plain_images(seed=seed), ckpt_path=ckpt_path, weights_only=True)
        return folder, [row["verdict"] for row in read_verdicts(folder)]

    return run


@pytest.fixture
def good(train, tmp_path):
    """A file of the curves of three seeds."""
    tables = [train(f"seed_{seed}", seed=seed)[0] / "csv/metrics.csv" for seed in (1, 2, 3)]
    write_reference(tmp_path / "good.json", tables, settings=SETTINGS, images={})
    return tmp_path / "good.json"


def test_a_frozen_encoder_a_tenfold_rate_and_another_seed_are_told_apart(train, good, caplog):
    caplog.set_level(logging.INFO, logger="unmask")
    _, healthy = train("healthy", seed=4, reference=good)
    assert set(healthy) == {"normal"}
    assert sum("(reference " in line for line in caplog.messages) == EPOCHS
    caplog.clear()

    frozen_run, frozen = train("frozen", FrozenBackbone(), seed=4, reference=good)
    assert frozen[-1] == "slow"
    assert "the encoder does not learn" in read_verdicts(frozen_run)[-1]["reason"]
    assert any("verdict  slow: the encoder does not learn" in line for line in caplog.messages)

    _, tenfold = train("tenfold", seed=4, lr=1e-1, reference=good)
    assert tenfold[-1] != "normal"

    caplog.clear()
    alone_run, alone = train("alone", FrozenBackbone(), seed=4)
    assert alone[-1] == "slow"  # also without a reference
    assert read_verdicts(alone_run)[-1]["reason"].endswith("; no reference for this recipe")
    lines = [line for line in caplog.messages if line.startswith("verdict  ")]
    assert len(lines) == EPOCHS
    assert all(line.endswith("; no reference for this recipe") for line in lines)


def test_training_is_the_same_with_a_verdict_as_without(make_mae, make_vit, fit):
    def weights(*callbacks):
        torch.manual_seed(0)
        backbone = make_vit()
        backbone.dropout = nn.Dropout(0.5)  # a mode that must be given back
        method = make_mae(backbone=backbone)
        modes = []
        method.register_forward_hook(lambda module, *_: modes.append(module.backbone.dropout.training))
        fit(*callbacks, method=method, max_epochs=2, limit_val_batches=0)
        return method.state_dict(), modes

    without, _ = weights()
    beside, modes = weights(RunVerdict())
    assert all(torch.equal(without[name], beside[name]) for name in without)
    assert all(modes)


@pytest.mark.parametrize("step", [12, 16])  # within an epoch, and as one ends
def test_a_resumed_run_says_what_it_would_have_said(train, save_at_step, tmp_path, step):
    whole, verdicts = train("whole", ExactResume(), behind=[save_at_step(step)], max_epochs=3)
    resumed, again = train("resumed", ExactResume(), max_epochs=3, ckpt_path=tmp_path / "interrupted.ckpt")
    assert len(again) == len(verdicts) == 3
    assert (resumed / "verdicts.csv").read_text() == (whole / "verdicts.csv").read_text()


def test_what_was_read_is_logged_once_an_epoch_beside_the_number_of_the_verdict(train):
    folder, _ = train("run", FrozenBackbone(), max_epochs=4)
    with (folder / "csv/metrics.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["verdict"]]
    assert [int(row["step"]) for row in rows] == [STEPS * epoch - 1 for epoch in (1, 2, 3, 4)]
    assert [float(row["verdict"]) for row in rows] == [0, 0, 1, 1]
    assert {float(row["features/change"]) for row in rows} == {0.0}
    read = ("train/loss_epoch", "train/gradient_norm_epoch", "features/effective_rank", "features/std")
    assert all(float(row[name]) > 0 for row in rows for name in read)


def _cosine(optimizer, *, total_steps, **_):
    return LambdaLR(optimizer, lambda step: min(1.0, step / STEPS) * (1 + math.cos(math.pi * step / total_steps)) / 2)
