import hashlib
import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.dataset import InMemoryDataset
from unmask.data.sources.cifar10 import CIFAR10, CIFAR10_FILES
from unmask.data.sources.cifar100 import CIFAR100

CLASS_NAMES = ["cat", "dog", "eel", "fox"]
IMAGES_PER_FILE = 8
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def rows_of(name: str) -> np.ndarray:
    """The pixels of one file, different in every file."""
    rng = np.random.default_rng(NAMES.index(name))
    return rng.integers(0, 256, (IMAGES_PER_FILE, 3 * 32 * 32), dtype=np.uint8)


def pickled(content: Any) -> bytes:
    """Python 2's protocol with the module name numpy had then, as in the official archive."""
    return pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    labels = [number % len(CLASS_NAMES) for number in range(IMAGES_PER_FILE)]
    for name in NAMES:
        (folder / name).write_bytes(pickled({"data": rows_of(name), "labels": labels}))
    (folder / "batches.meta").write_bytes(pickled({"label_names": CLASS_NAMES}))
    return tmp_path


def open_cifar10(root: Path, **changes: Any) -> CIFAR10:
    settings: dict[str, Any] = {
        "root": str(root),
        "verify": False,
        "num_val": 8,
        "image_size": 32,
        "pixel_mean": (0.5, 0.5, 0.5),
        "pixel_std": (0.5, 0.5, 0.5),
        "augmentation": Augmentation(),
        "global_batch_size": 4,
    }
    return CIFAR10(**settings | changes)


def read(data: CIFAR10, split: str) -> InMemoryDataset:
    samples = data.dataset(split)
    assert isinstance(samples, InMemoryDataset)
    return samples


def identities(data: CIFAR10, split: str) -> set[bytes]:
    return {image.numpy().tobytes() for image in read(data, split).images}


def test_each_row_is_three_planes_of_rows(root: Path) -> None:
    images = read(open_cifar10(root), "test").images
    rows = rows_of("test_batch")
    assert images.shape == (IMAGES_PER_FILE, 3, 32, 32)
    for sample, channel, row, col in [(0, 0, 0, 1), (0, 0, 1, 0), (1, 1, 0, 0), (7, 2, 31, 30)]:
        assert images[sample, channel, row, col] == rows[sample, channel * 1024 + row * 32 + col]


def test_labels_and_names_follow_the_files(root: Path) -> None:
    data = open_cifar10(root)
    assert data.class_names == tuple(CLASS_NAMES)
    assert read(data, "test").labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    label_of = {}
    for name in NAMES[:5]:
        label_of |= {row.tobytes(): number % 4 for number, row in enumerate(rows_of(name))}
    train = read(data, "train")
    assert [label_of[image.numpy().tobytes()] for image in train.images] == train.labels.tolist()


def test_training_files_divide_into_train_and_val(root: Path) -> None:
    data = open_cifar10(root)
    everything = {row.tobytes() for name in NAMES[:5] for row in rows_of(name)}
    train, val = identities(data, "train"), identities(data, "val")
    assert len(train) == 32
    assert len(val) == 8
    assert train | val == everything
    assert identities(data, "test") == {row.tobytes() for row in rows_of("test_batch")}


def test_val_is_even_over_the_classes(root: Path) -> None:
    assert Counter(read(open_cifar10(root), "val").labels.tolist()) == {0: 2, 1: 2, 2: 2, 3: 2}


def test_val_depends_on_split_seed_alone(root: Path) -> None:
    val = read(open_cifar10(root), "val").images
    assert torch.equal(read(open_cifar10(root, seed=7), "val").images, val)
    assert not torch.equal(read(open_cifar10(root, split_seed=7), "val").images, val)


def test_the_folder_itself_may_be_the_root(root: Path) -> None:
    assert identities(open_cifar10(root / "cifar-10-batches-py"), "test") == identities(open_cifar10(root), "test")


def test_a_missing_archive_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no CIFAR-10 at data.root=.*: expected the folder cifar-10-batches-py"):
        open_cifar10(tmp_path)


def test_a_missing_file_is_named(root: Path) -> None:
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(ValueError, match=r"cifar-10-batches-py lacks CIFAR-10's data_batch_3; extract"):
        open_cifar10(root)


def test_a_changed_file_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "cifar-10-batches-py"
    digests = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "files", CIFAR10_FILES._replace(md5=digests))
    assert len(read(open_cifar10(root, verify=True), "test")) == IMAGES_PER_FILE

    content = bytearray((folder / "test_batch").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=r"test_batch is not the official file \(MD5 differs\).*data.verify=false"):
        read(open_cifar10(root, verify=True), "test")
    read(open_cifar10(root, verify=False), "test")


class _Evil:
    """Runs a command where it is unpickled without care."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_that_would_run_code_is_refused(root: Path, tmp_path: Path) -> None:
    trace = tmp_path / "code ran"
    evil = pickled({"data": _Evil(trace), "labels": []})
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(evil)
    with pytest.raises(ValueError, match=r"asks to load \w+\.mkdir; refused, only arrays are read"):
        read(open_cifar10(root), "test")
    assert not trace.exists()
    pickle.loads(evil)
    assert trace.exists(), "the test's own pickle does nothing"


def test_a_pickle_of_something_else_is_refused(root: Path) -> None:
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickled([1, 2]))
    with pytest.raises(ValueError, match=r"test_batch holds a list, expected CIFAR-10's dictionary"):
        read(open_cifar10(root), "test")


def test_cifar100_reads_its_own_files_and_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        labels = {"fine_labels": [3, 2, 1, 0] * 2, "coarse_labels": [0] * 8}
        (folder / name).write_bytes(pickled({"data": rows_of("test_batch"), **labels}))
    (folder / "meta").write_bytes(pickled({"fine_label_names": CLASS_NAMES, "coarse_label_names": ["x"]}))
    settings = {
        "root": str(tmp_path),
        "num_val": 4,
        "image_size": 32,
        "pixel_mean": (0.5, 0.5, 0.5),
        "pixel_std": (0.5, 0.5, 0.5),
        "augmentation": Augmentation(),
        "global_batch_size": 2,
    }
    data = CIFAR100(verify=False, **settings)
    assert data.class_names == tuple(CLASS_NAMES)
    assert read(data, "test").labels.tolist() == [3, 2, 1, 0] * 2
    assert [len(read(data, split)) for split in ("train", "val")] == [4, 4]
    with pytest.raises(ValueError, match=r"is not the official file .* cifar-100-python.tar.gz"):
        read(CIFAR100(**settings), "test")
