import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.dataset import ImageFileDataset, SampleKey
from unmask.data.sources.folder import ImageFolder


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., Path]:
    """Writes small images under the names given and returns the root."""
    template = tmp_path / "template.png"
    Image.new("RGB", (2, 2), (255, 0, 0)).save(template)
    root = tmp_path / "root"
    root.mkdir()

    def write(*names: str) -> Path:
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(template, path)
        return root

    return write


def open_folder(root: str | Path, **changes: Any) -> ImageFolder:
    settings: dict[str, Any] = {
        "root": str(root),
        "image_size": 2,
        "pixel_mean": (0.0, 0.0, 0.0),
        "pixel_std": (1.0, 1.0, 1.0),
        "augmentation": Augmentation(),
        "global_batch_size": 2,
    }
    return ImageFolder(**settings | changes)


def files(folder: ImageFolder, split: str, root: Path) -> list[str]:
    samples = folder.dataset(split)
    assert isinstance(samples, ImageFileDataset)
    return [Path(path).relative_to(root).as_posix() for path in samples.paths]


def numbered(pattern: str, count: int) -> list[str]:
    return [pattern.format(number) for number in range(count)]


WHOLE = {"val_fraction": 0.0, "test_fraction": 0.0}


def test_split_and_class_folders_become_splits_and_labels(fill: Callable[..., Path]) -> None:
    root = fill("train/dog/1.png", "train/cat/2.png", "train/cat/1.png", "val/cat/3.png", "val/dog/3.png")
    fill("test/dog/5.png", "test/cat/5.png", "test/cat/4.png")
    folder = open_folder(root)
    assert folder.class_names == ("cat", "dog")
    assert files(folder, "train", root) == ["train/cat/1.png", "train/cat/2.png", "train/dog/1.png"]
    assert folder.dataset("train").labels.tolist() == [0, 0, 1]
    assert files(folder, "val", root) == ["val/cat/3.png", "val/dog/3.png"]
    assert files(folder, "test", root) == ["test/cat/4.png", "test/cat/5.png", "test/dog/5.png"]
    assert folder.dataset("test").labels.tolist() == [0, 0, 1]


def test_pixels_reach_the_batch_with_their_label(fill: Callable[..., Path]) -> None:
    root = fill("b/1.png", "a/1.png")
    Image.new("RGB", (2, 2), (0, 0, 255)).save(root / "a" / "1.png")
    folder = open_folder(root, **WHOLE)
    (batch,) = folder.evaluation_loader("train")
    colors = dict(zip(batch.label.tolist(), batch.image.flatten(2).amax(dim=2).tolist(), strict=True))
    assert colors == {0: [0, 0, 255], 1: [255, 0, 0]}


@pytest.mark.parametrize("names", [("Train", "valid", "TEST"), ("training", "validation", "testing")])
def test_other_names_of_splits_are_known(fill: Callable[..., Path], names: tuple[str, str, str]) -> None:
    root = fill(*(f"{name}/{split}.png" for name, split in zip(names, ("train", "val", "test"), strict=True)))
    folder = open_folder(root)
    for name, split in zip(names, ("train", "val", "test"), strict=True):
        assert files(folder, split, root) == [f"{name}/{split}.png"]


def test_flat_folder_is_unlabeled_and_keeps_odd_names(fill: Callable[..., Path]) -> None:
    names = ["IMG 1,2.JPG", "a\nb.png", "ß 図.webp", "é'\".tiff"]
    root = fill(*reversed(names))
    folder = open_folder(root, **WHOLE)
    assert files(folder, "train", root) == names
    assert folder.dataset("train").labels.tolist() == [-1] * 4
    assert folder.class_names == ()
    assert folder.dataset("train").read([SampleKey(0, 2)], lambda image, key: image).image.float().mean() == 85


