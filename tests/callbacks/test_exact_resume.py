"""Which batches are followed by a validation, so that a checkpoint of one leaves the validation to do."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

NUM_BATCHES, EPOCHS = 5, 3


class _Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight - batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


class _WithoutLength(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.ones(NUM_BATCHES, 1))


class _Expected(Callback):
    """Notes after which batches a validation is expected, and after which there is one."""

    def __init__(self) -> None:
        self.expected: list[tuple[int, int]] = []
        self.validated: list[tuple[int, int]] = []
        self.batch = (-1, -1)

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        from unmask.callbacks.exact_resume import _is_validation_due

        self.batch = (trainer.current_epoch, batch_idx)
        if _is_validation_due(trainer):
            self.expected.append(self.batch)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.validated.append(self.batch)


@pytest.mark.parametrize(
    ("changes", "num_validations"),
    [
        ({}, 3),
        ({"val_check_interval": 2}, 6),
        ({"val_check_interval": 0.5}, 6),
        ({"check_val_every_n_epoch": 2}, 1),
        ({"check_val_every_n_epoch": 2, "val_check_interval": 2}, 2),
        ({"check_val_every_n_epoch": None, "val_check_interval": 3}, 5),  # of 15 batches, across epochs
        ({"limit_val_batches": 0}, 0),
        ({"limit_train_batches": 3}, 3),
    ],
)
@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_validation_is_expected_after_the_batches_that_lightning_validates_after(
    *, changes: dict[str, Any], num_validations: int, has_length: bool, make_trainer: Callable[..., Trainer]
) -> None:
    if not has_length and isinstance(changes.get("val_check_interval"), float):
        pytest.skip("Lightning takes no part of an unknown number of batches")
    note = _Expected()
    trainer = make_trainer(note, max_epochs=EPOCHS, **changes)
    images = DataLoader(torch.ones(NUM_BATCHES, 1) if has_length else _WithoutLength())
    trainer.fit(_Line(), images, DataLoader(torch.ones(1, 1)))

    assert len(note.validated) == num_validations
    assert note.expected == note.validated
