import http.server
import io
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.data.dataset import SampleKey
from unmask.data.sources.folder import ImageFolder
from unmask.data.sources.shards import Shards


@pytest.fixture
def make(tmp_path: Path, data_settings):
    def build(root: Path | str | None = None, **changes: Any) -> Shards:
        place = {} if root is None else {"root": str(root)}
        return Shards(**data_settings | place | {"cache_dir": str(tmp_path / "cache")} | changes)

    return build


def grays(data: Shards, split: Any) -> list[int]:
    samples = data.dataset(split)
    keys = [SampleKey(0, index) for index in range(len(samples))]
    return samples.read(keys, lambda image, key: image).image[:, 0, 0, 0].tolist()


def npy(pixels: np.ndarray) -> bytes:
    written = io.BytesIO()
    np.save(written, pixels)
    return written.getvalue()


@pytest.fixture
def pets(tmp_path: Path, write_shard, gray_image) -> Path:
    """Two training shards of three images and one of two to test on; labels are 0 and 1 in turn."""
    root = tmp_path / "pets"
    for name, first, count in (("train-0", 10, 3), ("train-1", 40, 3), ("test-0", 90, 2)):
        members: dict[str, bytes | str] = {}
        for place in range(count):
            members |= {f"{place}.png": gray_image(first + 10 * place), f"{place}.cls": str(place % 2)}
        write_shard(root / f"{name}.tar", members)
    return root


def test_samples_stand_in_the_order_of_shards_and_members(make, pets: Path) -> None:
    data = make(pets, val_fraction=0.0)
    assert grays(data, "train") == [10, 20, 30, 40, 50, 60]
    assert data.dataset("train").labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert data.class_names == ("0", "1")
    assert grays(data, "test") == [90, 100]
    turned = make(pets, train=["train-1.tar", "train-0.tar"], val="test-{0..0}.tar", test_fraction=0.0)
    assert grays(turned, "train") == [40, 50, 60, 10, 20, 30]
    assert grays(turned, "val") == [90, 100]


def test_a_missing_split_is_held_out(make, pets: Path) -> None:
    data = make(pets, val_fraction=0.3)
    assert sorted(grays(data, "train") + grays(data, "val")) == [10, 20, 30, 40, 50, 60]
    assert len(data.dataset("val")) == 2
    assert grays(data, "test") == [90, 100]
    with pytest.raises(
        ValueError, match=r"no val split beside it and data.val_fraction=0; .* name its shards by data.val"
    ):
        make(pets, val_fraction=0.0).dataset("val")


def test_the_fingerprint_is_that_of_the_samples_wherever_they_lie(make, pets: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    before = [make(pets).read_split(split).fingerprint for split in ("train", "test")]
    pets.rename(moved)
    assert [make(moved).read_split(split).fingerprint for split in ("train", "test")] == before
    train = make(moved).read_split("train")
    assert train.subset(torch.tensor([0, 3])).fingerprint != train.subset(torch.tensor([0, 2])).fingerprint


def test_keys_choose_images_labels_and_epochs(make, pets: Path) -> None:
    samples = make(pets).read_split("train")
    batch = samples.read([SampleKey(4, 5), SampleKey(4, 1)], lambda image, key: image + key.epoch)
    assert batch.image[:, 0, 0, 0].tolist() == [64, 24]
    assert (batch.label.tolist(), batch.index.tolist(), batch.epoch.tolist()) == ([0, 1], [5, 1], [4, 4])
    kept = samples.subset(torch.tensor([4, 0]))
    assert kept.read([SampleKey(0, 0)], lambda image, key: image).image[0, 0, 0, 0] == 50
    assert kept.labels.tolist() == [1, 0]


def test_raw_pixels_are_read_as_they_are(make, tmp_path: Path, write_shard) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    write_shard(tmp_path / "raw" / "a.tar", {"0.npy": npy(pixels[0]), "1.npy": npy(pixels[1])})
    samples = make(tmp_path / "raw").read_split("train")
    batch = samples.read([SampleKey(0, 1), SampleKey(0, 0)], lambda image, key: image)
    assert torch.equal(batch.image, torch.from_numpy(pixels[[1, 0]]).permute(0, 3, 1, 2))
    assert not samples.is_labeled
    samples.read([SampleKey(0, 0)], lambda image, key: image.zero_())  # what is done to an image stays in the process
    stored = (tmp_path / "raw" / "a.tar").read_bytes()
    assert pixels[0].tobytes() in stored


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_bitwise_those_of_the_same_files_in_folders(
    make, data_settings, tmp_path: Path, write_shard, workers: int
) -> None:
    members: dict[str, bytes | str] = {}
    for place in range(11):
        noise = np.random.default_rng(place).integers(0, 256, (20 + place, 24, 3), dtype=np.uint8)
        written = io.BytesIO()
        Image.fromarray(noise).save(written, "jpeg")
        folder = tmp_path / "files" / ("cat", "dog")[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{place:02d}.jpg").write_bytes(written.getvalue())
    for place, path in enumerate(sorted((tmp_path / "files").rglob("*.jpg"))):
        members |= {f"{place:04d}.jpg": path.read_bytes(), f"{place:04d}.cls": path.parent.name}
    write_shard(tmp_path / "tars" / "a.tar", dict(list(members.items())[:8]))
    write_shard(tmp_path / "tars" / "b.tar", dict(list(members.items())[8:]))
    ours = make(tmp_path / "tars", num_workers=workers, seed=3)
    theirs = ImageFolder(root=str(tmp_path / "files"), **data_settings | {"seed": 3})
    assert ours.class_names == theirs.class_names
    for split in ("train_dataloader", "val_dataloader", "test_dataloader"):
        batches = list(getattr(ours, split)())
        expected = list(getattr(theirs, split)())
        assert len(batches) == len(expected) > 0
        for batch, other in zip(batches, expected, strict=True):
            assert all(torch.equal(mine, yours) for mine, yours in zip(batch[:4], other[:4], strict=True))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def served(pets: Path) -> Iterator[str]:
    _Quiet.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(pets))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_shards_on_the_web_are_those_on_disk_and_fetched_once(make, pets: Path, served: str) -> None:
    settings = {"train": "train-{0..1}.tar", "test": "test-0.tar"}
    near, far = make(pets, **settings), make(served, **settings)
    for split in ("train", "val", "test"):
        assert grays(far, split) == grays(near, split)
    assert sorted(_Quiet.asked) == ["/test-0.tar", "/train-0.tar", "/train-1.tar"]
    assert grays(make(served, **settings), "train") == grays(near, "train")
    assert len(_Quiet.asked) == 3
    with pytest.raises(ValueError, match=r"train-2.tar cannot be fetched: 404"):
        make(served, train="train-{0..2}.tar").dataset("train")


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"a.png": b"", "a.cls": "1", "b.png": b"", "b.cls": "cat"}, "some labels are numbers, such as 1, and some na"),
        ({"a.png": b"", "a.cls": "-2"}, "has the label -2; classes are numbered from 0"),
    ],
)
def test_labels_of_two_kinds_are_refused(make, tmp_path: Path, write_shard, members, sentence: str) -> None:
    write_shard(tmp_path / "x" / "a.tar", members)
    with pytest.raises(ValueError, match=sentence):
        make(tmp_path / "x").dataset("train")


