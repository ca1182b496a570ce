import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unmask.data.kaggle import Kaggle
from unmask.data.transforms import Augmentation

BREEDS = ["pug", "collie", "pug", "beagle", "collie", "beagle"]


def make(root: Path, **changes: Any) -> Kaggle:
    settings = {
        "image_size": 32,
        "pixel_mean": (0.5, 0.5, 0.5),
        "pixel_std": (0.5, 0.5, 0.5),
        "augmentation": Augmentation(),
        "global_batch_size": 2,
        "val_share": 0.2,
        "test_share": 0.2,
    }
    return Kaggle(root=str(root), **settings | changes)


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


def test_unlabelled_test_images_are_no_test_split(competition: Path) -> None:
    data = make(competition)
    parts = {split: set(data.samples(split).paths) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 7
    assert not any("test/t" in path for part in parts.values() for path in part)


def test_a_labelled_test_folder_is_the_test_split(competition: Path) -> None:
    with (competition / "labels.csv").open("a") as table:
        table.write("t0,pug\nt1.png,collie\n")
    samples = make(competition).samples("test")
    assert [Path(path).name for path in samples.paths] == ["t0.png", "t1.png"]
    assert [samples.class_names[label] for label in samples.labels] == ["pug", "collie"]


def test_columns_can_be_named(competition: Path) -> None:
    (competition / "labels.csv").write_text(
        "weight,breed,file\n" + "".join(f"1,{b},a{n}.png\n" for n, b in enumerate(BREEDS))
    )
    data = make(competition, id_column="file", label_column="breed")
    assert data.training_images.class_names == ("beagle", "collie", "pug")
    with pytest.raises(ValueError, match=r"names no image below .*: there .* set data.id_column"):
        make(competition).samples("train")
    with pytest.raises(ValueError, match=r"no column 'race'; set data.label_column to one of weight, breed, file"):
        make(competition, label_column="race").samples("train")


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
