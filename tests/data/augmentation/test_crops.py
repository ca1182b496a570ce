import torch

from unmask.data.augmentation.crops import AugmentedCrop
from unmask.data.augmentation.transforms import Augmentation
from unmask.data.dataset import SampleKey


def test_draws_looked_up_for_a_batch_are_those_of_each_sample() -> None:
    crop = AugmentedCrop(augmentation=Augmentation(), size=(16, 16), seed=3, fill=(0.5, 0.5, 0.5))
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8)
    keys = [SampleKey(0, 5), SampleKey(1, 5), SampleKey(1, 2)]
    prepared = crop.prepared(keys)
    crops = [crop(image, key) for key in keys]
    assert all(torch.equal(prepared(image, key), alone) for key, alone in zip(keys, crops, strict=True))
    assert not torch.equal(crops[0], crops[1])  # another epoch
    stranger = SampleKey(4, 4)  # a sample that takes another's place
    assert torch.equal(prepared(image, stranger), crop(image, stranger))
