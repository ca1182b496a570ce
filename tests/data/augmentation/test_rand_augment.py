"""timm's RandAugment as a function of a key."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from unmask.data.augmentation.rand_augment import RandAugment, _seeded_globals
from unmask.data.augmentation.transforms import Augmentation
from unmask.data.sources.folder import ImageFolder

POLICY = "rand-m9-mstd0.5-inc1"
MEAN = (0.485, 0.456, 0.406)


def make_image(side: int = 40) -> torch.Tensor:
    return torch.randint(256, (3, side, side), dtype=torch.uint8)


def test_it_is_timms_transform_under_generators_seeded_with_the_key() -> None:
    policy = "rand-m7-mstd0.5-inc1"  # weak enough for Pillow 13 to accept what timm asks of it
    image, augment = make_image(), RandAugment(policy)
    settings = {"translate_const": 18, "img_mean": (124, 116, 104), "interpolation": Resampling.BICUBIC}
    oracle = rand_augment_transform(policy, settings)
    num_changed = 0
    for key in range(40):
        random.seed(key)
        np.random.seed(key)  # noqa: NPY002
        expected = pil_to_tensor(oracle(to_pil_image(image)))
        num_changed += not torch.equal(expected, image)
        assert torch.equal(augment(image, key=key, fill=MEAN), expected)
    assert 20 <= num_changed < 40  # each of the two operations is skipped half the time


def test_the_generators_of_the_process_are_left_as_they_were() -> None:
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    with _seeded_globals(3):
        assert (random.random(), np.random.rand()) != expected  # noqa: NPY002
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_the_strongest_posterization_is_black() -> None:
    augment = RandAugment("rand-m10-n1-p1-inc1")
    results = [augment(make_image(), key=key, fill=MEAN) for key in range(60)]  # 15 operations, one at a time
    assert sum(int(result.max()) == 0 for result in results) >= 1


@pytest.mark.parametrize("size", [40, (24, 56)])
def test_batches_and_single_images_are_distorted_alike(size: int | tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randint(256, (6, 3, height, width), dtype=torch.uint8)
    keys = torch.tensor([3, -7, 2**62, 0, 11, -(2**63)])  # keys are any 64 bits
    augmentation = Augmentation(rand_augment=POLICY)
    together = augmentation.distort_batch(images.float(), keys, MEAN)
    for image, key, distorted in zip(images, keys[:, None], together, strict=True):
        assert torch.equal(augmentation.distort_image(image, key, MEAN), distorted.to(torch.uint8))
    assert not torch.equal(together, images.float())
    assert torch.equal(Augmentation().distort_batch(images.float(), keys, MEAN), images.float())


@pytest.mark.parametrize("policy", ["rand-x9", "randm9", "original", "rand-m9-mstd", ""])
def test_another_policy_is_refused_with_an_example(policy: str) -> None:
    with pytest.raises(
        ValueError, match=f"rand_augment='{policy}' is not a policy .* write it as rand-m9-mstd0.5-inc1"
    ):
        Augmentation(rand_augment=policy)


def test_what_is_no_8_bit_rgb_picture_is_refused(tmp_path: Path) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "gray.png")
    data = ImageFolder(
        root=str(tmp_path),
        image_size=32,
        channels=1,
        pixel_mean=[0.5],
        pixel_std=[0.25],
        augmentation=Augmentation(rand_augment=POLICY),
        global_batch_size=1,
    )
    with pytest.raises(ValueError, match=r"data.channels is 1; add augmentation.rand_augment=null"):
        data.train_dataloader()
    with pytest.raises(ValueError, match=r"hold finer numbers; add augmentation.rand_augment=null"):
        data.augmentation.distort_image(torch.rand(3, 8, 8), torch.tensor([0]), MEAN)
