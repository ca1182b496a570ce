import pytest
import torch

from unmask.data.augmentation.boxes import CropDraws, first_fitting, first_fitting_of_one, shape_attempts, widest_float


@pytest.mark.parametrize(("height", "width"), [(32, 32), (375, 500), (7, 90), (1, 1)])
def test_one_image_and_a_batch_get_the_same_boxes(height: int, width: int) -> None:
    attempts = shape_attempts(torch.rand(3000, 12), (0.08, 1.0), (3 / 4, 4 / 3))
    boxes, fits = first_fitting(attempts, height, width)
    alone = [first_fitting_of_one(rows, height, width) for rows in attempts.tolist()]
    assert [box is not None for box in alone] == fits.tolist()
    together = list(zip(*(side.tolist() for side in boxes), strict=True))
    assert [box for box in alone if box] == [box for box, fit in zip(together, fits.tolist(), strict=True) if fit]


def test_sides_between_two_pixels_are_rounded_alike() -> None:
    """A box of 4.5 x 2.5 pixels: both ways round half to even."""
    attempts = torch.tensor([[[20.25 / 100, 6.25 / 100, 0.0, 0.0]]], dtype=torch.float64)
    boxes, _ = first_fitting(attempts, 10, 10)
    assert (int(boxes.height), int(boxes.width)) == (4, 2)
    assert first_fitting_of_one(attempts[0].tolist(), 10, 10) == (0, 0, 4, 2)


def test_the_first_attempt_that_fits_is_taken() -> None:
    too_tall, fitting = [2.0, 0.1, 0.5, 0.5], [0.25, 0.16, 0.99, 0.0]
    attempts = torch.tensor([[too_tall, fitting, [0.01, 0.01, 0.0, 0.0]]], dtype=torch.float64)
    boxes, fits = first_fitting(attempts, 20, 20)
    assert fits.item()
    assert [int(side) for side in boxes] == [10, 0, 10, 8]  # top is 0.99 of the 11 places there are
    assert first_fitting_of_one(attempts[0].tolist(), 20, 20) == (10, 0, 10, 8)


def test_apples_gpus_are_not_asked_for_float64() -> None:
    assert widest_float(torch.device("mps")) == torch.float32
    assert widest_float(torch.device("cpu")) == widest_float(torch.device("cuda")) == torch.float64


def test_draws_are_handed_out_image_by_image() -> None:
    draws = CropDraws(torch.tensor([0.25, 0.75]), torch.rand(2, 3, 4, dtype=torch.float64))
    for number, each in enumerate(draws.each()):
        assert each.flip == draws.flip[number]
        assert torch.equal(torch.tensor(each.attempts, dtype=torch.float64), draws.attempts[number])
