import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.sources.synthetic import CLASS_NAMES, EASY, HARD, Scene, Synthetic, _length, object_coverage, render
from unmask.randomness import sample_keys

both_scenes = pytest.mark.parametrize("scene", [EASY, HARD], ids=["easy", "hard"])


def make_data(**settings: Any) -> Synthetic:
    defaults: dict[str, Any] = {
        "image_size": 32,
        "pixel_mean": (0.5, 0.5, 0.5),
        "pixel_std": (0.25, 0.25, 0.25),
        "augmentation": Augmentation(),
        "global_batch_size": 4,
        "num_train": 30,
        "num_val": 30,
        "num_test": 30,
    }
    return Synthetic(**(defaults | settings))


def make_keys(count: int) -> Tensor:
    return sample_keys(0, "test", 0, torch.arange(count))


def nearest_mean_accuracy(features: Tensor, labels: Tensor) -> float:
    """Fits standardized class means on the first half and classifies the second."""
    half = len(labels) // 2
    features = (features - features[:half].mean(0)) / features[:half].std(0)
    means = torch.stack([features[:half][labels[:half] == label].mean(0) for label in range(len(CLASS_NAMES))])
    predicted = torch.cdist(features[half:], means).argmin(dim=1)
    return (predicted == labels[half:]).float().mean().item()


def central_moments(coverage: Tensor, order_x: int, order_y: int) -> Tensor:
    """Scale-free moments about the centroid."""
    height, width = coverage.shape[1:]
    rows, cols = torch.arange(height).double()[:, None], torch.arange(width).double()[None, :]
    coverage = coverage.double()
    area = coverage.sum((1, 2))
    row, col = ((coverage * axis).sum((1, 2)) / area for axis in (rows, cols))
    offset = (cols - col[:, None, None]) ** order_x * (rows - row[:, None, None]) ** order_y
    return (coverage * offset).sum((1, 2)) / area ** (1 + (order_x + order_y) / 2)


def test_lengths_are_rounded_to_the_nearest_on_every_processor() -> None:
    """Pictures are the same on all machines, while torch's root of float32 is MKL's, which is not the same on all."""
    x, y = torch.randn(2, 100_000)
    exact = np.sqrt((x * x + y * y).numpy())
    assert torch.equal(_length(x.view(1, 1, -1), y.view(1, 1, -1)).flatten(), torch.from_numpy(exact))


@both_scenes
@pytest.mark.parametrize("size", [(16, 16), (21, 35)])
def test_a_picture_does_not_depend_on_the_batch_it_is_rendered_in(size: tuple[int, int], scene: Scene) -> None:
    keys, labels = make_keys(12), torch.arange(12) % 10
    together = render(keys, labels, size, scene)
    alone = torch.cat([render(keys[i : i + 1], labels[i : i + 1], size, scene) for i in range(12)])
    backwards = render(keys.flip(0), labels.flip(0), size, scene).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards)


@pytest.mark.parametrize(("difficulty", "scene"), [("easy", EASY), ("hard", HARD)])
def test_a_split_is_rendered_in_chunks_without_a_seam(difficulty: str, scene: Scene) -> None:
    samples = make_data(num_train=150, difficulty=difficulty).load_split("train")  # more than two chunks
    index = torch.arange(150)
    together = render(sample_keys(0, "synthetic-train", 0, index), samples.labels, (32, 32), scene)
    assert torch.equal(samples.images, together)
    assert torch.equal(samples.labels, index % 10)


def test_each_seed_split_and_index_has_a_picture_of_its_own() -> None:
    pictures = torch.cat(
        [make_data(picture_seed=s).load_split(split).images for s in (0, 1) for split in ("train", "val", "test")]
    )
    assert len(pictures.flatten(1).unique(dim=0)) == len(pictures) == 180


