from types import SimpleNamespace
from typing import Any

import pytest

from unmask.data.position import BatchShape, TrainingPosition


def stand_at(epoch: int, done: int) -> Any:
    return SimpleNamespace(
        fit_loop=SimpleNamespace(
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=epoch)),
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=done))),
        )
    )


HERE = BatchShape(images_per_batch=8, num_images=50)


@pytest.mark.parametrize(
    "saved", [{"images_per_batch": 4, "num_images": 50}, {"images_per_batch": 8, "num_images": 51}]
)
def test_a_position_within_an_epoch_of_other_batches_is_refused(saved: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match=r"after 3 batches of an epoch of 5\d images in batches of \d.* this run has 50"
    ):
        TrainingPosition(stand_at(1, 3), HERE, saved)()
    assert TrainingPosition(stand_at(1, 0), HERE, saved)() == (1, 0)  # an epoch's end knows no batches


@pytest.mark.parametrize("saved", [None, HERE._asdict()])
def test_the_position_is_the_trainers(saved: Any) -> None:
    assert TrainingPosition(stand_at(2, 5), HERE, saved)() == (2, 5)
    assert TrainingPosition(None, HERE, saved)() == (0, 0)
