from pathlib import Path

import pytest
from PIL import Image

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.sources.csv_table import CSVTable

SETTINGS = {
    "image_size": 32,
    "pixel_mean": (0.5, 0.5, 0.5),
    "pixel_std": (0.5, 0.5, 0.5),
    "augmentation": Augmentation(),
    "global_batch_size": 2,
    "val_fraction": 0.0,
    "test_fraction": 0.0,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a1.jpg", "b,2.jpg", "c3.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def make(folder: Path, content: str, **changes) -> CSVTable:
    table = folder / "labels.csv"
    table.write_text(content, encoding="utf-8-sig")
    settings = {"path_column": "id", "label_column": "breed", "suffix": ".jpg"}
    return CSVTable(train=str(table), **settings | SETTINGS | changes)


def test_columns_are_found_by_name_and_quotes_keep_commas(folder: Path) -> None:
    samples = make(folder, 'weight,breed,id\n3,pug,a1\n4,"poodle, toy","b,2"\n\n5,pug,c3\n').dataset("train")
    assert [Path(path).name for path in samples.paths] == ["a1.jpg", "b,2.jpg", "c3.jpg"]
    assert samples.class_names == ("poodle, toy", "pug")
    assert samples.labels.tolist() == [1, 0, 1]


def test_a_test_table_without_labels_is_taken_unlabeled(folder: Path) -> None:
    (folder / "test.csv").write_text("id\nc3\n")
    data = make(folder, "id,breed\na1,pug\nc3,cat\n", test=str(folder / "test.csv"))
    assert data.dataset("test").labels.tolist() == [-1]


def test_other_delimiters_and_no_labels(folder: Path) -> None:
    samples = make(folder, "id;x\na1;0\nb,2;1\n", delimiter=";", label_column=None).dataset("train")
    assert [Path(path).name for path in samples.paths] == ["a1.jpg", "b,2.jpg"]
    assert not samples.is_labeled


@pytest.mark.parametrize(
    ("content", "changes", "sentence"),
    [
        ("name,breed\na1,pug\n", {}, "has no column 'id'; set data.path_column to one of name, breed"),
        ("id,race\na1,pug\n", {}, "has no column 'breed'; set data.label_column to one of id, race"),
        ("id,breed\na1,pug\nc3\n", {}, r"labels.csv:3: expected 2 fields, got 1: \['c3'\]"),
        ("id,breed\na1,pug\nc3,cat,x\n", {}, r"labels.csv:3: expected 2 fields, got 3"),
        ("id,breed\nz9,pug\n", {}, r"labels.csv:2: no file .*z9.jpg"),
        ("", {}, "has no column 'id'"),
        ("id,breed\na1,pug\n", {"delimiter": ""}, "delimiter must be one character"),
    ],
)
def test_mistakes_are_named_with_table_and_row(folder: Path, content: str, changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(folder, content, **changes).dataset("train")
