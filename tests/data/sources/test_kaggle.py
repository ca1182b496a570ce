import logging
import re
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.sources.kaggle import Kaggle

BREEDS = ["pug", "collie", "pug", "beagle", "collie", "beagle"]


def make(root: Path | None, **changes: Any) -> Kaggle:
    settings = {
        "image_size": 32,
        "pixel_mean": (0.5, 0.5, 0.5),
        "pixel_std": (0.5, 0.5, 0.5),
        "augmentation": Augmentation(),
        "global_batch_size": 2,
        "val_fraction": 0.2,
        "test_fraction": 0.2,
    }
    return Kaggle(root=None if root is None else str(root), **settings | changes)


def zipped(archive: Path, names: list[str], folder: str) -> None:
    with zipfile.ZipFile(archive, "w") as opened:
        for name in names:
            picture = archive.parent / "picture.png"
            Image.new("RGB", (8, 8)).save(picture)
            opened.write(picture, f"{folder}{name}")
            picture.unlink()


@pytest.fixture
def competition(tmp_path: Path) -> Path:
    """Zipped flat images and a table, the test images without labels."""
    root = tmp_path / "dogs"
    root.mkdir()
    zipped(root / "train.zip", [f"a{n}.png" for n in range(6)] + ["stray.png"], "train/")
    zipped(root / "test.zip", ["t0.png", "t1.png"], "")
    (root / "labels.csv").write_text("id,breed\n" + "".join(f"a{n},{breed}\n" for n, breed in enumerate(BREEDS)))
    return root


def test_archives_are_extracted_and_labels_come_from_the_table(competition: Path) -> None:
    samples = make(competition).training_images
    assert {Path(path).parent for path in samples.paths} == {competition / "train"}
    names = {Path(path).stem: label for path, label in zip(samples.paths, samples.labels.tolist(), strict=True)}
    assert samples.class_names == ("beagle", "collie", "pug")
    assert names == {f"a{n}": samples.class_names.index(breed) for n, breed in enumerate(BREEDS)} | {"stray": -1}


def test_only_what_is_extracted_now_is_said_to_be(competition: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    make(competition)
    assert caplog.text.count(" is extracted to ") == 2
    caplog.clear()
    make(competition)
    assert "extracted" not in caplog.text


def test_unlabeled_test_images_are_no_test_split(competition: Path) -> None:
    data = make(competition)
    parts = {split: set(data.dataset(split).paths) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 7
    assert not any("test/t" in path for part in parts.values() for path in part)


def test_a_labeled_test_folder_is_the_test_split(competition: Path) -> None:
    with (competition / "labels.csv").open("a") as table:
        table.write("t0,pug\nt1.png,collie\n")
    samples = make(competition).dataset("test")
    assert [Path(path).name for path in samples.paths] == ["t0.png", "t1.png"]
    assert [samples.class_names[label] for label in samples.labels] == ["pug", "collie"]


def test_columns_can_be_named(competition: Path) -> None:
    (competition / "labels.csv").write_text(
        "weight,breed,file\n" + "".join(f"1,{b},a{n}.png\n" for n, b in enumerate(BREEDS))
    )
    data = make(competition, id_column="file", label_column="breed")
    assert data.training_images.class_names == ("beagle", "collie", "pug")
    with pytest.raises(ValueError, match=r"names no image below .*: there .* set data.id_column"):
        make(competition).dataset("train")
    with pytest.raises(ValueError, match=r"no column 'race'; set data.label_column to one of weight, breed, file"):
        make(competition, label_column="race").dataset("train")


def test_one_archive_of_class_folders_needs_no_table(tmp_path: Path) -> None:
    zipped(tmp_path / "pets.zip", [f"{breed}/{n}.png" for n in range(3) for breed in ("pug", "collie")], "pets/")
    data = make(tmp_path / "pets.zip")
    assert data.class_names == ("collie", "pug")
    assert len(data.training_images) == 6
    again = make(tmp_path / "pets.zip")  # already extracted
    assert list(again.training_images.paths) == list(data.training_images.paths)


@pytest.mark.parametrize("member", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_a_member_outside_the_folder_is_refused_and_nothing_extracted(tmp_path: Path, member: str) -> None:
    archive = tmp_path / "in" / "x.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("fine.txt", "fine")
        opened.writestr(member, "evil")
    with pytest.raises(ValueError, match=r"would be written outside .*; nothing was extracted"):
        make(archive)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "x.zip"]


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="'link' is a link; nothing was extracted"):
        make(tmp_path / "x.zip")


def test_a_page_saved_as_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("<html>403</html>")
    with pytest.raises(ValueError, match=r"x\.zip is not a zip archive"):
        make(tmp_path / "x.zip")


def test_root_or_slug_one_of_them() -> None:
    with pytest.raises(ValueError, match="give one"):
        make(Path("x"), slug="a/b")


def test_a_slug_is_downloaded_by_kagglehub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it hands over is a folder of a version's number."""
    downloaded = tmp_path / "datasets" / "owner" / "name" / "versions" / "2"
    for breed in ("pug", "collie"):
        (downloaded / "Dogs" / breed).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(downloaded / "Dogs" / breed / f"{number}.png")
    asked: list[str] = []

    def download(slug: str) -> str:
        asked.append(slug)
        return str(downloaded)

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=download))
    data = make(None, slug="owner/name")
    assert asked == ["owner/name"]
    assert data.training_images.class_names == ("collie", "pug")
    assert len(data.training_images) == 6


def test_without_kagglehub_one_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(ValueError, match=r"downloads by kagglehub; pip install 'unmask\[kaggle\]', or set data\.root"):
        make(None, slug="owner/name")


@pytest.fixture
def breeds(tmp_path: Path) -> Path:
    """Two class folders of 30 and 10 images."""
    for breed, count in (("pug", 30), ("collie", 10)):
        (tmp_path / "dogs" / breed).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / "dogs" / breed / f"{number}.png")
    return tmp_path / "dogs"


def test_the_parts_are_disjoint_and_the_same_in_every_run(breeds: Path) -> None:
    shared = {"num_labeled": 8, "val_fraction": 2, "test_fraction": 10}
    pre_training = make(breeds, part="unlabeled", **shared)
    classifier = make(breeds, part="labeled", seed=5, **shared)
    parts = [set(pre_training.dataset("train").paths)]
    parts += [set(classifier.dataset(split).paths) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [20, 8, 2, 10]
    assert len(set.union(*parts)) == 40
    assert set(pre_training.dataset("test").paths) == parts[3]
    assert pre_training.dataset("train").labels.tolist() == [-1] * 20
    assert pre_training.class_names == ()
    labels = classifier.dataset("train").labels
    assert [classifier.class_names[label] for label in labels] == [
        Path(path).parent.name for path in classifier.dataset("train").paths
    ]
    assert labels.bincount().tolist() == [2, 6]  # a quarter of them are collies


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"part": "labeled"}, "data.part=labeled and data.num_labeled=0 do not go together"),
        ({"num_labeled": 5}, "data.part=all and data.num_labeled=5 do not go together"),
        ({"part": "labeled", "num_labeled": 24}, "data.num_labeled=24 of 24 training images leaves one part empty"),
        ({"test_fraction": 39, "val_fraction": 1}, "has too few images (40) to hold out 39 for test and 1 for val"),
        ({"test_fraction": 2.5}, "or whole numbers of images, got 0.2 and 2.5"),
    ],
)
def test_parts_that_cannot_be_made_are_refused(breeds: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make(breeds, **changes).dataset("train")