def test_nested_folders_are_unlabeled_and_read_whole(fill: Callable[..., Path]) -> None:
    root = fill("b/c/d/1.png", "b/1.png", "a/2.png", "0.png")
    folder = open_folder(root, **WHOLE)
    assert files(folder, "train", root) == ["0.png", "a/2.png", "b/1.png", "b/c/d/1.png"]
    assert not folder.dataset("train").is_labeled


@pytest.mark.parametrize(
    ("names", "labels", "classes"),
    [
        (["a/1.png", "b/1.png"], "auto", ("a", "b")),
        (["a/1.png", "b/1.png"], "none", ()),
        (["a/1.png", "a/2.png"], "auto", ()),
        (["train/a/1.png", "train/a/2.png"], "auto", ()),
        (numbered("{:02}/1.png", 12), "auto", tuple(numbered("{:02}", 12))),
        (["a/1.png", "b/1.png", "1.png"], "auto", ()),
        (["a/1.png", "b/x/1.png"], "auto", ()),
        (["a/1.png", "b/x/1.png"], "folders", ("a", "b")),
        (["train/a/1.png", "train/a/2.png"], "folders", ("a",)),
    ],
)
def test_labels_follow_the_rule(
    fill: Callable[..., Path], names: list[str], labels: str, classes: tuple[str, ...]
) -> None:
    folder = open_folder(fill(*names), labels=labels, **WHOLE)
    assert folder.class_names == classes
    assert folder.dataset("train").is_labeled == bool(classes)
    assert len(folder.dataset("train")) == len(names)


def test_splits_without_folder_are_disjoint_shares_of_all_images(fill: Callable[..., Path]) -> None:
    names = numbered("{:02}.png", 40)
    root = fill(*names)
    folder = open_folder(root, val_fraction=0.25, test_fraction=0.1)
    splits = {split: files(folder, split, root) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in splits.items()} == {"train": 26, "val": 10, "test": 4}
    assert sorted([*splits["train"], *splits["val"], *splits["test"]]) == names


def test_held_out_images_come_evenly_from_the_classes(fill: Callable[..., Path]) -> None:
    root = fill(*numbered("train/a/{}.png", 30), *numbered("train/b/{}.png", 10), "test/a/1.png", "test/b/1.png")
    labels = open_folder(root, val_fraction=0.2).dataset("val").labels
    assert Counter(labels.tolist()) == {0: 6, 1: 2}


def test_with_val_alone_val_stays_whole_and_test_comes_from_train(fill: Callable[..., Path]) -> None:
    root = fill(*numbered("train/{}.png", 20), *numbered("val/{}.png", 6))
    folder = open_folder(root, test_fraction=0.25)
    test, train = files(folder, "test", root), files(folder, "train", root)
    assert files(folder, "val", root) == numbered("val/{}.png", 6)
    assert len(test) == 5
    assert sorted(test + train) == sorted(numbered("train/{}.png", 20))


def test_test_images_depend_on_split_seed_alone(fill: Callable[..., Path]) -> None:
    root = fill(*numbered("{:02}.png", 40))
    test = files(open_folder(root), "test", root)
    assert files(open_folder(root, seed=7), "test", root) == test
    assert files(open_folder(root, val_fraction=0.5), "test", root) == test
    assert files(open_folder(root, split_seed=7), "test", root) != test


def test_a_test_folder_without_classes_is_unlabeled(fill: Callable[..., Path]) -> None:
    folder = open_folder(fill("train/a/1.png", "train/b/1.png", "test/1.png", "val/a/1.png", "val/b/1.png"))
    assert folder.dataset("train").is_labeled
    assert folder.dataset("val").is_labeled
    assert folder.dataset("test").labels.tolist() == [-1]


def test_clutter_is_neither_image_nor_class(fill: Callable[..., Path], tmp_path: Path) -> None:
    root = fill("a/1.png", "b/1.png", "a/._1.png", "b/.ipynb_checkpoints/1-checkpoint.png", "__MACOSX/a/1.png")
    fill(".cache/1.png", "a/notes.txt", "README", "png", "a/1.png.bak")
    folder = open_folder(root, **WHOLE)
    assert files(folder, "train", root) == ["a/1.png", "b/1.png"]
    assert folder.class_names == ("a", "b")


