import math
from itertools import pairwise

import pytest
import torch

from unmask.optim.scaling import scale_lr
from unmask.optim.schedules import constant, step_decay, warmup_cosine, warmup_then_cosine_from_start

PEAK = 0.4


def rates(schedule, steps: int, **settings) -> list[float]:
    """The rate used at each optimizer step, and the one left after the last."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = schedule(optimizer, total_steps=steps, **settings)
    used = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        used.append(optimizer.param_groups[0]["lr"])
    return used


def test_maes_schedule_at_its_first_turning_and_last_step() -> None:
    lr = rates(warmup_cosine, 100, steps_per_epoch=5, warmup_epochs=4, final_factor=0.01)
    assert lr[0] == 0.0
    assert lr[1] == pytest.approx(PEAK / 20)
    assert lr[19] == pytest.approx(PEAK * 19 / 20)
    assert lr[20] == pytest.approx(PEAK)
    assert lr[40] == pytest.approx(PEAK * (0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2))  # a quarter of the fall
    assert lr[60] == pytest.approx(PEAK * (0.01 + 0.99 / 2))
    assert lr[99] == pytest.approx(PEAK * (0.01 + 0.99 / 2 * (1 + math.cos(math.pi * 79 / 80))))
    assert lr[100] == pytest.approx(PEAK * 0.01)


def test_maes_schedule_neither_jumps_nor_rises_after_warmup() -> None:
    lr = rates(warmup_cosine, 200, steps_per_epoch=10, warmup_epochs=2)
    changes = [later - earlier for earlier, later in pairwise(lr)]
    assert all(change > 0 for change in changes[:20])
    assert all(change < 0 for change in changes[20:])
    assert max(map(abs, changes)) <= PEAK / 20 + 1e-12


def test_simmims_cosine_counts_from_the_first_step() -> None:
    """The official curve: start + (1 - start) t / w, then final + (1 - final) / 2 * (1 + cos(pi t / T))."""
    lr = rates(
        warmup_then_cosine_from_start, 100, steps_per_epoch=1, warmup_epochs=10, start_factor=0.005, final_factor=0.05
    )
    assert lr[0] == pytest.approx(PEAK * 0.005)
    assert lr[5] == pytest.approx(PEAK * (0.005 + 0.995 / 2))
    assert lr[9] == pytest.approx(PEAK * (0.005 + 0.995 * 0.9))
    assert lr[50] == pytest.approx(PEAK * (0.05 + 0.95 / 2))
    assert lr[99] == pytest.approx(PEAK * (0.05 + 0.95 / 2 * (1 + math.cos(math.pi * 0.99))))
    assert lr[100] == pytest.approx(PEAK * 0.05)


@pytest.mark.parametrize(("warmup_epochs", "drop"), [(10, 0.9755), (20, 0.9045)])
def test_simmims_rate_drops_where_warmup_ends(warmup_epochs: int, drop: float) -> None:
    lr = rates(warmup_then_cosine_from_start, 100, steps_per_epoch=1, warmup_epochs=warmup_epochs)
    assert lr[warmup_epochs] / PEAK == pytest.approx(drop, abs=1e-4)


@pytest.mark.parametrize("schedule", [warmup_cosine, warmup_then_cosine_from_start])
def test_layer_wise_rates_keep_their_proportions(schedule) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [parameters[0]], "lr": 0.1}, {"params": [parameters[1]], "lr": 0.4}])
    scheduler = schedule(optimizer, total_steps=20, steps_per_epoch=2, warmup_epochs=3, final_factor=0.1)
    for _ in range(20):
        optimizer.step()
        scheduler.step()
        shallow, deep = scheduler.get_last_lr()
        assert deep == pytest.approx(4 * shallow)


@pytest.mark.parametrize("schedule", [warmup_cosine, warmup_then_cosine_from_start])
def test_without_warmup_the_first_step_is_at_the_peak(schedule) -> None:
    assert rates(schedule, 10, steps_per_epoch=10, warmup_epochs=0)[0] == PEAK


def test_warmup_may_end_within_an_epoch() -> None:
    lr = rates(warmup_cosine, 20, steps_per_epoch=10, warmup_epochs=0.5)
    assert lr.index(max(lr)) == 5


@pytest.mark.parametrize("schedule", [warmup_cosine, warmup_then_cosine_from_start])
@pytest.mark.parametrize("warmup_epochs", [2, 40])
def test_warmup_as_long_as_the_run_is_refused(schedule, warmup_epochs: int) -> None:
    message = f"warmup_epochs={warmup_epochs} takes {warmup_epochs * 10} steps, .* only 20; use less than 2"
    with pytest.raises(ValueError, match=message):
        rates(schedule, 20, steps_per_epoch=10, warmup_epochs=warmup_epochs)


def test_constant_keeps_the_rate() -> None:
    assert set(rates(constant, 5, steps_per_epoch=5)) == {PEAK}


def test_published_rates_follow_from_the_scaling_rule() -> None:
    assert scale_lr(1.5e-4, 256, 4096) == pytest.approx(2.4e-3)  # MAE, pre-training
    assert scale_lr(1.25e-3, 512, 2048) == pytest.approx(5e-3)  # SimMIM, fine-tuning


def test_the_rate_falls_by_a_factor_after_every_so_many_epochs() -> None:
    lr = rates(step_decay, 60, steps_per_epoch=3, every_n_epochs=8, factor=0.1)
    assert lr[0] == lr[23] == PEAK
    assert lr[24] == lr[47] == pytest.approx(PEAK * 0.1)
    assert lr[48] == pytest.approx(PEAK * 0.01)


def test_a_decay_that_never_waits_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_epochs must be above 0"):
        rates(step_decay, 10, steps_per_epoch=3, every_n_epochs=0, factor=0.1)
