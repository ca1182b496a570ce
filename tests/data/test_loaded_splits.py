from collections.abc import Callable

import pytest
import torch

from unmask.data.dataset import ImageDataset, InMemoryDataset
from unmask.data.files.splits import Split
from unmask.data.loaded_splits import LoadedSplits


@pytest.fixture
def load() -> Callable[[Split], ImageDataset]:
    """Reads 12 images of three classes, each of the color of its number."""

    def read(split: Split) -> ImageDataset:
        read_splits.append(split)
        images = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 3, 2, 2)
        return InMemoryDataset(images, torch.arange(12) % 3, ("a", "b", "c"))

    read_splits: list[Split] = []
    read.splits = read_splits  # type: ignore[attr-defined]
    return read


def numbers(dataset: ImageDataset) -> list[int]:
    assert isinstance(dataset, InMemoryDataset)
    return dataset.images[:, 0, 0, 0].tolist()


def test_a_split_is_read_once_and_when_it_is_asked_for(load) -> None:
    splits = LoadedSplits(load)
    assert "train" not in splits
    assert splits["train"] is splits["train"]
    assert "train" in splits
    assert load.splits == ["train"]


def test_chosen_images_are_those_of_the_whole_split_and_none_brings_all_back(load) -> None:
    splits = LoadedSplits(load)
    splits.choose_training(torch.tensor([1, 4, 5]))
    assert numbers(splits["train"]) == [1, 4, 5]
    splits.choose_training(torch.tensor([0, 11]))
    assert numbers(splits["train"]) == [0, 11]
    splits.choose_training(None)
    assert numbers(splits["train"]) == list(range(12))


def test_a_fraction_is_one_of_the_chosen_images_and_asking_again_starts_anew(load) -> None:
    splits = LoadedSplits(load)
    chosen = [0, 1, 2, 6, 7, 8]  # two of each class
    splits.choose_training(torch.tensor(chosen))
    splits.limit_training(0.5, seed=1)
    first = numbers(splits["train"])
    assert len(first) == 3
    assert set(first) < set(chosen)
    assert sorted(number % 3 for number in first) == [0, 1, 2]
    splits.limit_training(0.5, seed=1)
    assert numbers(splits["train"]) == first
    splits.limit_training(1.0)
    assert numbers(splits["train"]) == chosen
    splits.limit_training(0.01)
    assert len(splits["train"]) == 1


def test_another_data_set_stands_beside_the_splits_it_was_put_into(load) -> None:
    splits = LoadedSplits(load)
    splits["val"]
    other = splits.with_dataset("train", splits["val"].subset(torch.tensor([3])))
    assert numbers(other["train"]) == [3]
    assert numbers(splits["train"]) == list(range(12))
    assert other["val"] is splits["val"]
    assert other.fingerprints().keys() == {"train", "val"}
    assert other.fingerprints()["train"] != splits.fingerprints()["train"]
