"""Two crops of each image of a batch, drawn on the batch's device, for methods that compare two views."""

import torch

from unmask.data.augmentation.resizing import resample_boxes
from unmask.data.augmentation.transforms import Augmentation
from unmask.randomness import rows_of_devices
from unmask.types import Images, View


class CropPair:
    """Cuts two crops out of each image, each drawn as training crops are and resized back to the image's size.

    Numbers are drawn from torch's generator, by all devices for the images of all.

    Args:
        crop: How a crop is drawn; of it random erasing is not used.
    """

    def __init__(self, *, crop: Augmentation) -> None:
        self.crop = crop

    def __call__(self, images: Images) -> tuple[View, View]:
        return self._view(images), self._view(images)

    def _view(self, images: Images) -> View:
        height, width = images.shape[2:]
        num_rows, own = rows_of_devices(len(images))
        keys = torch.randint(2**62, (num_rows,), device=images.device)[own]
        boxes, flipped = self.crop.place(self.crop.draws(keys), height, width)
        cropped = resample_boxes(images, boxes, (height, width), self.crop.interpolation, flipped)
        top, left = boxes.top / height, boxes.left / width
        tall, wide = boxes.height / height, boxes.width / width
        box = torch.stack(
            [top, torch.where(flipped, left + wide, left), tall, torch.where(flipped, -wide, wide)], dim=1
        )
        return View(cropped, box)
