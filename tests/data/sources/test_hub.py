import io
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.dataset import SampleKey
from unmask.data.sources.hub import Hub, OwnFiles, decode_cell


@pytest.fixture(autouse=True)
def _stay_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(gray: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 8), (gray, gray, gray)).save(written, "png")
    return written.getvalue()


def save(folder: Path, split: str, grays: list[int], **columns: Any) -> None:
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"img": datasets.Image()} | {name: feature for name, (feature, _) in columns.items()})
    rows = {"img": [{"bytes": png(gray), "path": f"{gray}.png"} for gray in grays]}
    rows |= {name: values for name, (_, values) in columns.items()}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def make(root: Path, **changes: Any) -> Hub:
    settings = {
        "image_size": 8,
        "pixel_mean": (0.5, 0.5, 0.5),
        "pixel_std": (0.5, 0.5, 0.5),
        "augmentation": Augmentation(),
        "global_batch_size": 2,
    }
    return Hub(root=str(root), **settings | changes)


def grays(data: Hub, split: Any) -> list[int]:
    samples = data.dataset(split)
    keys = [SampleKey(0, index) for index in range(len(samples))]
    return samples.read(keys, lambda image, key: image).image[:, 0, 0, 0].tolist()


PETS = datasets.ClassLabel(names=["cat", "dog"])


def test_columns_and_classes_are_found_by_their_types(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    other = (datasets.Value("int64"), [9, 9, 9, 9])
    save(root, "train", [10, 20, 30, 40], other=other, kind=(PETS, [0, 1, 1, 0]))
    save(root, "validation", [50], other=(datasets.Value("int64"), [9]), kind=(PETS, [1]))
    save(root, "test", [60, 70], other=(datasets.Value("int64"), [9, 9]), kind=(PETS, [1, 0]))
    data = make(root)
    assert data.class_names == ("cat", "dog")
    assert [grays(data, split) for split in ("train", "val", "test")] == [[10, 20, 30, 40], [50], [60, 70]]
    assert data.dataset("train").labels.tolist() == [0, 1, 1, 0]
    assert data.dataset("test").labels.tolist() == [1, 0]


def test_a_folder_may_be_called_like_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "parquet", "train", [10, 20, 30], kind=(PETS, [0, 1, 1]))
    save(tmp_path, "train", [90], kind=(PETS, [0]))  # beside it, not of it
    data = make(Path("parquet"), val_fraction=0.0, test_fraction=0.0)
    assert grays(data, "train") == [10, 20, 30]


