import math
from functools import partial
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader

from unmask.optim.configure import configure_optimizer
from unmask.optim.schedules import warmup_cosine

PEAK, FINAL = 0.5, 0.1


class Line(LightningModule):
    """Notes the rate of every optimizer step, and the rate after the last."""

    def __init__(self, **schedule: Any) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.settings = {"warmup_epochs": 0, "final_factor": FINAL, **schedule}
        self.told: dict[str, float] = {}
        self.used: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> dict[str, Any]:
        groups = [{"params": [self.layer.weight]}, {"params": [self.layer.bias], "lr": PEAK / 4}]
        return configure_optimizer(self, groups, partial(SGD, lr=PEAK), self.make_schedule)

    def make_schedule(self, optimizer: SGD, **told: float) -> Any:
        self.told = told
        return warmup_cosine(optimizer, **self.settings, **told)

    def on_before_optimizer_step(self, optimizer: SGD) -> None:
        self.used.append(optimizer.param_groups[0]["lr"])

    def on_train_end(self) -> None:
        self.after = [group["lr"] for group in self.trainer.optimizers[0].param_groups]


def fit(module: Line, *, num_batches: int = 6, **limits: Any) -> Line:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **limits,
    )
    trainer.fit(module, DataLoader(torch.randn(2 * num_batches, 2), batch_size=2))
    return module


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_epochs": 3}, 18),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 9),
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 4),  # the last two batches of an epoch make a step as well
        ({"max_epochs": 3, "limit_train_batches": 4}, 12),
        ({"max_steps": 10, "max_epochs": -1}, 10),
        ({"max_steps": 5, "max_epochs": -1, "accumulate_grad_batches": 2}, 5),
        ({"max_steps": 50, "max_epochs": 2}, 12),
        ({"max_steps": 7, "max_epochs": 2}, 7),
    ],
)
def test_the_schedule_ends_exactly_with_the_run(limits: dict[str, Any], steps: int) -> None:
    module = fit(Line(), **limits)
    along = [step / steps for step in range(steps)]
    expected = [PEAK * (FINAL + (1 - FINAL) / 2 * (1 + math.cos(math.pi * share))) for share in along]
    assert module.used == pytest.approx(expected)
    assert module.after == pytest.approx([PEAK * FINAL, PEAK / 4 * FINAL])


@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_warm_up_is_counted_in_epochs_of_optimizer_steps(accumulated: int) -> None:
    module = fit(Line(warmup_epochs=2), max_epochs=4, accumulate_grad_batches=accumulated)
    warmup = 2 * 6 // accumulated
    assert module.used[: warmup + 1] == pytest.approx([PEAK * step / warmup for step in range(warmup + 1)])
    assert module.used[warmup + 1] < PEAK


@pytest.mark.parametrize(("num_batches", "accumulated"), [(7, 2), (5, 4)])
def test_an_epoch_that_is_not_whole_steps_warms_up_to_its_end_as_well(num_batches: int, accumulated: int) -> None:
    """The trainer also steps on what is left at the end of an epoch."""
    module = fit(Line(), num_batches=num_batches, max_epochs=3, accumulate_grad_batches=accumulated)
    assert module.told["total_steps"] == len(module.used)
    assert module.told["steps_per_epoch"] == len(module.used) / 3


def test_a_run_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        fit(Line(), max_epochs=-1)
