"""Changes of color, drawn for each image of a batch, on the batch's device."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.randomness import rows_of_devices

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, of red, green and blue
_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class ColorJitter:
    """Shifts brightness, contrast, saturation and hue of each image by amounts of its own, as SimCLR does (A).

    A pixel p of an image with mean luma m becomes `clip(b (c H S p + (1 - c) m))`, b and c the factors of brightness
    and contrast, S a blend with its luma and H a rotation about the gray axis (in YIQ). Numbers are drawn from torch's
    generator.

    Differs from torchvision's: one matrix a pixel and a fixed order of the four, and hue turns in YIQ, not in HSV.

    Args:
        pixel_mean, pixel_std: RGB statistics, in 0..1, the images are normalized with.
        brightness, contrast, saturation: Largest relative change, each factor uniform in 1 - x .. 1 + x; 0 is off.
        hue: Largest turn, in turns, at most 0.5.
        probability: Fraction of images changed so.
        grayscale: Fraction of images that lose their color.

    Raises:
        ValueError: A strength or a fraction is out of range, or the images are not RGB.
    """

    def __init__(
        self,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        probability: float = 0.8,
        grayscale: float = 0.2,
    ) -> None:
        limits = {
            "brightness": 1.0,
            "contrast": 1.0,
            "saturation": 1.0,
            "hue": 0.5,
            "probability": 1.0,
            "grayscale": 1.0,
        }
        values = (brightness, contrast, saturation, hue, probability, grayscale)
        for (name, limit), value in zip(limits.items(), values, strict=True):
            if not 0.0 <= value <= limit:
                raise ValueError(f"color jitter's {name} must lie in 0..{limit:g}, got {value}")
        if len(pixel_mean) != 3:
            raise ValueError(
                f"color jitter changes red, green and blue, but these images have {len(pixel_mean)} channel(s)"
            )
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.probability, self.grayscale = probability, grayscale

    def __call__(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 3 height width"]:
        """Takes and returns normalized images."""
        num_rows, own = rows_of_devices(len(images))
        draws = torch.rand(6, num_rows, device=images.device)[:, own]
        changed = draws[4] < self.probability

        def strength(draw: Tensor, largest: float) -> Tensor:
            return torch.where(changed, (2 * draw - 1) * largest, 0.0)

        saturation = torch.where(draws[5] < self.grayscale, 0.0, 1 + strength(draws[2], self.saturation))
        return self.apply(
            images,
            brightness=1 + strength(draws[0], self.brightness),
            contrast=1 + strength(draws[1], self.contrast),
            saturation=saturation,
            hue=strength(draws[3], self.hue),
        )

    def apply(
        self,
        images: Float[Tensor, "b 3 height width"],
        *,
        brightness: Float[Tensor, " b"],
        contrast: Float[Tensor, " b"],
        saturation: Float[Tensor, " b"],
        hue: Float[Tensor, " b"],
    ) -> Float[Tensor, "b 3 height width"]:
        """Changes each image by given factors, and its hue by so many turns."""
        mean, std = (images.new_tensor(statistic)[:, None, None] for statistic in (self.pixel_mean, self.pixel_std))
        luma = images.new_tensor(_LUMA)
        rgb = images * std + mean
        mean_luma = torch.einsum("bchw,c->b", rgb, luma) / (rgb.shape[2] * rgb.shape[3])
        identity = torch.eye(3, device=images.device, dtype=images.dtype)
        blend = saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * luma.expand(3, 3)
        matrix = (brightness * contrast)[:, None, None] * (_hue_rotation(hue, images) @ blend)
        offset = brightness * (1 - contrast) * mean_luma
        changed = torch.einsum("bdc,bchw->bdhw", matrix, rgb) + offset[:, None, None, None]
        return (changed.clamp(0.0, 1.0) - mean) / std


def _hue_rotation(turns: Float[Tensor, " b"], like: Tensor) -> Float[Tensor, "b 3 3"]:
    cos, sin = (2 * math.pi * turns).cos(), (2 * math.pi * turns).sin()
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    in_yiq = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).unflatten(1, (3, 3))
    to_yiq = like.new_tensor(_TO_YIQ)
    matrix: Tensor = torch.linalg.inv(to_yiq) @ in_yiq @ to_yiq
    return matrix
