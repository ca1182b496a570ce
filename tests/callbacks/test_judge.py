import math

import pytest

from unmask.callbacks.judge import EpochReadings, Verdict, describe_readings, judge
from unmask.callbacks.reference import Reference, _Point

LOSS, NORM, RANK, STD, CHANGE = (
    "train/loss_epoch",
    "train/gradient_norm_epoch",
    "features/effective_rank",
    "features/std",
    "features/change",
)
STEPS = 100  # an epoch


def history(**series):
    """Readings of the epochs 0, 1, 2, ... by short names; None where there is none."""
    names = {"loss": LOSS, "norm": NORM, "rank": RANK, "std": STD, "change": CHANGE, "probe": "probe/own/knn_top1"}
    length = max(map(len, series.values()))
    return [
        EpochReadings(
            STEPS * epoch,
            {names[key]: values[epoch] for key, values in series.items() if values[epoch] is not None},
        )
        for epoch in range(length)
    ]


def verdict(*, num_steps=1000, reference=None, **series):
    facts = {key: series.pop(key) for key in ("compares_losses", "needs_rank") if key in series}
    return judge(history(**series), num_steps=num_steps, reference=reference, **facts)


def reference(**curves):
    names = {"loss": LOSS, "norm": NORM, "rank": RANK, "probe": "probe/own/knn_top1"}
    return Reference(
        name="good",
        num_runs=3,
        num_steps=1000,
        settings={},
        images={},
        curves={
            names[key]: [_Point(STEPS * (epoch + 1), mean, 0.01 * mean) for epoch, mean in enumerate(means)]
            for key, means in curves.items()
        },
    )


def test_a_loss_that_falls_is_normal_and_the_line_says_the_readings():
    found = verdict(loss=[None, 2.0, 1.5, 1.2], norm=[None, 0.5, 0.4, 0.3], rank=[4.0, 5.0, 6.0, 7.0])
    assert found.verdict is Verdict.NORMAL
    assert found.reason == "loss 1.2, gradient norm 0.3, effective rank 7.0"


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([None, 2.0, 1.0, 1.4], Verdict.NORMAL),  # less than half of the fall
        ([None, 2.0, 1.0, 1.6], Verdict.DIVERGING),
        ([None, 2.0, 1.99, 2.1], Verdict.NORMAL),  # noise of a loss that has hardly fallen
        ([None, 2.0, 2.3], Verdict.DIVERGING),  # from the first epoch on
        ([None, 2.0, 1.0, math.nan], Verdict.DIVERGING),
        ([None, -1.0, -2.0, -1.4], Verdict.DIVERGING),  # a loss may be negative
    ],
)
def test_a_loss_that_rises_above_its_least_diverges(losses, expected):
    assert verdict(loss=losses).verdict is expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_epoch_whose_loss_was_not_finite_hides_no_later_rise_and_no_standstill(bad):
    """A step that is skipped for its loss leaves the epoch without a mean, and the run goes on."""
    assert verdict(loss=[None, bad]).verdict is Verdict.DIVERGING
    assert verdict(loss=[None, bad, 2.0, 1.0, 1.9]).verdict is Verdict.DIVERGING
    assert verdict(loss=[None, bad, *[2.0] * 8]).verdict is Verdict.SLOW
    assert verdict(loss=[None, bad, 2.0, 1.5, 1.2]).verdict is Verdict.NORMAL
    norms = [None, bad, 0.5, 0.5, 0.5]
    assert "is 20 times" in verdict(loss=[None, 2.0, 1.0, 0.9, 0.8, 1.0], norm=[*norms, 10.0]).reason
    assert "norm, inf" in verdict(loss=[None, 2.0, 1.0, 0.9, 0.8, 1.0], norm=[*norms, math.inf]).reason


def test_the_loss_of_a_moving_target_may_rise_but_not_explode():
    assert verdict(loss=[None, 1.0, 0.5, 3.0], compares_losses=False).verdict is Verdict.NORMAL
    assert verdict(loss=[None, 1.0, 0.5, 30.0], compares_losses=False).verdict is Verdict.DIVERGING


def test_a_gradient_ten_times_the_usual_one_diverges_only_where_the_loss_rises_too():
    norms = [None, 1.0, 1.0, 1.0, 11.0]
    assert verdict(norm=norms, loss=[None, 4.0, 2.0, 1.0, 0.9]).verdict is Verdict.NORMAL
    assert verdict(norm=norms, loss=[None, 4.0, 2.0, 1.0, 1.2]).verdict is Verdict.DIVERGING
    assert verdict(norm=norms, loss=[None, 1.0, 1.0, 1.0, 1.0], compares_losses=False).verdict is Verdict.DIVERGING


