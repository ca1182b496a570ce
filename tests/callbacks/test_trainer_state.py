from unittest.mock import Mock

import pytest
import torch
from lightning import Trainer

from unmask.callbacks.trainer_state import ends_interval, learning_rate, total_steps


def test_an_interval_ends_once_with_the_last_batch_of_its_last_step():
    # Five batches an epoch, two a step: steps end with batches 1, 3 and, alone, 4.
    ended = []
    global_step = 0
    for epoch in range(2):
        for batch_idx in range(5):
            global_step += batch_idx in {1, 3, 4}
            trainer = Mock(
                spec=Trainer, accumulate_grad_batches=2, is_last_batch=batch_idx == 4, global_step=global_step
            )
            if ends_interval(trainer, batch_idx, every_n_steps=2):
                ended.append((epoch, batch_idx))
    assert ended == [(0, 3), (1, 1), (1, 4)]  # steps 2, 4 and 6


def test_learning_rate_is_that_of_the_group_with_the_largest():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": [p], "lr": rate} for p, rate in zip(parameters, (0.1, 0.3, 0.2), strict=True)]
    assert learning_rate(Mock(spec=Trainer, optimizers=[torch.optim.SGD(groups)])) == 0.3


@pytest.mark.parametrize(("estimated", "expected"), [(float("inf"), None), (12, 12)])
def test_a_run_without_end_has_no_total(estimated, expected):
    assert total_steps(Mock(spec=Trainer, estimated_stepping_batches=estimated)) == expected
