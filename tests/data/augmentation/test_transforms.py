"""Statistical bounds are five standard deviations, or Kolmogorov-Smirnov at a level of 1e-4; every seed is fixed."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from unmask.data.augmentation.boxes import Boxes
from unmask.data.augmentation.resizing import resize_boxes
from unmask.data.augmentation.transforms import Augmentation, resize_and_center_crop
from unmask.randomness import sample_keys

KS_ONE_SAMPLE = 2.22  # times 1/sqrt(n): level 1e-4


def keys_of(count: int, epoch: int = 0) -> Tensor:
    return sample_keys(0, "augmentation", epoch, torch.arange(count))


def place(augmentation: Augmentation, count: int, height: int, width: int) -> tuple[Boxes, Tensor]:
    """The boxes of `count` samples, and which are mirrored."""
    return augmentation.place(augmentation.draws(keys_of(count)), height, width)


def crop_batch(augmentation: Augmentation, images: Tensor, keys: Tensor, size: tuple[int, int]) -> Tensor:
    """Crops and flips images of one size together, as the data module does on the device."""
    boxes, flipped = augmentation.place(augmentation.draws(keys), images.shape[2], images.shape[3])
    return resize_boxes(images, boxes, size, augmentation.interpolation, flipped)


def distance_from_uniform(values: Tensor) -> float:
    """The Kolmogorov-Smirnov statistic against the uniform distribution on 0..1."""
    ordered = values.double().sort().values
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return max((steps[1:] - ordered).max().item(), (ordered - steps[:-1]).max().item())


def distance_between(first: Tensor, second: Tensor) -> float:
    """The Kolmogorov-Smirnov statistic of two samples."""
    places = torch.cat([first, second]).sort().values
    shares = [torch.searchsorted(sample.sort().values, places, right=True) / len(sample) for sample in (first, second)]
    return (shares[0] - shares[1]).abs().max().item()


def ramps(height: int, width: int) -> Tensor:
    """An image whose first two channels tell the row and the column, six gray levels a pixel."""
    rows = torch.arange(height)[:, None].expand(height, width)
    cols = torch.arange(width)[None, :].expand(height, width)
    return torch.stack([6 * rows, 6 * cols, 255 - 6 * rows]).to(torch.uint8)


def test_crop_of_the_whole_image_at_its_own_size_changes_nothing() -> None:
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    whole = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip_prob=0.0)
    assert torch.equal(crop_batch(whole, images, keys_of(2), (20, 20)), images.float())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(40, 30), (20, 20), (56, 64)])
def test_the_batch_path_gives_the_single_image_path_bit_for_bit(interpolation, size) -> None:
    augmentation = Augmentation(interpolation=interpolation)
    keys = keys_of(60)
    images = torch.randint(0, 256, (60, 3, 40, 42), dtype=torch.uint8)
    single = [
        augmentation.crop_image(*pair, size) for pair in zip(images, augmentation.draws(keys).each(), strict=True)
    ]
    assert torch.equal(crop_batch(augmentation, images, keys, size), torch.stack(single).float())


def test_crops_do_not_depend_on_the_batch_and_change_with_the_epoch() -> None:
    augmentation = Augmentation(random_erasing_prob=1.0)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    order = torch.randperm(8)
    keys = keys_of(8)
    together = crop_batch(augmentation, images, keys, (24, 24))
    torch.testing.assert_close(crop_batch(augmentation, images[order], keys[order], (24, 24)), together[order])
    torch.testing.assert_close(crop_batch(augmentation, images[3:4], keys[3:4], (24, 24)), together[3:4])
    noise = augmentation.erase_batch(torch.zeros(8, 3, 32, 32), keys)
    assert torch.equal(augmentation.erase_batch(torch.zeros(8, 3, 32, 32)[order], keys[order]), noise[order])
    later = crop_batch(augmentation, images, keys_of(8, epoch=1), (24, 24))
    assert ((later - together).flatten(1).abs().amax(dim=1) > 10).all()


def test_area_aspect_and_place_of_boxes_are_uniform() -> None:
    """With shares up to a half every attempt fits, so nothing is tilted by the ones that do not."""
    count, height, width = 4000, 1500, 2000
    ratio = (3 / 4, 4 / 3)
    boxes, _ = place(Augmentation(scale=(0.2, 0.4), ratio=ratio), count, height, width)
    area = boxes.height * boxes.width / (height * width)
    log_aspect = (boxes.width / boxes.height).log()
    bound = KS_ONE_SAMPLE / count**0.5 + 2e-3  # boxes are whole pixels
    assert distance_from_uniform((area - 0.2) / 0.2) < bound
    assert distance_from_uniform((log_aspect - math.log(ratio[0])) / math.log(ratio[1] / ratio[0])) < bound
    assert distance_from_uniform((boxes.top + 0.5) / (height - boxes.height + 1)) < bound
    assert distance_from_uniform((boxes.left + 0.5) / (width - boxes.width + 1)) < bound
    correlations = torch.corrcoef(torch.stack([area, log_aspect, boxes.top / (height - boxes.height)]).double())
    assert correlations.fill_diagonal_(0.0).abs().max() < 5 / count**0.5


def test_a_box_lies_at_each_of_its_places_equally_often() -> None:
    count, places = 3000, 5  # a box of 4 pixels in 8
    boxes, _ = place(Augmentation(scale=(0.25, 0.25), ratio=(1.0, 1.0)), count, 8, 8)
    for start in (boxes.top, boxes.left):
        shares = start.bincount(minlength=places) / count
        assert len(shares) == places
        assert (shares - 1 / places).abs().max() < 5 * (0.2 * 0.8 / count) ** 0.5


@pytest.mark.parametrize(("height", "width", "scale"), [(40, 40, (0.2, 1.0)), (30, 90, (0.67, 1.0))])
def test_boxes_follow_torchvisions_random_resized_crop(height, width, scale) -> None:
    count, ratio = 2000, (3 / 4, 4 / 3)
    boxes, _ = place(Augmentation(scale=scale, ratio=ratio), count, height, width)
    image = torch.empty(3, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])
    for ours, column in zip(boxes, theirs.unbind(1), strict=True):
        assert distance_between(ours.double(), column.double()) < KS_ONE_SAMPLE * (2 / count) ** 0.5
    assert (boxes.top + boxes.height).max() <= height
    assert (boxes.left + boxes.width).max() <= width
    assert min(boxes.top.min(), boxes.left.min()) == 0


@pytest.mark.parametrize(("height", "width"), [(20, 200), (200, 20)])
def test_where_no_attempt_fits_the_largest_centered_crop_is_taken(height, width) -> None:
    ratio = (3 / 4, 4 / 3)
    boxes, _ = place(Augmentation(scale=(1.0, 1.0), ratio=ratio), 5, height, width)
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], list(ratio))
    assert [tuple(map(int, box)) for box in zip(*boxes, strict=True)] == [tuple(expected)] * 5


@pytest.mark.parametrize("flip", [0.0, 0.25, 1.0])
def test_images_are_mirrored_with_the_given_probability(flip: float) -> None:
    count = 4000
    augmentation = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip_prob=flip)
    images = ramps(8, 8).expand(count, -1, -1, -1)
    cropped = crop_batch(augmentation, images, keys_of(count), (8, 8))
    mirrored = cropped[:, 1, 0, 0] > cropped[:, 1, 0, -1]
    assert abs(mirrored.double().mean().item() - flip) <= 5 * (flip * (1 - flip) / count) ** 0.5
    assert (cropped[:, 0, 0, 0] < cropped[:, 0, -1, 0]).all()  # never upside down


def test_erasing_fills_one_rectangle_with_standard_normal_noise() -> None:
    count, side = 250, 64
    images = torch.full((count, 3, side, side), 100.0)
    erased = Augmentation(random_erasing_prob=1.0).erase_batch(images, keys_of(count))
    inside = erased != 100.0
    assert torch.equal(inside[:, :1].expand_as(inside), inside)  # all channels alike
    rows, cols = inside[:, 0].any(dim=2), inside[:, 0].any(dim=1)
    assert torch.equal(inside[:, 0], rows[:, :, None] & cols[:, None, :])
    for extent in (rows, cols):  # without gaps
        assert (extent.int().diff(dim=1, prepend=torch.zeros(count, 1, dtype=torch.int)) == 1).sum(dim=1).eq(1).all()
    area = inside[:, 0].double().mean(dim=(1, 2))
    assert 0.015 < area.min() < 0.04
    assert 0.3 < area.max() < 0.35
    noise = erased[inside]
    assert abs(noise.mean().item()) < 5 / len(noise) ** 0.5
    assert abs(noise.square().mean().item() - 1.0) < 5 * (2 / len(noise)) ** 0.5
    within_one = (noise.abs() < 1.0).double().mean().item()
    assert abs(within_one - 0.682689) < 5 * (0.6827 * 0.3173 / len(noise)) ** 0.5


def test_noise_of_an_erased_box_differs_between_channels_and_images() -> None:
    erased = Augmentation(random_erasing_prob=1.0).erase_batch(torch.full((50, 3, 32, 32), 100.0), keys_of(50))
    numbers = erased[erased != 100.0]
    assert numbers.unique().numel() > 0.99 * numbers.numel()


@pytest.mark.parametrize("erase", [0.0, 0.25])
def test_boxes_are_erased_with_the_given_probability(erase: float) -> None:
    count = 2000
    erased = Augmentation(random_erasing_prob=erase).erase_batch(torch.full((count, 1, 16, 16), 100.0), keys_of(count))
    share = (erased != 100.0).flatten(1).any(dim=1).double().mean().item()
    assert abs(share - erase) <= 5 * (erase * (1 - erase) / count) ** 0.5


def test_which_images_are_erased_does_not_follow_from_which_are_mirrored() -> None:
    count = 2000
    augmentation = Augmentation(hflip_prob=0.5, random_erasing_prob=0.5)
    erased = (augmentation.erase_batch(torch.full((count, 1, 8, 8), 100.0), keys_of(count)) != 100.0).flatten(1).any(1)
    _, mirrored = place(augmentation, count, 8, 8)
    correlation = torch.corrcoef(torch.stack([erased, mirrored]).double())[0, 1]
    assert abs(correlation.item()) < 5 / count**0.5


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_crop_equals_torchvisions_resize_and_center_crop(interpolation) -> None:
    """MAE, SimMIM and DDMIM use it: the long side is cut to whole pixels, not rounded."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(20, 160, (150, 2), generator=generator).tolist()
    oracle = v2.Compose([v2.Resize(36, InterpolationMode(interpolation)), v2.CenterCrop(32)])  # int(32 / 0.875)
    for height, width in ((50, 70), (70, 50), (40, 40), *sizes):
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        cropped = resize_and_center_crop(image, (32, 32), 0.875, interpolation=interpolation)
        assert torch.equal(cropped, oracle(image)), (height, width)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_crop_of_a_photo_is_torchvisions_of_pil_but_for_a_gray_level(interpolation) -> None:
    rows, cols = torch.meshgrid(torch.linspace(0, 9, 99), torch.linspace(0, 7, 131), indexing="ij")
    waves = torch.stack([rows.sin() * cols.cos(), cols.sin(), (rows + cols).cos()])
    photo = (127.5 + 127 * waves).byte()
    oracle = v2.Compose([v2.Resize(36, InterpolationMode(interpolation)), v2.CenterCrop(32), v2.PILToTensor()])
    cropped = resize_and_center_crop(photo, (32, 32), 0.875, interpolation=interpolation)
    assert (cropped.int() - oracle(v2.functional.to_pil_image(photo)).int()).abs().max() <= 1


