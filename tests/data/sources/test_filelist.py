from pathlib import Path

import pytest
from PIL import Image

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.sources.filelist import FileList

SETTINGS = {
    "image_size": 32,
    "pixel_mean": (0.5, 0.5, 0.5),
    "pixel_std": (0.5, 0.5, 0.5),
    "augmentation": Augmentation(),
    "global_batch_size": 2,
}
NAMES = ["plain.png", "with space.png", "comma, here.png", "cat, 3.jpeg", "Ünïcödé_图.png", "deep/er.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def make(folder: Path, content: str | bytes, **changes) -> FileList:
    return FileList(
        train=write(folder, "train.txt", content), **{"val_fraction": 0.0, "test_fraction": 0.0} | SETTINGS | changes
    )


def test_odd_paths_survive_and_labels_stand_behind_the_last_comma(folder: Path) -> None:
    content = "".join(f"{name}, {number % 3}\n" for number, name in enumerate(NAMES))
    samples = make(folder, content).dataset("train")
    assert [Path(path) for path in samples.paths] == [folder / name for name in NAMES]
    assert samples.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert samples.class_names == ("0", "1", "2")


def test_labels_may_be_left_out_even_behind_a_comma(folder: Path) -> None:
    samples = make(folder, "\n".join(NAMES)).dataset("train")
    assert [Path(path).name for path in samples.paths] == [Path(name).name for name in NAMES]
    assert samples.labels.tolist() == [-1] * 6
    assert not samples.is_labeled


def test_what_is_no_line_is_skipped(folder: Path) -> None:
    content = b"\xef\xbb\xbfplain.png,dog\r\n\r\n# with space.png,cat\r\n   \r\ndeep/er.png,cat\r\nwith space.png,\r\n"
    samples = make(folder, content).dataset("train")
    assert [Path(path).name for path in samples.paths] == ["plain.png", "er.png", "with space.png"]
    assert samples.class_names == ("cat", "dog")
    assert samples.labels.tolist() == [1, 0, -1]


def test_a_list_of_its_own_makes_a_split_and_keeps_the_classes_of_training(folder: Path) -> None:
    test = write(folder, "test.txt", "deep/er.png,dog\n")
    data = make(folder, "plain.png,ant\nwith space.png,dog\ncat, 3.jpeg,cat\n", test=test)
    assert data.dataset("test").labels.tolist() == [2]
    assert data.dataset("test").class_names == ("ant", "cat", "dog")
    assert len(data.dataset("train")) == 3


def test_splits_without_a_list_are_held_out_of_training_and_disjoint(folder: Path) -> None:
    content = "".join(f"{name}\n" for name in NAMES)
    data = make(folder, content, val_fraction=0.2, test_fraction=0.4)
    parts = [set(data.dataset(split).paths) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [3, 1, 2]
    assert set.union(*parts) == {str(folder / name) for name in NAMES}


@pytest.mark.parametrize(
    ("content", "changes", "sentence"),
    [
        ("plain.png\nlost.png\n", {}, r"train.txt:2: no file .*lost.png"),
        (b"plain.png\n\xff\xfe.png\n", {}, r"train.txt:2: not UTF-8"),
        ("\n# nothing\n", {}, "lists no image"),
        ("plain.png,-1\n", {}, "label -1; classes are numbered from 0"),
        ("plain.png\n", {"root": "ROOT/deep"}, r"no file .*deep/plain.png"),
        ("../plain.png\n", {"root": "ROOT/deep"}, r"train.txt:1: ../plain.png leads out of data.root"),
        ("plain.png\ndeep/../../plain.png\n", {}, r"train.txt:2: deep/../../plain.png leads out of the list's folder"),
        (
            "plain.png,0\nwith space.png,1\ndeep/er.png,dog\n",
            {},
            r"train.txt:3 has the label 'dog' among class numbers",
        ),
        ("\nplain.png,0\nwith space.png,-2\n", {}, r"train.txt:3 has the label -2; classes are numbered from 0"),
        ("plain.png\n", {"root": "ROOT/nowhere"}, "is not a folder"),
        ("plain.png\n", {"val": "ROOT/nowhere.txt"}, "data.val=.* is not a file"),
    ],
)
def test_mistakes_are_named_with_list_and_line(folder: Path, content, changes: dict, sentence: str) -> None:
    changes = {name: value.replace("ROOT", str(folder)) for name, value in changes.items()}
    with pytest.raises(ValueError, match=sentence):
        make(folder, content, **changes).dataset("train")


def test_a_label_training_does_not_have_is_refused(folder: Path) -> None:
    test = write(folder, "test.txt", "deep/er.png,wolf\n")
    with pytest.raises(ValueError, match=r"test.txt:1 has 1 label.* that no training image has, the first 'wolf'"):
        make(folder, "plain.png,dog\nwith space.png,cat\n", test=test).dataset("test")


def test_repeated_lines_are_counted_in_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(make(folder, "plain.png\nplain.png\ndeep/er.png\n").dataset("train")) == 3
    assert "names 1 image(s) more than once" in caplog.text


def test_a_missing_label_is_named_with_its_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = make(folder, "plain.png,dog\n\nwith space.png\ndeep/er.png,cat\n").dataset("train")
    assert samples.labels.tolist() == [1, -1, 0]
    assert "train.txt:3: no label, and 2 of 3 images have one" in caplog.text


def test_absolute_paths_are_taken_where_no_root_is_given(folder: Path) -> None:
    (folder / "lists").mkdir()
    samples = make(folder / "lists", f"{folder / 'plain.png'}\n").dataset("train")
    assert list(samples.paths) == [str(folder / "plain.png")]
