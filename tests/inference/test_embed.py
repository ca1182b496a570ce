import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

CPU = torch.device("cpu")


@pytest.fixture
def write(channel_means, pictures: Path, point_at, tmp_path: Path):
    """Runs the inference on the five pictures, in parts of two."""

    def written(folder: str = "features", served: dict | None = None, **changes) -> Path:
        from unmask.inference.embed import Embed  # noqa: PLC0415

        inference = Embed(out=str(tmp_path / folder), image="given", **{"part_size": 2} | changes)
        shown = point_at(pictures, **served or {})
        with torch.inference_mode():
            inference.run(channel_means, lambda path, split: shown, run_dir=tmp_path, device=CPU)
        return tmp_path / folder

    return written


def test_parts_hold_the_features_of_the_images_they_name(write, channel_means, pictures: Path, point_at) -> None:
    parts = [np.load(path) for path in sorted(write().glob("part-*.npz"))]
    assert [len(part["image"]) for part in parts] == [2, 2, 1]
    names = [name for part in parts for name in part["image"].tolist()]
    assert names == list(point_at(pictures).dataset.paths)
    images = torch.cat([batch.image for batch in point_at(pictures).batches(CPU)])
    np.testing.assert_allclose(
        np.concatenate([part["features"] for part in parts]), channel_means.forward_pooled(images)
    )
    assert all((part["label"] == -1).all() for part in parts)


def test_parquet_holds_what_npz_holds(write) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    numbers = [np.load(path) for path in sorted(write().glob("part-*.npz"))]
    tables = [parquet.read_table(path) for path in sorted(write("columns", format="parquet").glob("part-*.parquet"))]
    for part, table in zip(numbers, tables, strict=True):
        assert table["image"].to_pylist() == part["image"].tolist()
        assert table["features"].to_pylist() == part["features"].tolist()


def test_the_same_command_makes_the_missing_parts_alone(write, caplog) -> None:
    caplog.set_level("INFO")
    folder = write()
    first, second = folder / "part-00000.npz", folder / "part-00001.npz"
    before, content = first.stat(), second.read_bytes()
    second.unlink()
    assert "written before" not in caplog.text
    write()
    assert "5 image(s), 3 features each, in 3 part(s), 2 of them written before: " in caplog.text
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    again = np.load(second)
    np.testing.assert_array_equal(again["features"], np.load(io.BytesIO(content))["features"])


def test_a_folder_of_something_else_is_refused(write, channel_means, tmp_path: Path) -> None:
    write()
    channel_means.version += 1
    with pytest.raises(ValueError, match="holds features of other weights; name another folder"):
        write()
    with pytest.raises(ValueError, match="holds features of other part_size, weights"):
        write(part_size=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(ValueError, match="exists and contains something else"):
        write("mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="exists and contains something else"):
        write("file")
    assert (tmp_path / "file").read_text() == "kept"
    (tmp_path / "empty").mkdir()
    assert len(list(write("empty").glob("part-*.npz"))) == 3


def test_the_record_of_a_folder_says_what_is_in_it(write, channel_means, pictures: Path, point_at) -> None:
    text = (write(part_size=1) / "embeddings.json").read_text()
    record = json.loads(text)
    assert text == json.dumps(record, indent=2) + "\n"
    weights = hashlib.blake2b(channel_means.version.numpy().tobytes(), digest_size=16).hexdigest()
    told = ("weights", "images", "num_images", "image_size", "format", "part_size")
    expected = [weights, point_at(pictures).dataset.fingerprint, 5, [32, 32], "npz", 1]
    assert [record[name] for name in told] == expected


def test_what_no_file_can_be_written_by_is_refused(monkeypatch) -> None:
    from unmask.inference import embed  # noqa: PLC0415

    with pytest.raises(ValueError, match=r"eval\.part_size must be at least 1, got 0"):
        embed.Embed(out="x", image=None, part_size=0)

    def lack(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(embed, "import_module", lack)
    embed.Embed(out="x", image=None, format="npz")
    with pytest.raises(
        ValueError, match=r"eval\.format=parquet needs pyarrow; pip install 'unmask\[hub\]', or use npz"
    ):
        embed.Embed(out="x", image=None, format="parquet")


@pytest.mark.parametrize(
    ("served", "named"),
    [
        ({"crop_pct": 0.5}, "crop_pct"),
        ({"interpolation": "bilinear"}, "interpolation"),
        ({"image_size": 16}, "image_size"),
    ],
)
def test_features_of_images_prepared_otherwise_are_not_mixed(write, served: dict, named: str) -> None:
    write()
    with pytest.raises(ValueError, match=f"holds features of other {named}; name another folder"):
        write(served=served)


def test_features_of_other_images_are_not_mixed(write, pictures: Path) -> None:
    write()
    (pictures / "pink.png").rename(pictures / "rose.png")  # as many as before
    with pytest.raises(ValueError, match="holds features of other images; name another folder"):
        write()


def test_class_folders_give_labels_and_their_names(channel_means, tmp_path: Path, point_at) -> None:
    from unmask.inference.embed import Embed  # noqa: PLC0415

    for name, shade in (("dog/1.png", 10), ("cat/2.png", 20), ("cat/3.png", 30)):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (shade, 0, 0)).save(tmp_path / "photos" / name)
    with torch.inference_mode():
        Embed(out=str(tmp_path / "f"), image="given").run(
            channel_means, lambda path, split: point_at(tmp_path / "photos"), run_dir=tmp_path, device=CPU
        )
    part, record = np.load(tmp_path / "f/part-00000.npz"), json.loads((tmp_path / "f/embeddings.json").read_text())
    labels = {
        Path(image).name: record["classes"][label] for image, label in zip(part["image"], part["label"], strict=True)
    }
    assert labels == {"1.png": "dog", "2.png": "cat", "3.png": "cat"}


def test_images_in_memory_are_named_by_their_number_in_the_split(channel_means, in_memory, tmp_path: Path) -> None:
    from unmask.inference.embed import Embed  # noqa: PLC0415
    from unmask.inference.images import SelectedImages  # noqa: PLC0415

    with torch.inference_mode():
        Embed(out=str(tmp_path / "f"), image=None, split="val", part_size=3).run(
            channel_means, lambda path, split: SelectedImages(in_memory, split), run_dir=tmp_path, device=CPU
        )
    parts = [np.load(path) for path in sorted((tmp_path / "f").glob("part-*.npz"))]
    assert [name for part in parts for name in part["image"].tolist()] == [f"val/{number}" for number in range(4)]
    assert np.concatenate([part["label"] for part in parts]).tolist() == in_memory.dataset("val").labels.tolist()
