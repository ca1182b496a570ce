"""Lists of labeled images: how many of each class, which, and what a file of them says."""

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.dataset import ImageFileDataset
from unmask.data.files.decoding import ImageDecoder
from unmask.data.files.paths import PathList
from unmask.data.sources.filelist import FileList
from unmask.evaluation.few_labels import Budget, FewLabels, mean_and_std

ONE_SHOT, THREE_SHOT = Budget("1shot", None, 1), Budget("3shot", None, 3)


@pytest.fixture
def make_few(tmp_path):
    def make(**changes):
        return FewLabels(
            **{"label_fractions": (), "per_class": (1,), "seeds": (0,), "directory": tmp_path / "lists"} | changes
        )

    return make


@pytest.fixture
def labels():
    """Three classes of 40, 8 and 52 images, mixed."""
    return torch.tensor([0] * 40 + [1] * 8 + [2] * 52)[torch.randperm(100)]


@pytest.mark.parametrize(
    ("budget", "counts"),
    [
        (THREE_SHOT, [3, 3, 3]),
        (Budget("10pct", 0.1, None), [4, 1, 5]),
        (Budget("1pct", 0.01, None), [1, 1, 1]),  # at least one
        (Budget("100pct", 1.0, None), [40, 8, 52]),
    ],
)
def test_every_class_gets_its_number(make_few, labels, budget, counts):
    positions = make_few().choose(labels, budget, seed=5)
    assert labels[positions].bincount().tolist() == counts
    assert positions.tolist() == sorted(set(positions.tolist()))


def test_a_seed_is_a_list_and_a_larger_budget_contains_the_smaller(make_few, labels):
    few = make_few()
    small, large = (set(few.choose(labels, budget, seed=1).tolist()) for budget in (ONE_SHOT, THREE_SHOT))
    assert small < large
    assert large == set(few.choose(labels, THREE_SHOT, seed=1).tolist())
    assert large != set(few.choose(labels, THREE_SHOT, seed=2).tolist())


def test_budgets_are_named_by_percent_and_shots(make_few):
    few = make_few(label_fractions=(0.01, 0.005), per_class=(10,))
    assert [budget.name for budget in few.budgets] == ["1pct", "0.5pct", "10shot"]


def test_a_list_of_files_is_one_that_filelist_reads(make_few, make_data, draw_split, tmp_path):
    images, labels = draw_split(12, num_classes=3, spread=20.0)
    paths = [tmp_path / f"photo, {number}.png" for number in range(12)]
    for path, image in zip(paths, images, strict=True):
        to_pil_image(image).save(path)
    data = make_data({}, num_classes=3)
    photos = ImageFileDataset(PathList(map(str, paths)), labels, ("a", "b", "c"), decode=ImageDecoder().read)
    data = data.with_dataset("train", photos)
    few = make_few()
    positions = few.choose(labels, THREE_SHOT, seed=4)
    written = few.write(data, THREE_SHOT, 4, positions)
    assert written.name == "train_3shot_seed4.txt"
    read = FileList(
        train=str(written), val_fraction=0.0, test_fraction=0.0, image_size=4,
        pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1), augmentation=Augmentation(), global_batch_size=1,
    ).dataset("train")  # fmt: skip
    assert list(read.paths) == [str(paths[position]) for position in positions]
    assert torch.equal(read.labels, labels[positions])


def test_a_list_of_images_without_files_names_their_numbers(make_few, make_data, draw_split):
    data = make_data({"train": draw_split(9, num_classes=3, spread=20.0)}, num_classes=3)
    written = make_few().write(data, ONE_SHOT, 0, torch.tensor([3, 7, 8]))
    assert written.read_text().splitlines() == [
        "# 3 of the 9 training images of InMemory: 1shot, seed 0",
        "3, 0",
        "7, 1",
        "8, 2",
    ]


def test_a_class_with_too_few_images_is_named(make_few, make_data, draw_split):
    images, labels = draw_split(9, num_classes=3, spread=20.0)
    data = make_data({"train": (images[:8], labels[:8])}, num_classes=3)
    with pytest.raises(ValueError, match=r"asks for 3 .* class 'class 2' has 2; use eval.per_class of at most 2"):
        make_few(per_class=(1, 3)).require(data, evaluation="fewshot")
    few, bare = make_few(label_fractions=(0.5,), per_class=()), make_data({"train": (images, labels)}, num_classes=4)
    with pytest.raises(ValueError, match=r"eval=fewshot asks for 1 .* class 'class 3' has 0; add images of it"):
        few.require(bare, evaluation="fewshot")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_class": ()}, "both empty"),
        ({"label_fractions": (1.5,)}, "above 0 and at most 1"),
        ({"per_class": (0,)}, "whole numbers from 1"),
        ({"seeds": ()}, r"eval.seeds is empty"),
        ({"seeds": (1, 1)}, r"eval.seeds names a value twice"),
    ],
)
def test_impossible_settings_are_refused(make_few, settings, message):
    with pytest.raises(ValueError, match=message):
        make_few(**settings)


def test_the_deviation_is_that_of_a_sample():
    assert mean_and_std([1.0, 3.0]) == {"": 2.0, "_std": pytest.approx(2**0.5)}
    assert mean_and_std([4.0]) == {"": 4.0}