def test_features_in_one_direction_collapse_but_a_classifier_needs_few_directions():
    ranks = [11.0, 8.0, 1.9]
    assert verdict(rank=ranks, loss=[None, 2.0, 1.0]).verdict is Verdict.COLLAPSING
    assert verdict(rank=ranks, loss=[None, 2.0, 1.0], needs_rank=False).verdict is Verdict.NORMAL
    assert verdict(rank=[11.0, 8.0, 2.1], loss=[None, 2.0, 1.0]).verdict is Verdict.NORMAL
    assert verdict(rank=[11.0, 8.0, math.nan], loss=[None, 2.0, 1.0]).verdict is Verdict.COLLAPSING


def test_features_that_are_all_alike_collapse_also_of_a_classifier():
    found = verdict(std=[1.0, 0.5, 0.01], needs_rank=False)
    assert found == (Verdict.COLLAPSING, "the features of held-out images differ by 1.0% of what they did at first")


def test_an_encoder_that_stays_as_it_was_is_slow_though_the_loss_falls_but_not_in_the_first_tenth():
    series = {"loss": [None, 2.0, 1.0, 0.5], "change": [0.0, 0.0, 0.0, 0.0]}
    found = verdict(**series)
    assert found.verdict is Verdict.SLOW
    assert "after 300 steps the features of held-out images differ by 0.00%" in found.reason
    assert verdict(**series, num_steps=10_000).verdict is Verdict.NORMAL
    assert verdict(**series, num_steps=None).verdict is Verdict.SLOW


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0, 1.5, 1.2, 1.1, 1.1, 1.1, 1.1, 1.1], Verdict.SLOW),
        ([2.0, 1.5, 1.2, 1.1, 1.1, 1.1, 1.1, 1.09], Verdict.NORMAL),
        ([2.0, 1.5, 1.2, 1.1, 1.1, 1.1, 1.1], Verdict.NORMAL),  # too few epochs to tell
        ([2.0, 0.5, 0.1, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3], Verdict.NORMAL),  # all is learned
        ([2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], Verdict.SLOW),
    ],
)
def test_a_loss_that_stays_where_it_is_for_half_of_the_epochs_is_slow(losses, expected):
    assert verdict(loss=[None, *losses]).verdict is expected
    if expected is Verdict.SLOW:
        assert verdict(loss=[None, *losses], compares_losses=False).verdict is Verdict.NORMAL


def test_a_loss_that_stays_where_that_of_good_runs_stays_too_is_normal():
    losses = [2.0, 1.0, *[0.5] * 6]
    assert verdict(loss=[None, *losses]).verdict is Verdict.SLOW
    assert verdict(loss=[None, *losses], reference=reference(loss=losses)).verdict is Verdict.NORMAL


def test_a_run_is_compared_with_what_good_runs_showed_at_the_same_step():
    good = reference(loss=[2.0, 1.0, 0.5], norm=[1.0, 1.0, 1.0], rank=[5.0, 7.0, 9.0], probe=[20.0, 30.0, 40.0])

    def compared(**series):
        return verdict(reference=good, **series)

    assert compared(loss=[None, 2.05, 1.05, 0.52], probe=[None, 20.0, 30.0, 37.0]).verdict is Verdict.NORMAL
    slow = compared(loss=[None, 2.0, 1.5, 1.0])
    assert slow == (Verdict.SLOW, "loss 1 (reference 0.45 to 0.9625)")  # up to where they were at step 225
    assert compared(loss=[None, 2.0, 1.0, 0.5], probe=[None, None, None, 28.0]).verdict is Verdict.SLOW
    assert compared(rank=[5.0, 7.0, 4.0]).verdict is Verdict.NORMAL
    assert compared(rank=[5.0, 5.0, 5.0, 3.5]).verdict is Verdict.COLLAPSING
    assert compared(norm=[None, 1.0, 1.0, 3.2]).verdict is Verdict.NORMAL
    assert compared(norm=[None, 1.0, 1.0, 4.0]).verdict is Verdict.DIVERGING


def test_ranges_stand_beside_the_readings_and_between_epochs_on_the_line_between_them():
    good = reference(loss=[2.0, 1.0])
    shown = describe_readings(EpochReadings(150, {LOSS: 1.5, "probe/own/knn_top1": 30.0}), good)
    assert shown == "loss 1.5 (reference 1.35 to 2.068)"  # a probe without a range stands in its own line
    assert good.band(LOSS, 99) is None
    assert good.band(LOSS, 900) == good.band(LOSS, 800)


def test_the_worst_is_said():
    found = verdict(loss=[None, 2.0, 1.0, math.inf], rank=[9.0, 8.0, 7.0, 1.0], change=[0.0, 0.0, 0.0, 0.0])
    assert found == (Verdict.DIVERGING, "the loss is inf")
