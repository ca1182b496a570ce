from unittest.mock import Mock

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from unmask.callbacks.mean_loss import MeanLoss


def trainer(accumulate_grad_batches=1):
    strategy = SingleDeviceStrategy(device=torch.device("cpu"))
    return Mock(spec=Trainer, accumulate_grad_batches=accumulate_grad_batches, strategy=strategy)


def test_mean_starts_over_when_taken():
    mean = MeanLoss()
    for loss in (1.0, 2.0, 6.0):
        mean.add(trainer(), {"loss": torch.tensor(loss)})
    assert mean.take(trainer()) == 3.0
    assert mean.take(trainer()) is None
    mean.add(trainer(), {"loss": torch.tensor(5.0)})
    mean.add(trainer(), None)  # a step the module skipped
    assert mean.take(trainer()) == 5.0


def test_half_precision_losses_are_summed_in_float32():
    mean = MeanLoss()
    for _ in range(400):
        mean.add(trainer(), {"loss": torch.tensor(0.25, dtype=torch.bfloat16)})
    assert mean.take(trainer()) == 0.25


@pytest.mark.parametrize("accumulated", [1, 4])
def test_state_continues_an_interval(accumulated):
    mean, continued = MeanLoss(), MeanLoss()
    mean.add(trainer(accumulated), {"loss": torch.tensor(1.0 / accumulated)})
    continued.load_state_dict(mean.state_dict())
    continued.add(trainer(accumulated), {"loss": torch.tensor(2.0 / accumulated)})
    assert continued.take(trainer()) == 1.5
