from pathlib import Path

import pytest
from PIL import Image

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.sources.image_paths import ImagePaths


def point_at(path: Path | str) -> ImagePaths:
    return ImagePaths(
        image=str(path),
        image_size=16,
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=(0.5, 0.5, 0.5),
        augmentation=Augmentation(),
        global_batch_size=2,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("test/cat/one.png", "train/dog/two.png", "three.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no image")
    return tmp_path


def test_a_file_a_folder_of_any_layout_and_a_list_are_the_test_split(folder: Path) -> None:
    everything = [str(folder / name) for name in ("test/cat/one.png", "three.png", "train/dog/two.png")]
    listed = folder / "list.txt"
    listed.write_text("three.png, 4\ntest/cat/one.png\n")
    assert list(point_at(folder).dataset("test").paths) == everything
    assert list(point_at(folder / "three.png").dataset("test").paths) == everything[1:2]
    assert list(point_at(listed).dataset("test").paths) == [everything[1], everything[0]]
    assert point_at(folder).dataset("test").labels.tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["cat/1.png", "dog/2.png", "dog/3.png"], ("cat", "dog"), [0, 1, 1]),
        (["train/1.png", "val/2.png"], (), [-1, -1]),  # splits
        (["cat/1.png", "cat/2.png"], (), [-1, -1]),  # one folder says nothing
        (["cat/1.png", "dog/2.png", "3.png"], (), [-1, -1, -1]),
    ],
)
def test_images_in_class_folders_have_their_labels(
    tmp_path: Path, names: list[str], classes: tuple[str, ...], labels: list[int]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    found = {Path(path).name: label for path, label in _labeled(point_at(tmp_path))}
    assert point_at(tmp_path).dataset("test").class_names == classes
    assert found == {Path(name).name: label for name, label in zip(names, labels, strict=True)}


def test_a_list_with_labels_keeps_them(folder: Path) -> None:
    listed = folder / "list.txt"
    listed.write_text("three.png, b\ntest/cat/one.png, a\n")
    data = point_at(listed)
    names = data.dataset("test").class_names
    assert {Path(path).name: names[label] for path, label in _labeled(data)} == {"three.png": "b", "one.png": "a"}


def _labeled(data: ImagePaths) -> list[tuple[str, int]]:
    dataset = data.dataset("test")
    return list(zip(dataset.paths, dataset.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("name", "split", "sentence"),
    [
        ("nowhere.png", "test", "there is nothing at .*nowhere.png"),
        ("empty", "test", "no image below .*empty"),
        ("three.png", "train", "predicted and shown, not trained on"),
    ],
)
def test_mistakes_are_refused(folder: Path, name: str, split: str, sentence: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=sentence):
        point_at(folder / name).dataset(split)
