import pytest
import torch

from unmask.data import precomputed_crops
from unmask.data.augmentation.boxes import Boxes
from unmask.data.augmentation.crops import AugmentedCrop, augmentation_keys
from unmask.data.augmentation.resizing import resize_boxes
from unmask.data.augmentation.transforms import Augmentation
from unmask.data.dataset import InMemoryDataset, SampleKey
from unmask.data.precomputed_crops import PrecomputedCrops


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> PrecomputedCrops:
    monkeypatch.setattr(precomputed_crops, "_PLACED_AT_ONCE", 7)  # so that an epoch takes several parts
    images = torch.randint(0, 256, (20, 3, 16, 24), dtype=torch.uint8)
    crop = AugmentedCrop(augmentation=Augmentation(), size=(8, 12), seed=5, fill=(0.5, 0.5, 0.5))
    return PrecomputedCrops(InMemoryDataset(images, torch.arange(20), ()), crop)


@pytest.mark.parametrize("keys", [[(0, 3), (0, 19), (0, 8)], [(1, 3), (1, 0)], [(0, 3), (1, 3), (4, 11)]])
def test_crops_of_an_epoch_are_those_of_each_sample(samples: PrecomputedCrops, keys: list[tuple[int, int]]) -> None:
    batch = samples.__getitems__([SampleKey(*key) for key in keys])
    assert batch.index.tolist() == [index for _, index in keys]
    assert batch.crop is not None
    top, left, height, width, flipped = batch.crop.unbind(1)
    cut = resize_boxes(batch.image, Boxes(top, left, height, width), (8, 12), "bicubic", flipped == 1)
    for (epoch, index), image, cropped in zip(keys, batch.image, cut, strict=True):
        key = augmentation_keys(5, epoch, torch.tensor([index]))
        augmentation = samples.crop.augmentation
        alone = augmentation.crop_image(image, augmentation.draws(key).each()[0], (8, 12))
        assert torch.equal(alone.float(), cropped)