def test_classes_are_balanced_in_every_split() -> None:
    data = make_data(num_train=70, num_val=20, num_test=10)
    for split in ("train", "val", "test"):
        labels = data.load_split(split).labels
        assert torch.equal(labels.bincount(), torch.full((10,), len(labels) // 10))


@pytest.mark.parametrize("difficulty", ["easy", "hard"])
def test_colors_do_not_tell_the_class(difficulty: str) -> None:
    samples = make_data(num_train=1000, render_size=20, difficulty=difficulty).load_split("train")
    pixels = samples.images.float().flatten(2)
    levels = torch.quantile(pixels, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]), dim=2).permute(1, 2, 0).flatten(1)
    statistics = torch.cat([pixels.mean(2), pixels.std(2), levels], dim=1)
    assert nearest_mean_accuracy(statistics, samples.labels) < 0.16  # chance 0.1, its deviation 0.013


def test_the_outline_tells_the_class() -> None:
    keys, labels = make_keys(400), torch.arange(400) % 10
    coverage = object_coverage(keys, labels, (48, 48), HARD)
    moment = {(p, q): central_moments(coverage, p, q) for p in range(5) for q in range(5 - p)}
    spread = moment[2, 0] + moment[0, 2]
    stretch = ((moment[2, 0] - moment[0, 2]) ** 2 + 4 * moment[1, 1] ** 2).sqrt()
    skew = (moment[3, 0] - 3 * moment[1, 2]) ** 2 + (3 * moment[2, 1] - moment[0, 3]) ** 2
    lean = (moment[3, 0] + moment[1, 2]) ** 2 + (moment[2, 1] + moment[0, 3]) ** 2
    tail = moment[4, 0] + 2 * moment[2, 2] + moment[0, 4]
    four = ((moment[4, 0] + moment[0, 4] - 6 * moment[2, 2]) ** 2 + 16 * (moment[3, 1] - moment[1, 3]) ** 2).sqrt()
    invariants = torch.stack([spread, stretch, skew.sqrt(), lean.sqrt(), tail, four], dim=1)
    assert nearest_mean_accuracy(invariants.log(), labels) > 0.8


def test_objects_of_all_shapes_have_the_same_area() -> None:
    keys = make_keys(20)
    areas = torch.stack(
        [object_coverage(keys, torch.full((20,), label), (96, 160), HARD).sum((1, 2)) for label in range(10)], dim=1
    )
    # A wide picture leaves little beyond the border; the median forgives the few points that are.
    ratios = (areas / areas[:, :1]).median(dim=0).values
    torch.testing.assert_close(ratios, torch.ones(10), rtol=0.02, atol=0.0)


def test_the_label_changes_the_object_and_nothing_else() -> None:
    keys, size = make_keys(60), (32, 32)
    labels = [torch.full((60,), label) for label in range(10)]
    pictures = torch.stack([render(keys, label, size, HARD).int() for label in labels])
    coverage = torch.stack([object_coverage(keys, label, size, HARD) for label in labels])
    corners = pictures[..., [0, 0, -1, -1], [0, -1, 0, -1]]  # no object or shadow reaches a corner
    assert (corners == corners[:1]).float().mean() > 0.99
    changed = (pictures - pictures[:1]).abs().amax(dim=2) > 8
    assert changed[(coverage - coverage[:1]).abs() == 1.0].float().mean() > 0.8


@both_scenes
def test_a_key_shows_the_same_scene_at_every_size(scene: Scene) -> None:
    keys, labels = make_keys(30), torch.arange(30) % 10
    small = object_coverage(keys, labels, (32, 32), scene)
    large = object_coverage(keys, labels, (96, 96), scene)
    reduced = torch.nn.functional.avg_pool2d(large[:, None], 3)[:, 0]
    assert (small - reduced).abs().mean() < 0.01
    whole = render(keys, labels, (96, 96), scene).float()
    difference = render(keys, labels, (32, 32), scene).float() - torch.nn.functional.avg_pool2d(whole, 3)
    assert difference.abs().mean() < 40.0  # grain alone; unrelated scenes differ by about 80


