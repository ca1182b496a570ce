import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torchvision.transforms.functional import to_tensor

from unmask.data.bad_images import BadImagePolicy
from unmask.data.dataset import SampleKey
from unmask.data.packing import Packing, write_packed
from unmask.data.sources.folder import ImageFolder
from unmask.data.sources.shards import Shards


@pytest.fixture
def folder(tmp_path: Path, data_settings) -> ImageFolder:
    """Noise of 12 px and more in two classes: 8 training images, 2 to validate and 3 to test on."""
    number = 0
    for split, count in (("train", 8), ("val", 2), ("test", 3)):
        for place in range(count):
            noise = np.random.default_rng(number).integers(0, 256, (12 + place, 16, 3), dtype=np.uint8)
            path = tmp_path / "files" / split / ("cat", "dog")[place % 2] / f"{number:02d}.{('png', 'jpg')[place % 2]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(path)
            number += 1
    return ImageFolder(root=str(tmp_path / "files"), **data_settings | {"seed": 5})


@pytest.fixture
def reopen(tmp_path: Path, data_settings):
    def build(**changes: Any) -> Shards:
        settings = data_settings | {"seed": 5, "root": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache")}
        return Shards(**settings | changes)

    return build


def images(data: Any, split: Any) -> list[torch.Tensor]:
    samples = data.dataset(split)
    return [samples.read([SampleKey(0, index)], lambda image, key: image).image[0] for index in range(len(samples))]


@pytest.mark.parametrize("form", ["raw", "keep"])
def test_what_keeps_pixels_is_trained_on_as_the_source_is(folder, reopen, tmp_path: Path, form: Any) -> None:
    write_packed(folder, tmp_path / "out", Packing(format=form, size=None, images_per_shard=3))
    packed = reopen()
    assert packed.class_names == folder.class_names == ("cat", "dog")
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for ours, theirs in zip(getattr(packed, loader)(), getattr(folder, loader)(), strict=True):
            assert all(torch.equal(mine, yours) for mine, yours in zip(ours[:4], theirs[:4], strict=True))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_webdataset_reads_the_shards(folder, tmp_path: Path) -> None:
    for form, endings in (("raw", "npy"), ("keep", "png;jpg")):
        write_packed(folder, tmp_path / form, Packing(format=form, size=None))
        shard = str(tmp_path / form / "train-000000.tar")
        reader = webdataset.WebDataset(shard, shardshuffle=False, empty_check=False).decode("rgb8")
        pairs = list(reader.to_tuple(endings, "cls"))
        assert [label for _, label in pairs] == folder.dataset("train").labels.tolist()
        for (pixels, _), image in zip(pairs, images(folder, "train"), strict=True):
            assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())