def test_the_short_side_is_that_of_the_sources() -> None:
    """MAE and SimMIM take int(256 / 224 * size), DDMIM's bolts size + 32 at 224 px, mmpretrain 256, 219 and 512."""
    assert [int(side / 0.875) for side in (192, 224, 448)] == [219, 256, 512]
    assert all(int(side / 0.875) == int(256 / 224 * side) for side in range(32, 513, 16))


@pytest.mark.parametrize("size", [(48, 48), (30, 80), (80, 30)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_evaluation_crop_is_never_padded(size, crop_pct) -> None:
    for height, width in ((16, 16), (37, 91), (91, 37), (200, 31)):
        cropped = resize_and_center_crop(torch.full((3, height, width), 200, dtype=torch.uint8), size, crop_pct)
        assert cropped.shape == (3, *size)
        assert (cropped == 200).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (0.0, 1.0)}, r"augmentation\.scale must be two rising fractions"),
        ({"scale": (0.8, 0.2)}, r"augmentation\.scale"),
        ({"scale": (0.2, 1.1)}, r"got \[0\.2, 1\.1\]"),
        ({"ratio": (0.0, 1.0)}, r"augmentation\.ratio"),
        ({"ratio": (2.0, 1.0)}, r"augmentation\.ratio must be two rising positive numbers"),
        ({"hflip_prob": 1.5}, r"augmentation\.hflip_prob must be a probability in 0\.\.1, got 1\.5"),
        (
            {"random_erasing_prob": -0.1},
            r"augmentation\.random_erasing_prob must be a probability in 0\.\.1, got -0\.1",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)
