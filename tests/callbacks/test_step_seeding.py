import random
from itertools import product
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer

from unmask.callbacks.step_seeding import StepSeeding

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


def draws():
    """What a step could draw, from each generator there is."""
    dropout = F.dropout(torch.ones(32)).tolist()
    return (*dropout, torch.rand(1).item(), np.random.random(), random.random())  # noqa: NPY002


class RecordDraws(Callback):
    def __init__(self):
        self.drawn = {}

    def on_train_batch_start(self, trainer, *_):
        self.drawn[trainer.global_step] = draws()


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable")  # Lightning cannot know that the sampler is
def test_a_step_draws_the_same_after_an_interruption(fit, save_at_step):
    whole, resumed = RecordDraws(), RecordDraws()
    saving = save_at_step(8)  # two steps into the second epoch
    fit(StepSeeding(seed=3), whole, saving)
    draws()  # the new process's generators stand elsewhere
    fit(StepSeeding(seed=3), resumed, ckpt_path=saving.path)

    assert list(resumed.drawn) == [8, 9, 10, 11]
    assert all(whole.drawn[step] == drawn for step, drawn in resumed.drawn.items())


def drawn_by(seed, epoch, batch_idx, rank):
    trainer = Mock(spec=Trainer, current_epoch=epoch, global_rank=rank)
    StepSeeding(seed).on_train_batch_start(trainer, LightningModule(), None, batch_idx)
    return draws()


def test_steps_epochs_and_seeds_draw_differently_and_all_devices_alike():
    drawn = []
    for seed, epoch, batch_idx in product(range(2), repeat=3):
        drawn.append(drawn_by(seed, epoch, batch_idx, rank=0))
        assert drawn_by(seed, epoch, batch_idx, rank=1) == drawn[-1]
    for of_one_generator in zip(*drawn, strict=True):
        is_dropout = set(of_one_generator) <= {0.0, 2.0}
        assert is_dropout or len(set(of_one_generator)) == len(drawn)
    assert len(set(drawn)) == len(drawn)
