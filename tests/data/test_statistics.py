import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.sources.folder import ImageFolder
from unmask.data.statistics import choose_images, measure_pixels, read_cached, save_cached


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., ImageFolder]:
    def make(**changes: Any) -> ImageFolder:
        settings: dict[str, Any] = {
            "root": str(tmp_path / "images"),
            "image_size": 8,
            "pixel_mean": (0.5, 0.5, 0.5),
            "pixel_std": (0.5, 0.5, 0.5),
            "augmentation": Augmentation(),
            "global_batch_size": 2,
            "val_fraction": 0.25,
            "test_fraction": 0.0,
            "crop_pct": 1.0,
            "statistics": "auto",
            "cache_dir": str(tmp_path / "cache"),
        }
        return ImageFolder(**settings | changes)

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> list[np.ndarray]:
    """Eight pictures of the size that is served, so that nothing is resized."""
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    pixels[..., 1] //= 2
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
    return list(pixels)


def test_every_pixel_counts_once_whatever_the_batches() -> None:
    images = torch.randint(256, (7, 2, 3, 5), dtype=torch.uint8)
    whole, parts = measure_pixels([images]), measure_pixels(images.split([4, 3]))
    values = images.transpose(0, 1).flatten(1).double() / 255

    assert whole.mean == pytest.approx(values.mean(dim=1).tolist(), abs=1e-12)
    assert whole.std == pytest.approx(values.std(dim=1, correction=0).tolist(), abs=1e-9)
    assert parts == (pytest.approx(whole.mean), pytest.approx(whole.std))


def test_a_channel_without_variety_is_named() -> None:
    images = torch.rand(2, 3, 4, 4)
    images[:, 1] = 7.0
    with pytest.raises(ValueError, match="channel 1 has one value in all training images"):
        measure_pixels([images])


def test_auto_measures_the_training_images_alone(
    make_data: Callable[..., ImageFolder], pictures: list[np.ndarray]
) -> None:
    data = make_data()
    trained_on = [int(Path(path).stem) for path in data.dataset("train").paths]
    values = np.stack([pictures[number] for number in trained_on]).reshape(-1, 3) / 255

    assert len(trained_on) == 6
    assert data.pixel_mean == pytest.approx(values.mean(axis=0))
    assert data.pixel_std == pytest.approx(values.std(axis=0))
    served = torch.cat([data.to_model_input(batch, augmented=False).image for batch in data.evaluation_loader("train")])
    assert served.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (served.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    assert "measured on 6 of 6 training images" in data.statistics.describe(6)


def test_a_later_run_reads_what_was_measured_and_other_images_are_measured_again(
    make_data: Callable[..., ImageFolder], pictures: list[np.ndarray], tmp_path: Path
) -> None:
    assert make_data().pixel_mean[0] != 0.25
    (kept,) = (tmp_path / "cache" / "statistics").iterdir()
    kept.write_text(json.dumps({"mean": [0.25] * 3, "std": [1.0] * 3}))
    assert make_data(seed=1).pixel_mean == (0.25, 0.25, 0.25)

    assert make_data(image_size=4).pixel_mean[0] != 0.25
    assert make_data(background="black").pixel_mean[0] != 0.25
    Image.fromarray(pictures[0]).save(tmp_path / "images" / "8.png")
    assert make_data().pixel_mean[0] != 0.25


@pytest.mark.parametrize("content", ["", "{}", '{"mean": ["a"], "std": [1.0]}', "[1]"])
def test_a_damaged_file_of_the_cache_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "kept.json").write_text(content)
    assert read_cached(tmp_path / "kept.json") is None


def test_a_cache_that_cannot_be_written_costs_a_line_of_the_log(
    make_data: Callable[..., ImageFolder],
    pictures: list[np.ndarray],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert make_data().pixel_mean[0] == pytest.approx(0.5, abs=0.05)
    assert "cannot keep the images' statistics" in caplog.text


def test_what_is_kept_is_read_to_the_last_digit(tmp_path: Path) -> None:
    measured = measure_pixels([torch.rand(2, 3, 4, 4) * 255])
    save_cached(tmp_path / "new" / "kept.json", measured)
    assert read_cached(tmp_path / "new" / "kept.json") == measured
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept.json"]


def test_the_sample_is_the_same_for_everyone_and_spread_over_the_set() -> None:
    chosen = choose_images(1000, limit=100)
    assert torch.equal(chosen, choose_images(1000, limit=100))
    assert len(chosen.unique()) == 100
    assert abs(float(chosen.double().mean()) - 500) < 5 * 289 / 10  # five standard errors
    assert choose_images(5).tolist() == [0, 1, 2, 3, 4]


def test_given_statistics_must_be_one_a_channel(make_data: Callable[..., ImageFolder], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"3 number\(s\) for data.channels=4; .* or set data.statistics=auto"):
        make_data(statistics="given", channels=4)
    make_data(channels=4)