def test_a_missing_split_is_held_out_evenly_and_once(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    save(root, "train", list(range(0, 200, 10)), kind=(PETS, [0, 1] * 10))
    data = make(root, val_fraction=0.2, test_fraction=0.3)
    parts = [grays(data, split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [10, 4, 6]
    assert sorted(gray for part in parts for gray in part) == list(range(0, 200, 10))
    assert data.dataset("test").labels.sum() == 3
    assert grays(make(root, val_fraction=0.4, test_fraction=0.3, seed=5), "test") == parts[2]


def test_a_table_without_labels_is_unlabeled_and_usual_names_will_do(tmp_path: Path) -> None:
    save(tmp_path / "plain", "train", [1, 2, 3], caption=(datasets.Value("string"), ["a", "b", "c"]))
    assert make(tmp_path / "plain").dataset("train").class_names == ()
    save(tmp_path / "named", "train", [1, 2, 3, 4, 5, 6], label=(datasets.Value("int64"), [0, 2, 1, 0, 1, 2]))
    assert make(tmp_path / "named").class_names == ("0", "1", "2")


def test_a_batch_is_that_of_the_same_images_in_files(tmp_path: Path) -> None:
    save(tmp_path / "pets", "train", [10, 20, 30], kind=(PETS, [0, 1, 1]))
    samples = make(tmp_path / "pets").read_split("train")
    batch = samples.read([SampleKey(4, 2), SampleKey(4, 0)], lambda image, key: image)
    assert batch.image[:, 0, 0, 0].tolist() == [30, 10]
    assert batch.label.tolist() == [1, 0]
    assert batch.index.tolist() == [2, 0]
    assert batch.epoch.tolist() == [4, 4]
    kept = samples.subset(torch.tensor([2, 1]))
    assert kept.read([SampleKey(0, 0)], lambda image, key: image).image[0, 0, 0, 0] == 30
    assert kept.labels.tolist() == [1, 1]


def test_mistakes_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "pets", "train", [1, 2, 3], kind=(PETS, [0, 1, 1]))
    with pytest.raises(ValueError, match=r"has no column 'race'; set data.label_column to one of img, kind"):
        make(tmp_path / "pets", label_column="race").dataset("train")
    with pytest.raises(
        ValueError, match=r"image column cannot be determined; set data.image_column to one of img, kind"
    ):
        make(tmp_path / "pets", image_column="photo").dataset("train")
    with pytest.raises(ValueError, match=r"data.root=.*nowhere cannot be read as a data set of the hub"):
        make(tmp_path / "nowhere").dataset("train")
    save(tmp_path / "only_test", "test", [1, 2])
    with pytest.raises(ValueError, match=r"has no split train; it has test"):
        make(tmp_path / "only_test").dataset("train")
    with pytest.raises(ValueError, match="leave some to train on"):
        make(tmp_path / "pets", val_fraction=-0.1)


def test_a_damaged_image_is_named_with_its_row(tmp_path: Path) -> None:
    rows = {"img": [{"bytes": png(1), "path": "fine.png"}, {"bytes": b"<html>", "path": "lost.png"}]}
    (tmp_path / "bad").mkdir()
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"img": datasets.Image()}))
    table.to_parquet(tmp_path / "bad" / "train-00000-of-00001.parquet")
    samples = make(tmp_path / "bad").read_split("train")
    with pytest.raises(ValueError, match=r"bad image lost.png \(row 1 of .*bad, split train\): content is HTML"):
        samples.read([SampleKey(0, 1)], lambda image, key: image)


@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1:9/x.png",
        "hf://datasets/owner/name@main/x.png",
        "simplecache::http://127.0.0.1:9/x.png",
        "zip://x.png::http://127.0.0.1:9/x.zip",
        "zip://x.png::OUTSIDE/x.zip",
        "OUTSIDE/x.png",
        "../outside/x.png",
        "LINK/x.png",
    ],
)
def test_a_row_that_names_a_file_from_elsewhere_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outside := tmp_path / "outside").mkdir()
    (outside / "x.png").write_bytes(png(10))
    (root := tmp_path / "pets").mkdir()
    (root / "link").symlink_to(outside)
    named = path.replace("OUTSIDE", str(outside)).replace("LINK", str(root / "link"))
    schema = datasets.Features({"img": datasets.Image()}).arrow_schema
    rows = pyarrow.table({"img": [{"bytes": None, "path": named}] * 2}, schema=schema)
    pyarrow.parquet.write_table(rows, root / "train-00000-of-00001.parquet")  # datasets itself would fetch it here
    opened: list[str] = []
    monkeypatch.setattr("fsspec.open", lambda *names, **_: opened.append(names))
    data = make(root, val_fraction=0.0, test_fraction=0.0)
    with pytest.raises(ValueError, match="which is no file of "):
        data.dataset("train").read([SampleKey(0, 0)], lambda image, key: image)
    with pytest.raises(ValueError, match="which is no file of "):
        data.dataset("train").stored(0)
    assert opened == []


def test_a_row_may_name_a_file_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(png(77))
    decoder = make(tmp_path).decoder
    for path in ("images/x.png", str(tmp_path / "images/x.png")):
        image = decode_cell(decoder, OwnFiles(str(tmp_path)), {"bytes": None, "path": path}, "row 0")
        assert image[0, 0, 0] == 77


@pytest.mark.timeout(60)
def test_a_named_pipe_that_a_row_names_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"row 0: names 'pipe.png', which cannot be read .*not a regular file"):
        OwnFiles(str(tmp_path)).read("pipe.png", "row 0")