def test_ignored_files_are_reported(fill: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    open_folder(fill("1.png", "a.txt", "b.TXT", "c.heic"), **WHOLE).dataset("train")
    assert "ignored 3 files" in caplog.text
    assert "2 .txt, 1 .heic" in caplog.text
    assert "train split: 1 images, no labels" in caplog.text


def test_links_are_followed(fill: Callable[..., Path], tmp_path: Path) -> None:
    root = fill("a/1.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(root / "a" / "1.png", elsewhere / "9.png")
    (root / "b").symlink_to(elsewhere, target_is_directory=True)
    (root / "a" / "2.png").symlink_to(elsewhere / "9.png")
    folder = open_folder(root, **WHOLE)
    assert files(folder, "train", root) == ["a/1.png", "a/2.png", "b/9.png"]
    assert folder.class_names == ("a", "b")


def test_a_root_with_one_folder_stands_for_that_folder(fill: Callable[..., Path]) -> None:
    root = fill("dataset/train/a/1.png", "dataset/train/b/1.png", "dataset/test/a/2.png", "dataset/test/b/2.png")
    folder = open_folder(root, val_fraction=0.0)
    assert files(folder, "train", root) == ["dataset/train/a/1.png", "dataset/train/b/1.png"]
    assert files(folder, "test", root) == ["dataset/test/a/2.png", "dataset/test/b/2.png"]


@pytest.mark.parametrize(("val_fraction", "test_fraction"), [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5)])
def test_shares_that_leave_nothing_are_refused(
    fill: Callable[..., Path], val_fraction: float, test_fraction: float
) -> None:
    with pytest.raises(
        ValueError, match=rf"data.val_fraction and data.test_fraction .* got {val_fraction} and {test_fraction}"
    ):
        open_folder(fill("1.png"), val_fraction=val_fraction, test_fraction=test_fraction)


def test_a_root_that_is_no_folder_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"data.root=no/such does not exist \(seen from .+\); set data.root"):
        open_folder("no/such")
    with pytest.raises(ValueError, match=r"data.root=.*test_folder\.py is not a folder"):
        open_folder(__file__)


def test_a_folder_without_images_says_what_it_holds(fill: Callable[..., Path]) -> None:
    with pytest.raises(
        ValueError, match=r"no image below .*root \(no file at all\); expected files named \.avif, .*png"
    ):
        open_folder(fill()).dataset("train")
    with pytest.raises(ValueError, match=r"no image below .*root \(only 2 \.heic, 1 \.txt\)"):
        open_folder(fill("1.heic", "2.heic", "x/3.txt")).dataset("train")


def test_an_empty_class_folder_is_refused(fill: Callable[..., Path]) -> None:
    root = fill("a/1.png", "b/1.png")
    (root / "c").mkdir()
    with pytest.raises(ValueError, match=r"no image in 'c' of .*root, which would be a class; .*data.labels=none"):
        open_folder(root, **WHOLE).dataset("train")
    assert len(open_folder(root, labels="none", **WHOLE).dataset("train")) == 2


def test_an_image_outside_the_class_folders_is_named(fill: Callable[..., Path]) -> None:
    root = fill("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png", "val/stray.png")
    with pytest.raises(ValueError, match=r"val/stray\.png lies in no class folder of .*val"):
        open_folder(root, **WHOLE).dataset("val")
    assert not open_folder(root / "val", **WHOLE).dataset("train").is_labeled
    with pytest.raises(ValueError, match=r"val/stray\.png lies in no class folder"):
        open_folder(root / "val", labels="folders", **WHOLE).dataset("train")
    fill("test/1.png")
    with pytest.raises(ValueError, match=r"test/1\.png lies in no class folder"):
        open_folder(root, labels="folders").dataset("test")