def test_large_images_are_reduced_to_the_short_side_and_small_ones_left(folder, reopen, tmp_path: Path) -> None:
    write_packed(folder, tmp_path / "out", Packing(format="raw", size=14))
    for image, original in zip(images(reopen(), "train"), images(folder, "train"), strict=True):
        height, width = original.shape[1:]
        if min(height, width) <= 14:
            assert torch.equal(image, original)
            continue
        scale = 14 / min(height, width)
        size = (round(width * scale), round(height * scale))
        pillow = Image.fromarray(original.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
        assert (image.float() / 255 - to_tensor(pillow)).abs().max() <= 1 / 255 + 1e-6


def test_jpegs_of_high_quality_are_close_and_smaller(tmp_path: Path, data_settings, reopen) -> None:
    ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    (tmp_path / "files").mkdir()
    for number in range(3):
        Image.fromarray(np.roll(ramp, 9 * number, axis=0)).save(tmp_path / "files" / f"{number}.png")
    flat = ImageFolder(root=str(tmp_path / "files"), **data_settings)
    write_packed(flat, tmp_path / "out", Packing(format="jpeg", size=None))
    write_packed(flat, tmp_path / "raw", Packing(format="raw", size=None))
    for image, original in zip(images(reopen(), "train"), images(flat, "train"), strict=True):
        assert image.shape == original.shape
        assert (image.float() - original.float()).abs().mean() < 3
    size = {name: (tmp_path / name / "train-000000.tar").stat().st_size for name in ("out", "raw")}
    assert size["out"] < size["raw"]
    assert reopen().class_names == ()


def test_the_record_tells_splits_shards_and_statistics(folder, tmp_path: Path) -> None:
    written = write_packed(folder, tmp_path / "out", Packing(format="raw", size=None, images_per_shard=3))
    record = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert record == written
    assert [(split, described["images"]) for split, described in record["splits"].items()] == [
        ("train", 8),
        ("val", 2),
        ("test", 3),
    ]
    assert [shard["images"] for shard in record["splits"]["train"]["shards"]] == [3, 3, 2]
    for described in record["splits"].values():
        for shard in described["shards"]:
            assert shard["bytes"] == (tmp_path / "out" / shard["name"]).stat().st_size
    values = [image.double().flatten(1) / 255 for image in images(folder, "train")]
    mean = torch.stack([value.mean(1) for value in values]).mean(0)
    square = torch.stack([value.square().mean(1) for value in values]).mean(0)
    assert record["pixel_mean"] == pytest.approx(mean.tolist(), abs=1e-4)
    assert record["pixel_std"] == pytest.approx((square - mean**2).sqrt().tolist(), abs=1e-4)


def test_images_without_label_stay_so(tmp_path: Path, data_settings, write_shard, gray_image, reopen) -> None:
    names = {"a": "-1", "b": "cat", "c": "dog"}
    members = {
        f"{key}.{ending}": value
        for key, name in names.items()
        for ending, value in (("png", gray_image(1)), ("cls", name))
    }
    write_shard(tmp_path / "in" / "a.tar", members)
    settings = data_settings | {"cache_dir": str(tmp_path / "cache"), "val_fraction": 0.0, "test_fraction": 0.0}
    write_packed(
        Shards(root=str(tmp_path / "in"), **settings), tmp_path / "out", Packing(format="raw", size=4), ["train"]
    )
    packed = reopen(val_fraction=0.0, test_fraction=0.0)
    assert packed.dataset("train").labels.tolist() == [-1, 0, 1]
    assert packed.class_names == ("cat", "dog")


def test_a_shard_of_a_shard_is_the_same_again(folder, reopen, tmp_path: Path) -> None:
    write_packed(folder, tmp_path / "out", Packing(format="keep", size=None))
    write_packed(reopen(), tmp_path / "again", Packing(format="keep", size=None))
    for name in ("train-000000.tar", "test-000000.tar"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_nothing_is_left_of_a_packing_that_failed(folder, tmp_path: Path) -> None:
    Path(folder.dataset("test").paths[1]).write_bytes(b"<html>")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"bad image .*: content is HTML"):
        write_packed(folder, tmp_path / "out", Packing(format="keep", size=None))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_bad_images_are_left_out_where_the_source_skips_them(folder, reopen, tmp_path: Path) -> None:
    Path(folder.dataset("train").paths[4]).write_bytes(b"<html>")
    folder.bad_images = BadImagePolicy("skip", max_fraction=0.2, seed=0)
    packing = Packing(format="keep", size=None, images_per_shard=4)
    record = write_packed(folder, tmp_path / "out", packing)
    assert record["left_out"] == [folder.dataset("train").paths[4]]
    assert [shard["images"] for shard in record["splits"]["train"]["shards"]] == [4, 3]
    sound = [0, 1, 2, 3, 5, 6, 7]
    assert reopen().dataset("train").labels.tolist() == folder.dataset("train").labels[sound].tolist()
    for image, index in zip(images(reopen(), "train"), sound, strict=True):
        kept = folder.dataset("train").read([SampleKey(0, index)], lambda image, key: image)
        assert torch.equal(image, kept.image[0])
    folder.bad_images.max_fraction = 0.1  # of 8 images is none
    with pytest.raises(ValueError, match=r"content is HTML.*; 1 bad image\(s\) are more than data.max_bad_fraction"):
        write_packed(folder, tmp_path / "again", packing)
    assert not (tmp_path / "again").exists()


def test_an_existing_folder_and_a_packing_at_work_are_left_alone(folder, tmp_path: Path) -> None:
    packing = Packing(format="raw", size=None)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"out=.*out exists already"):
        write_packed(folder, tmp_path / "out", packing)
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "theirs").touch()
    with pytest.raises(ValueError, match=r"\.new\.partial exists: another packing"):
        write_packed(folder, tmp_path / "new", packing)
    assert (tmp_path / ".new.partial" / "theirs").exists()


def test_mistakes_are_refused(folder, tmp_path: Path, data_settings) -> None:
    for settings, sentence in (
        ({"format": "png", "size": None}, "format must be 'raw', 'jpeg' or 'keep', got 'png'"),
        (
            {"format": "keep", "size": 256},
            "format=keep copies files as they are, size=256 reduces images; set size=null",
        ),
        ({"format": "raw", "size": 0}, "size must be at least 1 pixel, or null, got 0"),
        ({"format": "jpeg", "size": 1, "jpeg_quality": 0}, r"jpeg_quality must lie in 1..100, got 0"),
        ({"format": "raw", "size": 1, "images_per_shard": 0}, "images_per_shard must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Packing(**settings)
    with pytest.raises(ValueError, match=r"splits must be some of train, val and test, with train, got \['val'\]"):
        write_packed(folder, tmp_path / "out", Packing(format="raw", size=None), ["val"])
    floats = torch.zeros(3, 4, 4)
    with pytest.raises(ValueError, match="format=raw stores bytes, these images are numbers of finer steps"):
        Packing(format="raw", size=None).encode(floats)
    with pytest.raises(ValueError, match=r"format=jpeg stores 1 or 3 channels, these images have 5; set format=raw"):
        Packing(format="jpeg", size=None).encode(torch.zeros(5, 4, 4, dtype=torch.uint8))
    one, ending = Packing(format="jpeg", size=None).encode(torch.full((1, 8, 8), 77, dtype=torch.uint8))
    assert (ending, np.asarray(Image.open(io.BytesIO(one))).tolist()) == ("jpg", [[77] * 8] * 8)
