import multiprocessing
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.distributed
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


LOSSES = ([1.0, 0.1, 3.0], [7.0, 0.7, 2.0])  # of two devices; a checkpoint is written after two batches


def _save_and_continue(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    own = [{"loss": torch.tensor(loss)} for loss in LOSSES[rank]]
    mean, continued = MeanLoss(), MeanLoss()
    for outputs in own[:2]:
        mean.add(trainer(), outputs)
    state = mean.state_dict()
    if rank == 0:
        torch.save(state, folder / "state")  # a checkpoint is written by the first process
    torch.distributed.barrier()
    continued.load_state_dict(torch.load(folder / "state", weights_only=True))
    sums = []
    for each in (mean, continued):
        each.add(trainer(), own[2])
        sums.append(each._sum)
    assert torch.equal(*sums)  # to the last bit
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_state_continues_an_interval_on_every_device(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_save_and_continue, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0]
    alone = MeanLoss()  # the run goes on with one device
    alone.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    alone.add(trainer(), {"loss": torch.tensor((LOSSES[0][2] + LOSSES[1][2]) / 2)})
    assert alone.take(trainer()) == pytest.approx(sum(map(sum, LOSSES)) / 6)
