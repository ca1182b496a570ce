"""Runs small enough to be made in every test: 24 training and 10 validation images of 32 px in batches of 4."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

BATCH_SIZE, NUM_TRAIN, NUM_VAL = 4, 24, 10
STEPS_PER_EPOCH = NUM_TRAIN // BATCH_SIZE


@pytest.fixture
def another_process() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that does nothing, and is gone after the test."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def make_mae(make_vit: Callable[..., nn.Module]) -> Callable[..., LightningModule]:
    def make(**changes: Any) -> LightningModule:
        from unmask.heads.mae_decoder import MAEDecoder
        from unmask.masking.random import RandomMaskGenerator
        from unmask.methods.mae import MAE

        settings: dict[str, Any] = {
            "backbone": make_vit(),
            "decoder": partial(MAEDecoder, embed_dim=24, depth=1, num_heads=3),
            "mask_generator": RandomMaskGenerator(ratio=0.75, patch_size=8),
            "optimizer": partial(AdamW, lr=1e-3),
            "schedule": _constant,
        }
        return MAE(**settings | changes)

    return make


@pytest.fixture
def make_simmim(make_swin: Callable[..., nn.Module]) -> Callable[..., LightningModule]:
    def make() -> LightningModule:
        from unmask.heads.pixel_shuffle import PixelShuffleHead
        from unmask.masking.random import RandomMaskGenerator
        from unmask.methods.simmim import SimMIM

        return SimMIM(
            backbone=make_swin(),
            head=partial(PixelShuffleHead),
            mask_generator=RandomMaskGenerator(ratio=0.6, patch_size=16),
            optimizer=partial(AdamW, lr=1e-3),
            schedule=_constant,
        )

    return make


@pytest.fixture
def make_data() -> Callable[..., LightningDataModule]:
    def make(image_size: int = 32) -> LightningDataModule:
        from unmask.data.augmentation.transforms import Augmentation
        from unmask.data.datamodule import ImageDataModule
        from unmask.data.dataset import InMemoryDataset

        class TinyImages(ImageDataModule):
            holds_images_in_memory = True

            def load_split(self, split: str) -> InMemoryDataset:
                size = {"train": NUM_TRAIN, "val": NUM_VAL}[split]
                generator = torch.Generator().manual_seed(size)
                shape = (size, 3, *self.image_size)
                images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
                return InMemoryDataset(images, torch.zeros(size, dtype=torch.int64), ("anything",))

        return TinyImages(
            image_size=image_size,
            pixel_mean=(0.4, 0.5, 0.6),
            pixel_std=(0.2, 0.25, 0.3),
            augmentation=Augmentation(),
            global_batch_size=BATCH_SIZE,
        )

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(*callbacks: Callback, **changes: Any) -> Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "log_every_n_steps": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        }
        return Trainer(callbacks=list(callbacks), **settings | changes)

    return make


@pytest.fixture
def fit(
    make_mae: Callable[..., LightningModule],
    make_data: Callable[..., LightningDataModule],
    make_trainer: Callable[..., Trainer],
) -> Callable[..., Trainer]:
    """Trains a fresh MAE, or the method given, with these callbacks and changes to the trainer."""

    def run(
        *callbacks: Callback, method: LightningModule | None = None, ckpt_path: Path | None = None, **changes: Any
    ) -> Trainer:
        trainer = make_trainer(*callbacks, **changes)
        trainer.fit(make_mae() if method is None else method, datamodule=make_data(), ckpt_path=ckpt_path)
        return trainer

    return run


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class PassTime(Callback):
    """Lets a batch take `batch` seconds, the very first `first`, a validation or an epoch's end `pause`."""

    def __init__(self, clock: Clock, *, batch: float, first: float, pause: float) -> None:
        self.clock, self.batch, self.first, self.pause = clock, batch, first, pause

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.clock.now += self.batch if trainer.global_step else self.first

    def on_validation_start(self, *_: Any) -> None:
        self.clock.now += self.pause

    def on_train_epoch_end(self, *_: Any) -> None:
        self.clock.now += self.pause


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PassTime]:
    """Replaces the clock the callbacks read by one that `PassTime` moves."""

    def replace(*, batch: float = 0.5, first: float = 50.0, pause: float = 300.0) -> PassTime:
        clock = Clock()
        monkeypatch.setattr("unmask.callbacks.throughput.perf_counter", clock)
        monkeypatch.setattr("unmask.callbacks.time_left.perf_counter", clock)
        return PassTime(clock, batch=batch, first=first, pause=pause)

    return replace


class SaveAtStep(Callback):
    """Saves a checkpoint in the middle of a run that goes on."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def save_at_step(tmp_path: Path) -> Callable[[int], SaveAtStep]:
    return lambda step: SaveAtStep(step, tmp_path / "interrupted.ckpt")


@pytest.fixture
def training_losses() -> Callable[[LightningModule], list[float]]:
    """Lists the loss of every training forward pass, as the method computed it."""

    def record(method: LightningModule) -> list[float]:
        losses: list[float] = []

        def keep(module: nn.Module, _: Any, output: Any) -> None:
            if module.training:
                losses.append(float(output.loss.detach()))

        method.register_forward_hook(keep)
        return losses

    return record


def _constant(optimizer: Any, **_: Any) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 1.0)
