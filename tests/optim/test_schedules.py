import math
from itertools import pairwise

import pytest
import torch

from unmask.optim.scaling import scale_lr
from unmask.optim.schedules import (
    constant,
    flyegle_cosine,
    step_decay,
    warm_restarts,
    warmup_cosine,
    warmup_linear,
    warmup_multistep,
    warmup_then_cosine_from_start,
)

PEAK = 0.4


def rates(schedule, steps: int, **settings) -> list[float]:
    """The rate used at each optimizer step, and the one left after the last."""
    return [rate for (rate,) in rates_of_groups(schedule, [PEAK], steps, **settings)]


def rates_of_groups(schedule, peaks: list[float], steps: int, *, steps_per_epoch: int = 1, **settings) -> list[list]:
    """As `rates`, of parameter groups with peaks of their own."""
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks])
    scheduler = schedule(optimizer, total_steps=steps, steps_per_epoch=steps_per_epoch, **settings)
    used = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        used.append([group["lr"] for group in optimizer.param_groups])
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
    lr = rates_of_groups(schedule, [0.1, 0.4], 20, steps_per_epoch=2, warmup_epochs=3, final_factor=0.1)
    for shallow, deep in lr[1:]:
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


def test_simmims_multistep_rises_stays_and_falls_by_a_tenth() -> None:
    lr = rates(warmup_multistep, 160, steps_per_epoch=2, warmup_epochs=10, start_factor=0.005, milestones=[70, 75])
    assert lr[0] == pytest.approx(PEAK * 0.005)
    assert lr[19] == pytest.approx(PEAK * (0.005 + 0.995 * 19 / 20))
    assert set(lr[20:140]) == {PEAK}
    assert lr[140:150] == pytest.approx([PEAK * 0.1] * 10)
    assert lr[150:] == pytest.approx([PEAK * 0.01] * 11)


@pytest.mark.parametrize("milestones", [[8], [10, 20, 15], [10]])
def test_milestones_must_rise_behind_the_warmup(milestones: list[float]) -> None:
    with pytest.raises(ValueError, match=r"must rise and lie behind schedule.warmup_epochs=10"):
        rates(warmup_multistep, 60, steps_per_epoch=2, warmup_epochs=10, milestones=milestones)


@pytest.mark.parametrize("warmup", [0, 5])
def test_the_straight_line_is_that_of_transformers(warmup: int) -> None:
    from transformers import get_linear_schedule_with_warmup  # noqa: PLC0415

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    oracle = get_linear_schedule_with_warmup(optimizer, warmup, 20)
    expected = []
    for _ in range(21):
        expected.append(oracle.get_last_lr()[0])
        optimizer.step()
        oracle.step()
    assert rates(warmup_linear, 20, steps_per_epoch=4, warmup_epochs=warmup / 4) == pytest.approx(expected)


def test_warm_restarts_are_torchs_stepped_once_an_epoch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    oracle = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=3, T_mult=2, eta_min=PEAK * 0.1)
    expected = []
    for _ in range(20):
        expected += [optimizer.param_groups[0]["lr"]] * 4
        optimizer.step()
        oracle.step()
    lr = rates(warm_restarts, 80, steps_per_epoch=4, first_cycle_epochs=3, final_factor=0.1)
    assert lr[:80] == pytest.approx(expected)


def test_restarts_that_get_shorter_are_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 3 and 0"):
        rates(warm_restarts, 10, steps_per_epoch=4, first_cycle_epochs=3, cycle_factor=0)


def test_simmims_layer_wise_rates_share_their_floor() -> None:
    """timm's scheduler: start and floor are rates, not shares; a peak below the floor is risen from (Swin-L, 0.7)."""
    peaks = [5e-3, 5e-3 * 0.7**25]
    assert peaks[1] < 1e-6

    def at(step: int, peak: float) -> float:
        return 1e-6 + (peak - 1e-6) / 2 * (1 + math.cos(math.pi * step / 100))

    for shared, expected in ((True, [at(50, peak) for peak in peaks]), (False, [at(50, 5e-3), at(50, 5e-3) * 0.7**25])):
        lr = rates_of_groups(
            warmup_then_cosine_from_start,
            peaks,
            100,
            warmup_epochs=20,
            start_factor=2e-4,
            final_factor=2e-4,
            shared_start=shared,
            shared_floor=shared,
        )
        assert lr[0] == pytest.approx([1e-6, 1e-6 if shared else 1e-6 * 0.7**25])
        assert lr[50] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", [warmup_cosine, warmup_then_cosine_from_start])