def test_shards_with_and_without_labels_are_refused(make, pets: Path, write_shard, gray_image) -> None:
    write_shard(pets / "train-2.tar", {"a.png": gray_image(5)})
    with pytest.raises(ValueError, match=r"train-0.tar has labels and .*train-2.tar has none; give all shards"):
        make(pets).dataset("train")
    assert len(make(pets, label_key="none", val_fraction=0.0).dataset("train")) == 7


def test_minus_one_is_no_label(make, tmp_path: Path, write_shard, gray_image) -> None:
    members = {"a.png": gray_image(1), "a.cls": "-1", "b.png": gray_image(2), "b.cls": "1"}
    write_shard(tmp_path / "x" / "a.tar", members)
    samples = make(tmp_path / "x").read_split("train")
    assert samples.labels.tolist() == [-1, 1]
    assert not samples.is_labeled


def test_a_bad_image_is_named_with_its_member_and_shard(make, tmp_path: Path, write_shard, gray_image) -> None:
    raw = npy(np.zeros((4, 4, 3), np.uint8))
    members = {
        "fine.png": gray_image(1),
        "d/lost.jpg": b"<html>",
        "cut.npy": raw[:-1],
        "odd.npy": npy(np.zeros((2, 2))),
    }
    shard = write_shard(tmp_path / "x" / "a.tar", members)
    samples = make(tmp_path / "x").read_split("train")
    for index, name in ((1, "d/lost.jpg"), (2, "cut.npy"), (3, "odd.npy")):
        with pytest.raises(ValueError, match=f"bad image {name} in shard {shard}: "):
            samples.read([SampleKey(0, index)], lambda image, key: image)


def test_a_shard_cut_after_it_was_listed_is_named(make, pets: Path) -> None:
    samples = make(pets).read_split("train")
    whole = (pets / "train-1.tar").read_bytes()
    (pets / "train-1.tar").write_bytes(whole[:1024])
    with pytest.raises(ValueError, match=r"train-1.tar is shorter than when it was listed"):
        samples.read([SampleKey(0, 5)], lambda image, key: image)


def test_mistakes_are_refused(make, pets: Path) -> None:
    with pytest.raises(ValueError, match=r"data=shards takes data.root, a folder or URL of shards, or data.train"):
        make()
    with pytest.raises(ValueError, match=r"data.val and data.test need data.train beside them"):
        make(pets, val="train-1.tar")
    with pytest.raises(ValueError, match=r"data.root=.*nowhere is not a folder"):
        make(pets / "nowhere")
    with pytest.raises(ValueError, match=r"no shard .*train-9.tar"):
        make(pets, train="train-9.tar").dataset("train")
