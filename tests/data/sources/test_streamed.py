import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from unmask.data.dataset import FILLER_EPOCH, SampleKey
from unmask.data.files.decoding import BadImageError
from unmask.data.sources.hub import Hub
from unmask.data.sources.streamed import StreamedKey

KINDS = datasets.ClassLabel(names=["cat", "dog"])


@pytest.fixture(autouse=True)
def _stay_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01, raising=False)  # 5 s
    datasets.disable_progress_bars()


@pytest.fixture
def pets(tmp_path: Path, gray_image) -> Path:
    """Grays 0 to 22 in three files to train on, 100 to 104 to test on; even grays are cats."""
    grays = {f"train-{part:05d}-of-00003": range(8 * part, min(8 * part + 8, 23)) for part in range(3)}
    for name, values in (grays | {"test-00000-of-00001": range(100, 105)}).items():
        rows = {
            "image": [{"bytes": gray_image(gray), "path": f"{gray}.png"} for gray in values],
            "kind": [gray % 2 for gray in values],
        }
        table = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image(), "kind": KINDS}))
        (tmp_path / "pets").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "pets" / f"{name}.parquet")
    return tmp_path / "pets"


@pytest.fixture
def make(pets: Path, data_settings):
    def build(**changes: Any) -> Hub:
        streaming = {"root": str(pets), "streaming": True, "num_images": {"train": 23, "test": 5}, "val": "test"}
        return Hub(**data_settings | streaming | {"global_batch_size": 4, "shuffle_buffer": 6} | changes)

    return build


def attach_trainer(data: Hub, *, rank: int = 0, devices: int = 1, epoch: int = 0, done: int = 0) -> None:
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=devices,
        accumulate_grad_batches=1,
        training=True,
        fit_loop=SimpleNamespace(
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=epoch)),
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=done))),
        ),
    )


def grays(batches: Any) -> list[list[int]]:
    return [batch.image[:, 0, 0, 0].tolist() for batch in batches]


def test_an_epoch_is_every_image_once_shuffled_by_seed_and_epoch(make) -> None:
    data, orders = make(global_batch_size=23), []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        data.seed = seed
        attach_trainer(data, epoch=epoch)
        (batch,) = data.train_dataloader()
        orders.append(batch.image[:, 0, 0, 0].tolist())
        assert batch.label.tolist() == [gray % 2 for gray in orders[-1]]
        assert batch.index.tolist() == list(range(23))
        assert batch.epoch.eq(epoch).all()
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_devices_and_workers_share_the_order_of_one_process(make, workers: int) -> None:
    data, shares = make(num_workers=workers), []
    attach_trainer(data, epoch=3)
    expected = grays(data.train_dataloader())
    for rank in range(2):
        attach_trainer(data, rank=rank, devices=2, epoch=3)
        shares.append(grays(data.train_dataloader()))
    assert [sorted(first + second) for first, second in zip(*shares, strict=True)] == [sorted(b) for b in expected]


def test_an_interrupted_epoch_goes_on_where_it_stopped(make) -> None:
    data = make()
    attach_trainer(data, epoch=2)
    uninterrupted = list(data.train_dataloader())
    attach_trainer(data, epoch=2, done=3)
    resumed = list(data.train_dataloader())
    assert grays(resumed) == grays(uninterrupted[3:])
    assert [batch.index.tolist() for batch in resumed] == [batch.index.tolist() for batch in uninterrupted[3:]]


@pytest.mark.parametrize("devices", [1, 2])
def test_evaluation_reads_the_stored_order_once(make, devices: int) -> None:
    data, served = make(), list[int]()
    for rank in range(devices):
        attach_trainer(data, rank=rank, devices=devices, epoch=7, done=1)
        counted = [batch for batch in data.test_dataloader() if (batch.epoch != FILLER_EPOCH).all()]
        served += [gray for batch in grays(counted) for gray in batch]
    assert sorted(served) == list(range(100, 105))
    if devices == 1:
        assert served == sorted(served)
    held_out = data.held_out_images(2).image[:, 0, 0, 0]
    torch.testing.assert_close(held_out, (torch.tensor([100.0, 102.0]) / 255 - 0.5) / 0.5)


@pytest.mark.parametrize(
    ("stated", "batch", "found"), [(22, 4, "more than 22"), (24, 5, "only 23"), (24, 4, "at most 23")]
)
def test_a_wrong_number_of_images_is_noticed(make, stated: int, batch: int, found: str) -> None:
    data = make(num_images={"train": stated}, global_batch_size=batch)
    attach_trainer(data)
    with pytest.raises(ValueError, match=rf"has {found} rows, not {stated}; set data.num_images"):
        list(data.train_dataloader())


def test_what_a_stream_cannot_give_is_refused(make) -> None:
    with pytest.raises(
        ValueError, match=r"has no val split, and none can be held out .* \(train, test\) by data.val=NA"
    ):
        make(val=None).dataset("val")
    with pytest.raises(
        ValueError, match=r"split train does not say how many images .* set data.num_images=.train:NUMB"
    ):
        make(num_images=None).dataset("train")
    with pytest.raises(ValueError, match=r"data.on_bad_image=skip uses another image .* data.streaming=true cannot"):
        make(on_bad_image="skip")
    with pytest.raises(ValueError, match=r"data.shuffle_buffer must be at least 1 image, got 0"):
        make(shuffle_buffer=0)
    with pytest.raises(ValueError, match=r"has no split dev; set data.val to one of train, test"):
        make(val="dev").dataset("val")
    with pytest.raises(ValueError, match=r"is streamed, so its labels are not known .* set data.streaming=false"):
        make().loaded_splits.limit_training(0.5)


def test_one_split_for_two_uses_is_said(make, caplog) -> None:
    assert make().dataset("val").is_labeled
    assert "what is chosen on val is chosen on the test images" in caplog.text


def test_the_number_of_images_is_taken_from_the_data_set_where_it_says(make, pets: Path) -> None:
    (pets / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - {name: image, dtype: image}\n  - {name: kind, dtype: int64}\n"
        "  splits:\n  - {name: train, num_examples: 23}\n  - {name: test, num_examples: 5}\n---\n"
    )
    data = make(num_images=None)
    assert len(data.dataset("train")) == 23
    assert not data.dataset("train").is_labeled  # a stream does not tell how many classes numbers without names are


def test_keys_bring_their_rows_to_workers() -> None:
    key = StreamedKey(3, 5)
    key.row = {"image": b"x"}
    copy = pickle.loads(pickle.dumps(key))
    assert copy == SampleKey(3, 5)
    assert copy.row == {"image": b"x"}


def test_files_that_rows_name_are_read_from_the_data_sets_folder_alone(make, tmp_path: Path, pets: Path) -> None:
    written = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(written, "png")
    samples = make().dataset("train")

    def read(path: str) -> Any:
        key = StreamedKey(0, 0)
        key.row = {"image": {"bytes": None, "path": path}, "kind": None}
        return samples.read([key], lambda image, _: image)

    for place in (pets / "own.png", tmp_path / "far.png"):
        place.write_bytes(written.getvalue())
    batch = read("own.png")
    assert batch.image.eq(9).all()
    assert batch.label.tolist() == [-1]
    for path in (str(tmp_path / "far.png"), f"file://{tmp_path / 'far.png'}", "../far.png"):
        with pytest.raises(BadImageError, match="which is no file of "):
            read(path)
