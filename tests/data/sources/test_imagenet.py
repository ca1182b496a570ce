from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.sources.imagenet import ImageNet
from unmask.data.splits import hold_out_per_class


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of 4 training and 2 validation images, each of a gray of its own."""
    gray = 0
    for split, count in (("train", 4), ("val", 2)):
        for wnid in ("n02", "n01", "n03"):
            folder = tmp_path / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 40), (gray, gray, gray)).save(folder / f"{wnid}_{number}.png")
                gray += 5
    return tmp_path


def make(root: Path, **changes) -> ImageNet:
    settings = {
        "held_out_per_class": 1,
        "image_size": 32,
        "pixel_mean": (0.5, 0.5, 0.5),
        "pixel_std": (0.5, 0.5, 0.5),
        "augmentation": Augmentation(),
        "global_batch_size": 2,
    }
    return ImageNet(root=str(root), **settings | changes)


def test_official_validation_images_are_the_test_split_and_val_is_held_out_of_training(root: Path) -> None:
    data = make(root)
    paths = {split: {Path(path) for path in data.dataset(split).paths} for split in ("train", "val", "test")}
    assert [len(paths[split]) for split in ("train", "val", "test")] == [9, 3, 6]
    assert paths["train"] | paths["val"] == set((root / "train").rglob("*.png"))
    assert paths["test"] == set((root / "val").rglob("*.png"))
    assert sorted(path.parent.name for path in paths["val"]) == ["n01", "n02", "n03"]
    assert data.class_names == ("n01", "n02", "n03")
    for split in paths:
        names = [Path(path).parent.name for path in data.dataset(split).paths]
        assert [data.class_names[label] for label in data.dataset(split).labels] == names


def test_the_rule_is_that_of_lightning_bolts() -> None:
    """Written again as bolts walks: shuffle (path, label) pairs, give each class's first ones away."""
    labels = torch.tensor([0] * 7 + [1] * 5 + [3] * 9)
    pairs = list(enumerate(labels.tolist()))
    np.random.RandomState(1234).shuffle(pairs)
    taken: dict[int, list[int]] = {}
    for index, label in pairs:
        if len(taken.setdefault(int(label), [])) < 3:
            taken[int(label)].append(int(index))
    kept, held_out = hold_out_per_class(labels, 3)
    assert held_out.tolist() == sorted(index for indices in taken.values() for index in indices)
    assert sorted(kept.tolist() + held_out.tolist()) == list(range(21))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"held_out_per_class": 4}, "a class has 4 image.* set data.held_out_per_class=3 or less"),
        ({"held_out_per_class": -1}, "held_out_per_class must not be below 0"),
    ],
)
def test_a_class_that_would_lose_all_its_images_is_refused(root: Path, change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(root, **change).dataset("train")


def test_a_class_of_one_image_lets_none_be_held_out() -> None:
    with pytest.raises(ValueError, match=r"1 image.*, of which 2 cannot be held out; set data.held_out_per_class=0$"):
        hold_out_per_class(torch.tensor([0, 1, 1]), 2)


def test_holding_none_out_trains_on_all_and_says_what_val_then_is(root: Path, caplog) -> None:
    data = make(root, held_out_per_class=0)
    assert len(data.dataset("train")) == 12
    assert list(data.dataset("val").paths) == list(data.dataset("test").paths)
    assert "chosen on the test images" in caplog.text


def test_another_layout_is_refused_with_the_one_expected(root: Path) -> None:
    (root / "val").rename(root / "elsewhere")
    with pytest.raises(ValueError, match=r"has no folder val; data=imagenet expects train/<wnid>/ and val/<wnid>/"):
        make(root).dataset("test")
