import pytest

from unmask.optim.accumulation import accumulated_batches


@pytest.mark.parametrize(
    ("num_devices", "images_per_device", "expected"),
    [
        (64, 64, 1),  # as MAE's authors: 64 GPUs of 64 images
        (8, 64, 8),
        (1, 64, 64),
        (8, 100, 8),  # 512 a device in parts of at most 100: 5.12, so 8
        (8, 512, 1),
        (8, 5000, 1),
        (8, None, 1),
    ],
)
def test_the_fewest_parts_that_fit_and_divide(num_devices: int, images_per_device: int | None, expected: int) -> None:
    found = accumulated_batches(4096, num_devices=num_devices, images_per_device=images_per_device)
    assert found == expected


def test_a_share_that_only_single_images_divide_is_taken_one_by_one() -> None:
    assert accumulated_batches(14, num_devices=2, images_per_device=3) == 7


@pytest.mark.parametrize(("size", "num_devices", "nearest"), [(4096, 3, 4095), (10, 4, 8), (2, 6, 6)])
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_does(
    size: int, num_devices: int, nearest: int
) -> None:
    with pytest.raises(ValueError, match=f"{size} does not divide among {num_devices} devices; use {nearest}$"):
        accumulated_batches(size, num_devices=num_devices, images_per_device=None)
    assert accumulated_batches(nearest, num_devices=num_devices, images_per_device=None) == 1


@pytest.mark.parametrize("limit", [0, -3])
def test_a_device_that_may_hold_nothing_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"images_per_device must be at least 1, got {limit}"):
        accumulated_batches(8, num_devices=1, images_per_device=limit)
