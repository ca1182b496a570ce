import pytest

from unmask.callbacks.time_left import TimeLeft, describe_duration


def test_pace_is_that_of_the_steps_after_the_first(monkeypatch):
    now = 100.0
    monkeypatch.setattr("unmask.callbacks.time_left.perf_counter", lambda: now)
    time_left = TimeLeft()
    assert time_left.describe(10, 110) is None
    time_left.observe(10)  # resumed at step 9
    assert time_left.describe(10, 110) is None
    now = 104.0
    time_left.observe(12)
    assert time_left.describe(12, 32) == "40 s"  # 2 s a step
    assert time_left.describe(12, None) is None
    time_left.restart()
    assert time_left.describe(12, 32) is None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.2, "0 s"),
        (89.0, "89 s"),
        (300.0, "5 min"),
        (5000.0, "83 min"),
        (7200.0, "2.0 h"),
        (47.5 * 3600, "47.5 h"),
        (3 * 86400.0, "3.0 days"),
    ],
)
def test_durations_are_told_in_the_unit_of_their_size(seconds, expected):
    assert describe_duration(seconds) == expected