def test_shapes_stay_round_in_pictures_that_are_not_square() -> None:
    coverage = object_coverage(make_keys(20), torch.zeros(20, dtype=torch.int64), (32, 64), HARD)
    across, down = central_moments(coverage, 2, 0), central_moments(coverage, 0, 2)
    torch.testing.assert_close(across, down, rtol=0.02, atol=0.0)
    torch.testing.assert_close(across.median(), torch.tensor(0.25 / math.pi).double(), rtol=0.05, atol=0.0)


def test_objects_go_to_all_sides_and_turn_freely() -> None:
    coverage = object_coverage(make_keys(400), torch.full((400,), CLASS_NAMES.index("bar")), (32, 48), HARD)
    weights = coverage / coverage.sum((1, 2), keepdim=True)
    place_x, place_y = torch.arange(48) + 0.5 - 24.0, torch.arange(32) + 0.5 - 16.0
    cols, rows = (weights * place_x).sum((1, 2)), (weights * place_y[:, None]).sum((1, 2))
    assert cols.abs().max() > 6.0  # farther than in a square: the longer side gives more room
    for offset in (cols, rows):
        assert offset.mean().abs() < 0.7  # deviation at most 0.25
        assert offset.min() < -3.0
        assert offset.max() > 3.0
    slant = 2 * central_moments(coverage, 1, 1)
    angle = torch.atan2(slant, central_moments(coverage, 2, 0) - central_moments(coverage, 0, 2))
    quadrants = torch.histc(angle.float(), bins=4, min=-math.pi, max=math.pi)
    assert quadrants.min() > 60  # 100 expected, deviation 9


@both_scenes
def test_the_easy_scenes_surface_belongs_to_the_shape_and_goes_with_it(scene: Scene) -> None:
    """The edges inside an object say which it is only where its surface is its own."""
    keys, labels = make_keys(400), torch.arange(400) % 10
    size = (64, 64)
    inside = object_coverage(keys, labels, size, scene) == 1.0
    lightness = render(keys, labels, size, scene).float().mean(dim=1)
    across, down = (lightness.diff(dim=2)[:, 1:].abs() > 25), (lightness.diff(dim=1)[:, :, 1:].abs() > 25)
    is_edge = (across | down) & inside[:, 1:, 1:]
    amount = is_edge.sum((1, 2)) / inside.sum((1, 2))
    finest = torch.isin(labels, torch.tensor([CLASS_NAMES.index("square"), CLASS_NAMES.index("crescent")]))
    is_finer = amount[finest].median() > 2.0 * amount[~finest].median()
    assert bool(is_finer) == scene.has_own_surfaces


def test_the_default_is_the_easy_scene_and_the_difficulty_is_checked() -> None:
    default, easy, hard = (
        make_data(**settings).load_split("val").images
        for settings in ({}, {"difficulty": "easy"}, {"difficulty": "hard"})
    )
    assert torch.equal(default, easy)
    assert not torch.equal(default, hard)
    with pytest.raises(ValueError, match=r"data\.difficulty must be one of easy, hard, got 'harder'"):
        make_data(difficulty="harder")


def test_render_size_is_that_of_the_stored_pictures() -> None:
    data = make_data(num_train=2, image_size=32, render_size=(24, 40))
    assert data.load_split("train").images.shape == (2, 3, 24, 40)
    assert make_data(num_train=2, image_size=(16, 24)).load_split("train").images.shape == (2, 3, 16, 24)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_empty_split_is_refused(split: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.num_{split} must be at least 1 picture, got 0"):
        make_data(**{f"num_{split}": 0})


@pytest.mark.parametrize("sizes", [{"image_size": 8}, {"render_size": (32, 15)}])
def test_pictures_too_small_for_a_shape_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"too small to show a shape; set data\.render_size"):
        make_data(**sizes)
