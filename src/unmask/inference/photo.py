"""What a checkpoint makes of one photo, under a mask that is drawn by ratio and unit or painted by hand."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from unmask.callbacks.panel import Reconstruction, enlarged_bytes, reconstruction_pixels
from unmask.data.augmentation.transforms import resize_and_center_crop
from unmask.inference.base import Checkpoint
from unmask.masking.random import RandomMaskGenerator
from unmask.methods.backbone_module import BackboneModule
from unmask.patches import PatchMask, are_whole_cells, patch_sides
from unmask.randomness import sample_keys
from unmask.types import Images

Photo = UInt8[ndarray, "rows cols colors"]
"""RGB, or RGBA whose fourth channel is left out."""

_SMALLEST_PICTURE = 256  # pixels
_LEAST_PAINTED = 0.25  # of a patch, from which on it counts as painted
_SIZES = ("embed_dim", "depth", "depths", "num_heads", "mlp_ratio")  # that a setting may replace
_MOST_UNITS = 32  # along the shorter side of an image: smaller ones cannot be told apart


class PhotoModel:
    """A method or a classifier, for photos of any size; the whole photo is resized, its longer side cropped.

    Args:
        module: In eval mode.
        class_names: Of a classifier's outputs; those that several share, as ImageNet's cranes do, are told apart by
            their numbers.
        path: Of the file it was read from.

    Raises:
        ValueError: It takes other images than RGB.
    """

    def __init__(self, module: BackboneModule, class_names: Sequence[str] = (), *, path: str = "") -> None:
        self.module = module
        self.path = path
        self.backbone = module.exported_backbone
        counts = Counter(class_names)
        self.class_names = tuple(
            f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(class_names)
        )
        if self.backbone.in_channels != 3:
            raise ValueError(
                f"photos have three channels, and this checkpoint takes images of {self.backbone.in_channels}; use "
                "eval=reconstruct or eval=predict with data of its kind"
            )

    @property
    def is_classifier(self) -> bool:
        return self.module.is_classifier

    @property
    def title(self) -> str:
        """The method and the backbone, by timm's name where it has one."""
        settings = self.backbone.settings
        return f"{type(self.module).__name__} on {settings.get('name', settings['kind'])}"

    @property
    def origin(self) -> str:
        """The file, and the sizes of the backbone that replace those of timm's name."""
        settings = self.backbone.settings
        sizes = [f"{name} {settings[name]}" for name in _SIZES if settings.get(name) is not None]
        return ", ".join([self.path, *sizes])

    @property
    def takes_any_mask(self) -> bool:
        """Whether a mask may be of any fraction and painted by hand; not where it leaves one unit of some visible."""
        return self.module.mask_cell is None

    def mask_units(self) -> list[int]:
        """Sides in pixels of the squares that masks can be made of: of whole mask units, which divide an image."""
        cell = self.module.mask_unit_size
        if not self.takes_any_mask:
            return [max(patch_sides(cell))]
        largest = min(self.backbone.image_size)
        return [
            unit
            for unit in range(max(patch_sides(cell)), largest // 2 + 1)
            if are_whole_cells(unit, cell)
            and are_whole_cells(self.backbone.image_size, unit)
            and largest // unit <= _MOST_UNITS
        ]

    def own_masking(self) -> tuple[float, int]:
        """The fraction that the method itself masks, and the unit of it that `mask_units` offers."""
        images = torch.zeros(1, 3, *self.backbone.image_size, device=self.module.device)
        mask = self.module.held_out_mask(images, torch.zeros(1, dtype=torch.int64, device=self.module.device))
        if mask is None:
            raise ValueError(f"{type(self.module).__name__} masks nothing; there is nothing to reconstruct")
        own = max(patch_sides(mask.patch_size))
        return float(mask.masked.float().mean()), min(self.mask_units(), key=lambda unit: abs(unit - own))

    def prepare(self, photo: Photo) -> Images:
        """Resizes and crops a photo and normalizes it as the backbone's images were."""
        pixels = torch.from_numpy(photo[..., :3].copy()).permute(2, 0, 1)[None]
        images = resize_and_center_crop(pixels, self.backbone.image_size, 1.0, interpolation="bicubic").float() / 255.0
        mean, std = (
            images.new_tensor(values)[:, None, None] for values in (self.backbone.pixel_mean, self.backbone.pixel_std)
        )
        normalized: Tensor = (images - mean) / std
        return normalized.to(self.module.device)

    def draw(self, *, ratio: float, unit: int, seed: int) -> PatchMask:
        """Draws a mask; the same seed draws the same.

        Raises:
            ValueError: The ratio or the unit does not fit.
        """
        generator = RandomMaskGenerator(ratio=ratio, patch_size=unit, cell=self.module.mask_cell)
        images = torch.zeros(1, 3, *self.backbone.image_size, device=self.module.device)
        keys = sample_keys(seed, "shown-mask", 0, torch.zeros(1, dtype=torch.int64, device=self.module.device))
        return generator(images, keys)

    def mask_painted(self, painted: Float[ndarray, "rows cols"], *, unit: int) -> PatchMask:
        """Masks each unit that a quarter of which at least is painted.

        Args:
            painted: Opacity of the paint over the photo, in 0..1, of the photo's size.
            unit: Side of what is masked at a time, pixels of the image the backbone takes.

        Raises:
            ValueError: Nothing is painted, nothing is left visible, or the method takes no such mask.
        """
        side = self.module.mask_cell
        if side is not None:
            raise ValueError(
                f"{self.title} needs one visible square of each {side}x{side}, which no painted mask leaves; "
                "choose the drawn mask"
            )
        opacity = torch.from_numpy((255 * painted).round().astype("uint8"))[None, None].expand(-1, 3, -1, -1)
        fitted = resize_and_center_crop(opacity, self.backbone.image_size, 1.0, interpolation="bilinear")
        covered = F.avg_pool2d((fitted[:, :1].float() > 127).float(), unit)[:, 0]
        masked = (covered >= _LEAST_PAINTED).to(self.module.device)
        if not masked.any():
            raise ValueError("nothing is painted on the part of the photo that is used; paint over it, or draw a mask")
        if masked.all():
            raise ValueError("everything is painted over; leave some of the photo visible")
        return PatchMask(masked, unit)

    @torch.inference_mode()
    def reconstruct(self, photo: Photo, mask: PatchMask) -> Reconstruction:
        """Lets the method predict what is masked.

        Raises:
            ValueError: The method predicts no pixels, or cannot mask such patches.
        """
        images = self.prepare(photo)
        output: Any = self.module(images, mask)
        if output.prediction is None:
            raise ValueError(f"this {type(self.module).__name__} predicts no pixels; there is nothing to reconstruct")
        return reconstruction_pixels(
            images,
            mask,
            output.prediction,
            pixel_mean=self.backbone.pixel_mean,
            pixel_std=self.backbone.pixel_std,
            borrowed=self.module.borrowed_statistics(images),
        )

    @torch.inference_mode()
    def classify(self, photo: Photo) -> dict[str, float]:
        """Computes the softmax score of each class, the likeliest first."""
        scores = self.module(self.prepare(photo)).float().softmax(dim=1)[0]
        ranked = scores.argsort(descending=True).tolist()
        return {self.class_names[number]: float(scores[number]) for number in ranked}


def open_for_photos(checkpoint: Checkpoint) -> PhotoModel:
    """Loads what a page of photos shows.

    Raises:
        ValueError: The file holds a backbone alone, or takes other images than photos.
    """
    module = checkpoint.load_module()
    return PhotoModel(module, checkpoint.class_names() if module.is_classifier else (), path=checkpoint.path)


def as_picture(images: Images) -> UInt8[ndarray, "rows cols 3"]:
    """The first of some images in 0..1, as bytes; small ones have their pixels enlarged by a whole factor."""
    scale = max(1, _SMALLEST_PICTURE // min(images.shape[2:]))
    return enlarged_bytes(images[0], scale)
