"""Images with a mask each that names the class of every pixel."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from unmask.data.augmentation.transforms import resize_and_center_crop
from unmask.data.auto_split import AutoSplitDataModule
from unmask.data.dataset import UNLABELED, ImageFileDataset
from unmask.data.files.decoding import IMAGE_SUFFIXES
from unmask.data.files.listing import find_images
from unmask.data.files.opening import open_file
from unmask.data.files.paths import PathList
from unmask.data.files.splits import SPLIT_NAMES, Split

_MASK_MODES = ("1", "L", "P")  # Pillow's names of one bit, gray and palette
_TURNED_BY_A_QUARTER = (5, 6, 7, 8)  # EXIF orientations

_log = logging.getLogger(__name__)


class SegmentationFolder(AutoSplitDataModule):
    """A folder `images` and beside it a folder `masks` with a PNG of the same name for each image.

    Below both may stand the folders `train`, `val` and `test`, or both may stand below each of these; without them all
    images are training images and the other splits are held out. Images may lie in further folders, as long as their
    masks lie likewise. Masks are gray or palette PNG whose numbers are the classes, from 0; 255 is left out. Images
    without a mask are not used, which is logged. As training data for a method the images are unlabeled.

    Args:
        root: The folder.
        images, masks: Names of the two folders.
        crop_pct, shared: See `AutoSplitDataModule`; by default a whole side is evaluated.

    Raises:
        ValueError: A folder is missing, no image has a mask; when masks are read, one is no such PNG or has another
            size than its image.
    """

    def __init__(
        self, *, root: str, images: str = "images", masks: str = "masks", crop_pct: float = 1.0, **shared: Any
    ) -> None:
        super().__init__(crop_pct=crop_pct, **shared)
        self.root = Path(root).expanduser()
        self.names = (images, masks)
        if not self.root.is_dir():
            raise ValueError(
                f"data.root={root} is not a folder (seen from {Path.cwd()}); "
                f"name one that holds the folders {images} and {masks}"
            )

    def origin(self, split: Split) -> str | None:
        return str(self._folders[split][0]) if split in self._folders else None

    def how_to_add(self, split: Split) -> str:
        return f"put a folder {split} beside train"

    def read_split(self, split: Split) -> "SegmentationDataset":
        images, masks = self._folders[split]
        paths = list(find_images(images, IMAGE_SUFFIXES).paths)
        pairs = [(path, str(masks / Path(path).relative_to(images).with_suffix(".png"))) for path in paths]
        kept = [(path, mask) for path, mask in pairs if Path(mask).is_file()]
        if not kept:
            raise ValueError(
                f"none of the {len(pairs)} images below {images} has a mask below {masks}; "
                f"the mask of photo.jpg is called photo.png"
            )
        if len(kept) < len(pairs):
            alone = next(path for path, mask in pairs if not Path(mask).is_file())
            _log.warning("%d images without a mask are left out, the first %s", len(pairs) - len(kept), alone)
        return SegmentationDataset([path for path, _ in kept], [mask for _, mask in kept], decode=self.decoder.read)

    def read_masks(self, split: Split, positions: Int[Tensor, " b"]) -> UInt8[Tensor, "b height width"]:
        """Reads the masks of some images of a split, cropped as the images are in evaluation; 255 is no class."""
        dataset = self.dataset(split)
        assert isinstance(dataset, SegmentationDataset)
        masks = []
        for position in positions.tolist():
            mask = _read_mask(dataset.masks[position])
            self._require_same_size(dataset.paths[position], dataset.masks[position], mask)
            masks.append(
                resize_and_center_crop(mask[None], self.image_size, self.crop_pct, interpolation="nearest-exact")[0]
            )
        return torch.stack(masks)

    def _require_same_size(self, image: str, path: str, mask: UInt8[Tensor, "height width"]) -> None:
        """Compares with the image's header, so that no image is decoded for it."""
        with open_file(image) as file, Image.open(file) as opened:
            width, height = opened.size
            turn = opened.getexif().get(ExifTags.Base.Orientation, 1)
        if self.decoder.exif and turn in _TURNED_BY_A_QUARTER:
            width, height = height, width
        if mask.shape != (height, width):
            raise ValueError(
                f"{path} is {mask.shape[1]}x{mask.shape[0]} px and its image {width}x{height} px; "
                "a mask has the size of its image"
            )

    @cached_property
    def _folders(self) -> dict[Split, tuple[Path, Path]]:
        images, masks = self.names
        found: dict[Split, tuple[Path, Path]] = {}
        for split, names in SPLIT_NAMES.items():
            for name in names:
                for pair in (
                    (self.root / images / name, self.root / masks / name),
                    (self.root / name / images, self.root / name / masks),
                ):
                    if pair[0].is_dir():
                        found[split] = pair
        if found and "train" not in found:
            raise ValueError(
                f"{self.root} has {' and '.join(str(pair[0]) for pair in found.values())} but no training images; "
                "put them in a folder train"
            )
        found = found or {"train": (self.root / images, self.root / masks)}
        for folder in (folder for pair in found.values() for folder in pair):
            if not folder.is_dir():
                raise ValueError(
                    f"{folder} is not a folder; data=segmentation reads the folders {images} and {masks} of data.root "
                    "(data.images=NAME and data.masks=NAME call them otherwise)"
                )
        return found


class SegmentationDataset(ImageFileDataset):
    """Unlabeled images and where the mask of each lies."""

    def __init__(self, paths: Sequence[str], masks: Sequence[str], **settings: Any) -> None:
        super().__init__(PathList(paths), torch.full((len(paths),), UNLABELED), (), **settings)
        self.masks = PathList(masks)

    def subset(self, indices: Int[Tensor, " m"]) -> "SegmentationDataset":
        return SegmentationDataset(list(self.paths.take(indices)), list(self.masks.take(indices)), decode=self.decode)


def _read_mask(path: str) -> UInt8[Tensor, "height width"]:
    """Reads the class of every pixel."""
    try:
        with open_file(path) as file, Image.open(file, formats=("PNG",)) as image:
            if image.mode not in _MASK_MODES:
                raise ValueError(
                    f"bad mask {path}: Pillow's mode {image.mode}, not gray or palette of 8 bits or fewer; "
                    "save the number of its class in every pixel"
                )
            numbers = np.array(image, dtype=np.uint8)
    except UnidentifiedImageError as error:
        raise ValueError(f"bad mask {path}: not a PNG file") from error
    except (OSError, SyntaxError) as error:  # Pillow raises either on damaged PNG
        raise ValueError(f"bad mask {path}: cannot be read ({error})") from error
    return torch.from_numpy(numbers)