def test_start_and_floor_are_shared_independently(schedule) -> None:
    """mmengine's LinearLR multiplies each group's rate, its CosineAnnealingLR ends at one for all."""
    peaks = [0.4, 0.01]
    for shared_start, shared_floor in ((False, True), (True, False)):
        lr = rates_of_groups(
            schedule,
            peaks,
            20,
            warmup_epochs=5,
            start_factor=0.1,
            final_factor=0.02,
            shared_start=shared_start,
            shared_floor=shared_floor,
        )
        assert lr[0] == pytest.approx([0.04, 0.04 if shared_start else 0.001])
        assert lr[20] == pytest.approx([0.008, 0.008 if shared_floor else 0.0002])


def test_a_cosine_laid_out_for_longer_is_cut_off() -> None:
    """mmpretrain fine-tunes Swin-L so: 20 epochs of warm-up, then 80 of a cosine of 100."""
    lr = rates(warmup_cosine, 100, steps_per_epoch=1, warmup_epochs=20, cosine_epochs=100, final_factor=2e-4)
    assert lr[20] == PEAK
    assert lr[70] == pytest.approx(PEAK * (2e-4 + (1 - 2e-4) / 2))
    assert lr[100] == pytest.approx(PEAK * (2e-4 + (1 - 2e-4) / 2 * (1 + math.cos(0.8 * math.pi))))


@pytest.mark.parametrize("schedule", [warmup_cosine, warmup_multistep])
def test_mmengines_warmup_ends_at_the_peak(schedule) -> None:
    """mmengine's LinearLR spans `end - begin - 1` steps: the last step of the warm-up has the full rate."""
    settings = {"milestones": [8.0]} if schedule is warmup_multistep else {}
    lr = rates(schedule, 50, steps_per_epoch=5, warmup_epochs=2, start_factor=0.1, warmup_ends_at_peak=True, **settings)
    assert lr[:10] == pytest.approx([PEAK * (0.1 + 0.9 * step / 9) for step in range(10)])
    assert lr[9] == lr[10] == pytest.approx(PEAK)
    later = rates(schedule, 50, steps_per_epoch=5, warmup_epochs=2, start_factor=0.1, **settings)
    assert later[9] == pytest.approx(PEAK * 0.91)
    assert later[10:] == lr[10:]


def test_mmengines_schedulers_give_the_same_rates() -> None:
    """Written out from mmengine's recurrences: each factor is applied to the rate of the step before."""
    begin, end, start = 10, 50, 1e-9
    expected, rate = [PEAK * start], PEAK * start
    for step in range(1, begin):
        rate *= 1.0 + (1.0 - start) / ((begin - 1) * start + (step - 1) * (1.0 - start))
        expected.append(rate)
    expected.append(rate)  # the cosine begins at the rate it finds
    for step in range(1, end - begin):
        turned = [1.0 + math.cos(math.pi * done / (end - begin)) for done in (step, step - 1)]
        rate *= turned[0] / turned[1]
        expected.append(rate)
    lr = rates(warmup_cosine, 50, steps_per_epoch=5, warmup_epochs=2, start_factor=start, warmup_ends_at_peak=True)
    assert lr[:50] == pytest.approx(expected, rel=1e-6)


def test_flyegles_cosine_counts_from_the_first_step_and_rises_again() -> None:
    lr = rates(flyegle_cosine, 400, steps_per_epoch=1, warmup_epochs=40)
    assert lr[0] == pytest.approx(PEAK * (1 / 40 + 1e-6))
    assert lr[39] == pytest.approx(PEAK * (1.0 + 1e-6))
    assert lr[40] == pytest.approx(PEAK / 2 * (1 + math.cos(math.pi / 9)))
    assert lr[360] == pytest.approx(0.0, abs=1e-12)
    assert lr[399] == pytest.approx(PEAK * 0.0288, rel=1e-2)
    assert min(lr[1:]) == lr[360]
    assert sum(lr[:400]) / 400 / PEAK == pytest.approx(0.40, abs=0.005)
