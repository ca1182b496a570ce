"""What an image processor is checked with."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from unmask.interchange.exporters.base import ExportSource
from unmask.types import Images


def trial_photos(source: ExportSource, count: int) -> tuple[Float[Tensor, "b c whole_height whole_width"], Images]:
    """Draws random pixels in 0..1 that no processor resizes, and what cropping and normalizing makes of them.

    They have the size images are resized to before the crop, since libraries resize by algorithms of their own.
    """
    height, width = source.backbone.image_size
    generator = torch.Generator().manual_seed(0)
    size = int(height / source.crop_pct), int(width / source.crop_pct)
    pixels = torch.randint(0, 256, (count, source.backbone.in_channels, *size), generator=generator) / 255
    return pixels, source.normalize(center_crop(pixels, [height, width]))
