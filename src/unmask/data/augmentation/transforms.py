"""Augmentation whose every draw is keyed, for whole batches on their device or for one image in a worker."""

import math
from collections.abc import Sequence

import torch
import torchvision.transforms.v2.functional as TF
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode

from unmask.data.augmentation.boxes import (
    DRAWS_PER_ATTEMPT,
    Attempts,
    Box,
    Boxes,
    CropDraws,
    ImageDraws,
    centered,
    first_fitting,
    first_fitting_of_one,
    shape_attempts,
)
from unmask.data.augmentation.rand_augment import RandAugment
from unmask.data.augmentation.resizing import Interpolation
from unmask.data.files.pixels import Pixels
from unmask.randomness import keyed_uniform

_CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop
_ERASE_ATTEMPTS = 10
_ERASE_AREA = (0.02, 1 / 3)  # timm's RandomErasing
_ERASE_ASPECT = (0.3, 1 / 0.3)


class Augmentation:
    """Random resized crop, horizontal flip, RandAugment and random erasing.

    A crop covers a fraction of the image's area drawn uniformly from `scale`, with a log-uniform aspect ratio from
    `ratio`; ten attempts are made to fit it and the largest centered crop is the fallback, as in torchvision.

    Args:
        scale: Smallest and largest fraction of the area, in (0, 1].
        ratio: Smallest and largest width / height.
        interpolation: "bicubic" or "bilinear", antialiased.
        hflip_prob: Probability of mirroring left and right.
        rand_augment: timm's policy, such as `rand-m9-mstd0.5-inc1`, of distortions after crop and flip; null is off.
            They are computed on the CPU, image by image.
        random_erasing_prob: Probability of replacing one box by normal noise, after normalization (arXiv:1708.04896).

    Raises:
        ValueError: A range is empty or a probability lies outside 0..1.
    """

    def __init__(
        self,
        *,
        scale: Sequence[float] = (0.2, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bicubic",
        hflip_prob: float = 0.5,
        rand_augment: str | None = None,
        random_erasing_prob: float = 0.0,
    ) -> None:
        if not 0.0 < scale[0] <= scale[1] <= 1.0:
            raise ValueError(f"augmentation.scale must be two rising fractions in (0, 1], got {list(scale)}")
        if not 0.0 < ratio[0] <= ratio[1]:
            raise ValueError(f"augmentation.ratio must be two rising positive numbers, got {list(ratio)}")
        for name, probability in (("hflip_prob", hflip_prob), ("random_erasing_prob", random_erasing_prob)):
            if not 0.0 <= probability <= 1.0:
                raise ValueError(f"augmentation.{name} must be a probability in 0..1, got {probability}")
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"augmentation.interpolation must be 'bilinear' or 'bicubic', got {interpolation!r}")
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self.interpolation: Interpolation = interpolation
        self.hflip_prob, self.random_erasing_prob = hflip_prob, random_erasing_prob
        self.rand_augment = None if rand_augment is None else RandAugment(rand_augment, interpolation=interpolation)

    def __str__(self) -> str:
        """Names every setting, for protocol lines."""
        settings = {name: value for name, value in vars(self).items() if value is not None}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in settings.items())})"

    def draws(self, keys: Int[Tensor, " b"]) -> CropDraws:
        """Looks up all that crops and flips of these keys depend on beside the images' sizes."""
        draws = keyed_uniform(keys, 1 + _CROP_ATTEMPTS * DRAWS_PER_ATTEMPT)
        return CropDraws(draws[:, 0], shape_attempts(draws[:, 1:], self.scale, self.ratio))

    def crop_image(self, image: Pixels, draws: ImageDraws, size: tuple[int, int]) -> Pixels:
        """Crops and flips one image of any size, bytes to bytes, ready to be sent to the device."""
        box = self.choose_box(draws.attempts, image.shape[1], image.shape[2])
        crop: Tensor = TF.resized_crop(image, *box, list(size), InterpolationMode(self.interpolation), antialias=True)
        return crop.flip(2) if draws.flip < self.hflip_prob else crop

    def distort_image(self, image: Pixels, key: Int[Tensor, " 1"], fill: Sequence[float]) -> Pixels:
        """Applies RandAugment to a cropped image.

        Args:
            image: 8-bit RGB, where RandAugment is on.
            key: Of the sample and epoch.
            fill: Color, in 0..1, that moves in from outside.

        Raises:
            ValueError: The image has finer or unbounded numbers.
        """
        if self.rand_augment is None:
            return image
        if image.dtype != torch.uint8:
            raise ValueError(
                "augmentation.rand_augment distorts 8-bit pictures, and these files hold finer numbers; "
                "add augmentation.rand_augment=null"
            )
        return self.rand_augment(image, key=int(key) ^ 3, fill=fill)

    def distort_batch(
        self, images: Float[Tensor, "b 3 height width"], keys: Int[Tensor, " b"], fill: Sequence[float]
    ) -> Float[Tensor, "b 3 height width"]:
        """Applies RandAugment to cropped images in 0..255, which it rounds to whole values."""
        if self.rand_augment is None:
            return images
        whole = images.round().to(torch.uint8).cpu()
        distorted = [self.distort_image(image, key, fill) for image, key in zip(whole, keys[:, None], strict=True)]
        return torch.stack(distorted).to(images)

    def erase_batch(
        self, images: Float[Tensor, "b c height width"], keys: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c height width"]:
        """Replaces one box by standard normal noise in a fraction `random_erasing_prob` of the normalized images."""
        if self.random_erasing_prob == 0.0:
            return images
        _, channels, height, width = images.shape
        draws = keyed_uniform(keys ^ 1, 1 + _ERASE_ATTEMPTS * DRAWS_PER_ATTEMPT)
        boxes, fits = first_fitting(shape_attempts(draws[:, 1:], _ERASE_AREA, _ERASE_ASPECT), height, width)
        rows = torch.arange(height, device=images.device)
        cols = torch.arange(width, device=images.device)
        in_rows = (rows >= boxes.top[:, None]) & (rows < (boxes.top + boxes.height)[:, None])
        in_cols = (cols >= boxes.left[:, None]) & (cols < (boxes.left + boxes.width)[:, None])
        chosen = fits & (draws[:, 0] < self.random_erasing_prob)
        inside = in_rows[:, :, None] & in_cols[:, None, :] & chosen[:, None, None]
        noise = _keyed_normal(keys ^ 2, channels * height * width).view_as(images)
        return torch.where(inside[:, None], noise, images)

    def place(self, draws: CropDraws, height: int, width: int) -> tuple[Boxes, Bool[Tensor, " b"]]:
        """Boxes of these draws in images of one size, and which images are mirrored."""
        return self.choose_boxes(draws.attempts, height, width), draws.flip < self.hflip_prob

    def choose_boxes(self, attempts: Attempts, height: int, width: int) -> Boxes:
        """The crop of each image of a batch."""
        boxes, fits = first_fitting(attempts, height, width)
        fallback = centered(height, width, self.ratio)
        return Boxes(*(torch.where(fits, side, whole) for side, whole in zip(boxes, fallback, strict=True)))

    def choose_box(self, attempts: Sequence[Sequence[float]], height: int, width: int) -> Box:
        """The same of one image, for workers: a hundredth of the time of a batch of one."""
        return first_fitting_of_one(attempts, height, width) or centered(height, width, self.ratio)


def resize_and_center_crop(
    image: UInt8[Tensor, "*b c height width"] | Float32[Tensor, "*b c height width"],
    size: tuple[int, int],
    crop_pct: float,
    *,
    interpolation: str = "bicubic",
) -> UInt8[Tensor, "*b c new_height new_width"] | Float32[Tensor, "*b c new_height new_width"]:
    """Prepares an image, or a batch of one size, for evaluation.

    It is resized until a centered crop of `size` is `crop_pct` of it along the tighter side. With the usual 0.875 and
    224 px the short side becomes 256. As of torchvision's Resize, the other side is cut to whole pixels, not rounded.

    Args:
        image: Bytes, or numbers of a finer image.
        size: (height, width) of the crop, pixels.
        crop_pct: In (0, 1].
        interpolation: As torchvision names it, antialiased; "nearest-exact" for masks of class numbers.
    """
    height, width = image.shape[-2:]
    resized = _resized_shape(height, width, [int(side / crop_pct) for side in size])
    resized = [max(resized[0], size[0]), max(resized[1], size[1])]
    if resized != [height, width]:
        image = TF.resize(image, resized, InterpolationMode(interpolation), antialias=True)
    cropped: Tensor = TF.center_crop(image, list(size))
    return cropped


def _resized_shape(height: int, width: int, target: Sequence[int]) -> list[int]:
    """The smallest shape of the image's aspect ratio that is no smaller than the target, but for cut fractions."""
    target_height, target_width = target
    if target_height * width >= target_width * height:
        return [target_height, int(target_height * width / height)]
    return [int(target_width * height / width), target_width]


def _keyed_normal(keys: Int[Tensor, " b"], count: int) -> Float[Tensor, "b {count}"]:
    half = (count + 1) // 2
    radius, angle = keyed_uniform(keys, 2 * half).split(half, dim=1)
    radius = (-2.0 * torch.log1p(-radius)).sqrt()
    return torch.cat([radius * (math.tau * angle).cos(), radius * (math.tau * angle).sin()], dim=1)[:, :count]