def test_classes_that_differ_between_splits_are_named(fill: Callable[..., Path]) -> None:
    root = fill("train/cat/1.png", "train/dog/1.png", "train/eel/1.png", "test/cat/1.png", "test/Dog/1.png")
    fill("test/eel/1.png", "val/cat/1.png", "val/dog/1.png")
    with pytest.raises(ValueError, match=r"the classes differ: 'Dog' only in .*test, 'dog' only in .*train; give both"):
        open_folder(root).dataset("test")
    with pytest.raises(ValueError, match=r"the classes differ: none only in .*val, 'eel' only in .*train"):
        open_folder(root).dataset("val")


def test_splits_need_a_train_folder(fill: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"root has the folder val and test but no folder train"):
        open_folder(fill("val/1.png", "test/1.png")).dataset("train")


def test_two_folders_for_one_split_are_refused(fill: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"root/val and .*root/valid are both the val split; keep one"):
        open_folder(fill("train/1.png", "val/1.png", "valid/1.png")).dataset("train")


def test_too_few_images_to_hold_out_say_how_to_go_on(fill: Callable[..., Path]) -> None:
    root = fill("1.png", "2.png")
    with pytest.raises(
        ValueError, match=r"\(2\) to hold out 1 for test and 1 for val; set data.test_fraction=0 and data.val"
    ):
        open_folder(root).dataset("train")
    assert len(open_folder(root, test_fraction=0.0).dataset("train")) == 1
    assert len(open_folder(root, **WHOLE).dataset("train")) == 2


def test_a_split_that_is_not_held_out_is_refused(fill: Callable[..., Path]) -> None:
    folder = open_folder(fill("1.png", "2.png", "3.png"), test_fraction=0.0)
    with pytest.raises(
        ValueError, match=r"no test split .* data.test_fraction=0; set a fraction .* a folder test beside train"
    ):
        folder.dataset("test")


def test_a_link_back_to_a_folder_above_is_refused(fill: Callable[..., Path]) -> None:
    root = fill("0.png", "a/b/1.png")
    (root / "a" / "b" / "again").symlink_to(root, target_is_directory=True)
    with pytest.raises(ValueError, match=r"symlink cycle: .*root/a/b/again leads back"):
        open_folder(root).dataset("train")


@pytest.mark.parametrize("target", ["gone.png", "2.png"])  # the second points at itself
def test_a_broken_link_is_named(fill: Callable[..., Path], target: str) -> None:
    root = fill("1.png")
    (root / "2.png").symlink_to(target)
    with pytest.raises(ValueError, match=rf"broken link .*root/2\.png -> {target}; repair or remove it"):
        open_folder(root, **WHOLE).dataset("train")


def test_a_folder_that_cannot_be_listed_is_named(fill: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: object) -> None:
        raise PermissionError(13, "Permission denied")

    root = fill("1.png")
    monkeypatch.setattr("unmask.data.files.listing.os.scandir", refuse)
    with pytest.raises(ValueError, match=r"cannot read the folder .*root \(Permission denied\)"):
        open_folder(root).dataset("train")


def test_a_folder_named_like_an_image_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "1.jpg").mkdir()
    with pytest.raises(ValueError, match=r"1\.jpg is a folder with the name of an image; rename or remove it"):
        open_folder(tmp_path).dataset("train")


def test_arrays_are_images_where_numbers_are_read(tmp_path: Path) -> None:
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.zeros((5, 8, 8), dtype=np.uint16))
    with pytest.raises(ValueError, match=r"only 4 \.npy \(arrays are read where data\.channels is not 3"):
        open_folder(tmp_path).dataset("train")
    statistic = (0.5,) * 5
    data = open_folder(tmp_path, channels=5, pixel_mean=statistic, pixel_std=statistic)
    assert sum(len(data.dataset(split)) for split in ("train", "val", "test")) == 4
