"""The rule by which trainings on small sets follow the number of images."""

import math

import pytest

from unmask.small_sets import (
    SMALL,
    batch_size_for,
    epochs_for,
    image_size_for,
    is_small,
    peak_lr_for,
    probe_batch_size_for,
    probe_epochs_for,
    steps_of,
    time_constant_for,
    warmup_steps_for,
)

SIZES = [2, 3, 7, 10, 50, 200, 1000, 1486, 9000, 50_000, SMALL - 1]


@pytest.mark.parametrize(
    ("num_images", "batch_size", "epochs"),
    [(50, 16, 1000), (200, 16, 250), (1000, 16, 49), (9000, 128, 43), (50_000, 128, 10)],
)
def test_batch_and_length_of_known_sets(num_images: int, batch_size: int, epochs: int) -> None:
    assert batch_size_for(num_images) == batch_size
    assert epochs_for(num_images, batch_size) == epochs


def test_a_run_of_no_step_is_one_and_no_limit_is_none() -> None:
    assert steps_of(100, 10, max_epochs=3, max_steps=0) == 0
    assert steps_of(100, 10, max_epochs=3, max_steps=-1) == 30
    assert steps_of(100, 10, max_epochs=-1, max_steps=None) is None


def test_the_rule_holds_below_the_number_that_is_stated_and_for_counted_sets_alone() -> None:
    assert is_small(SMALL - 1)
    assert not is_small(SMALL)
    assert not is_small(None)


@pytest.mark.parametrize(
    ("median_side", "image_size"),
    [(8, 32), (28, 32), (47, 32), (50, 64), (79, 64), (100, 96), (120, 128), (159, 128), (160, None), (None, None)],
)
def test_small_images_are_served_near_their_own_size(median_side: int | None, image_size: int | None) -> None:
    assert image_size_for(median_side) == image_size


@pytest.mark.parametrize(("num_images", "batch_size"), [(2, 1), (4, 2), (7, 2), (10, 4), (16, 8), (31, 8), (32, 16)])
def test_a_batch_takes_half_of_a_tiny_set_at_most(num_images: int, batch_size: int) -> None:
    assert batch_size_for(num_images) == batch_size


@pytest.mark.parametrize("num_images", SIZES)
def test_every_set_gets_steps_enough(num_images: int) -> None:
    batch_size = batch_size_for(num_images)
    steps = epochs_for(num_images, batch_size) * (num_images // batch_size)

    assert batch_size <= num_images
    assert steps >= 3000
    assert steps < 3000 + num_images // batch_size or epochs_for(num_images, batch_size) == 10


@pytest.mark.parametrize("num_images", SIZES)
def test_no_larger_batch_would_make_steps_enough_an_epoch(num_images: int) -> None:
    batch_size = batch_size_for(num_images)

    assert math.log2(batch_size).is_integer()
    assert batch_size == 128 or num_images // (2 * batch_size) < 32
    assert batch_size <= 16 or num_images // batch_size >= 32


@pytest.mark.parametrize("num_images", SIZES)
def test_a_probe_gets_steps_enough(num_images: int) -> None:
    batch_size = probe_batch_size_for(num_images)

    assert batch_size <= num_images
    assert probe_epochs_for(num_images, batch_size) * (num_images // batch_size) >= 1000
    assert probe_epochs_for(num_images, batch_size) >= 90


def test_the_probe_of_a_large_set_is_as_it_was() -> None:
    assert (probe_batch_size_for(45_000), probe_epochs_for(45_000, 1024)) == (1024, 90)
    assert (probe_batch_size_for(1_281_167), probe_epochs_for(1_281_167, 1024)) == (1024, 90)


def test_imagenet_is_not_small_and_an_uncounted_set_neither() -> None:
    assert not is_small(1_281_167)
    assert not is_small(None)
    assert is_small(50_000)


def test_four_times_the_batch_doubles_the_peak_and_twice_the_width_halves_it() -> None:
    assert peak_lr_for(128, 128) == pytest.approx(2e-3)
    assert peak_lr_for(64, 128) == pytest.approx(peak_lr_for(16, 128) * 2)
    assert peak_lr_for(64, 512) == pytest.approx(peak_lr_for(64, 256) / 2)
    assert peak_lr_for(64, 24) == peak_lr_for(64, 128)  # narrow ones have no need of more


def test_the_published_peaks_lie_near_the_rule() -> None:
    vit_base, swin_base = 1.5e-4 * 4096 / 256, 2e-4 * 2048 / 512  # MAE, SimMIM
    assert peak_lr_for(4096, 768) == pytest.approx(vit_base, rel=0.25)
    assert peak_lr_for(2048, 1024) == pytest.approx(swin_base, rel=0.25)


def test_a_teacher_averages_over_a_part_of_the_run_and_over_twelve_steps_at_least() -> None:
    assert time_constant_for(256_000, 128) == 128 * 50  # of 20,000 steps
    assert time_constant_for(100, 16) == 16 * 12


def test_the_rate_rises_for_a_tenth_of_the_run() -> None:
    assert warmup_steps_for(3000) == pytest.approx(300)


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "expected"),
    [(10, -1, 70), (10, None, 70), (10, 60, 60), (10, 90, 70), (None, 60, 60), (-1, -1, None), (0, -1, 0)],
)
def test_a_run_ends_by_whichever_limit_comes_first(max_epochs, max_steps, expected) -> None:
    assert steps_of(1000, 128, max_epochs=max_epochs, max_steps=max_steps) == expected


def test_a_length_in_steps_makes_room_for_them() -> None:
    assert epochs_for(1000, 128, num_steps=15) == 3  # of 7 steps each
    assert epochs_for(1000, 128, num_steps=14) == 2
