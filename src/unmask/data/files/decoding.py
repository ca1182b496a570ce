"""Image files of any common kind, read as tensors of one number of channels."""

import io
import math
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import simplejpeg
import torch
from jaxtyping import Shaped
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from unmask.data.files.opening import open_file
from unmask.data.files.pixels import OpenFile, Pixels

_Result = TypeVar("_Result")
_Array = Shaped[np.ndarray, "..."]

IMAGE_SUFFIXES = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "avif"}
)
"""What names of image files end in, in lower case and without the dot."""

ARRAY_SUFFIXES = frozenset({"npy", "npz"})
"""What names of numpy's files end in; they count as images where numbers are read (`ImageDecoder.reads_numbers`)."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")  # EPS, say, would run Ghostscript
_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")  # either byte order, and BigTIFF
_MAX_CHANNELS = 16
_MAX_PIXELS = 89_478_485  # where Pillow begins to warn: 256 MiB of RGB
_MAX_MPX = f"{_MAX_PIXELS / 1e6:.0f} Mpx"
_FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0, "float16": 1.0, "float32": 1.0, "float64": 1.0}
_UPRIGHT = {  # EXIF 2.32, table of Orientation: how the stored rows and columns are turned for display
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,  # Pillow turns counterclockwise
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_IMPOSTORS = {  # what a failed download leaves under an image's name, by its first bytes in lower case
    b"<!doctype html": "HTML",
    b"<html": "HTML",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"version https://git-lfs": "a Git LFS pointer",
}


class BadImageError(ValueError):
    """An image that cannot be read or is not taken.

    Args:
        name: The file, as messages call it; the whole sentence where there is no `reason`.
        reason: What is wrong with it.
    """

    def __init__(self, name: str, reason: str = "") -> None:
        super().__init__(f"bad image {name}: {reason}" if reason else name)
        self.name, self.reason = name, reason


class ImageHeader(NamedTuple):
    """What a file says of its image before any pixel is read."""

    kind: str  # such as "JPEG RGB" or "NPY uint16"
    height: int  # as stored, before EXIF turns it
    width: int


class _UnsupportedImageError(ValueError):
    """A sound file whose content is not taken."""


@dataclass(frozen=True, kw_only=True)
class ImageDecoder:
    """Reads JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF and numpy files, whatever their names.

    As pictures (1 or 3 channels): the image is turned upright by its EXIF orientation; transparency shows the
    background; gray, palette and CMYK become RGB, or gray by their luma (ITU-R BT.601) with one channel; 16-bit gray is
    divided by 257 and 16-bit color keeps its high byte; of several frames or pages the first is taken. The result is
    uint8.

    As numbers (numpy files always; TIFF files where `reads_numbers`): all bands or pages of the file are channels, in
    its order, and must be as many as asked for. An array is (height, width), (channels, height, width) or (height,
    width, channels), the latter where both would fit. Bytes stay uint8; other numbers become float32 with `pixel_scale`
    at 255.

    Args:
        channels: 1 to 16.
        pixel_scale: The number in the files that becomes 1 in the network's images before they are normalized; None
            takes 255 for uint8, 65535 for uint16 and 1 for float.
        background: What shows through transparency: a name or a code such as "#808080".
        exif: Turn images upright.

    Raises:
        ValueError: A value is out of range.
    """

    channels: int = 3
    pixel_scale: float | None = None
    background: str = "white"
    exif: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= _MAX_CHANNELS:
            raise ValueError(f"data.channels must lie in 1..{_MAX_CHANNELS}, got {self.channels}")
        if self.pixel_scale is not None and not self.pixel_scale > 0.0:
            raise ValueError(f"data.pixel_scale must be a positive number, got {self.pixel_scale}")
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise ValueError(
                f"data.background={self.background} is no color; write a name such as white, or a code such as #808080"
            ) from None

    @property
    def reads_numbers(self) -> bool:
        """Whether files hold numbers on a scale of their own: other channels than gray or RGB, or a scale is given."""
        return self.channels not in (1, 3) or self.pixel_scale is not None

    @property
    def suffixes(self) -> frozenset[str]:
        """What names of image files end in, in lower case and without the dot."""
        return IMAGE_SUFFIXES | ARRAY_SUFFIXES if self.channels != 3 or self.reads_numbers else IMAGE_SUFFIXES

    def read(self, path: str) -> Pixels:
        """Reads a file.

        Raises:
            BadImageError: The file cannot be read, is no image, is truncated or corrupt, has more than 89 Mpx, has
                another number of channels, or holds numbers without a known range.
        """
        try:
            with open_file(path) as file:
                return self._read_named(file, path)
        except OSError as error:
            raise BadImageError(path, f"cannot be read ({error.strerror}{_permissions(path, error)})") from error

    def decode(self, content: bytes, name: str) -> Pixels:
        """Reads the bytes of a file as `read` does; `name` is what messages call it."""
        return self._read_named(io.BytesIO(content), name)

    def read_header(self, file: OpenFile, name: str) -> ImageHeader:
        """Reads what a file says of itself, and raises as `read` does where that is enough to refuse it."""
        return self._named(self._header, file, name)

    def _read_named(self, file: OpenFile, name: str) -> Pixels:
        return self._named(self._read, file, name)

    def _named(self, read: Callable[[OpenFile], _Result], file: OpenFile, name: str) -> _Result:
        try:
            return read(file)
        except _UnsupportedImageError as refusal:
            raise BadImageError(name, str(refusal)) from None
        except UnidentifiedImageError as error:
            raise BadImageError(name, _describe_content(file)) from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise BadImageError(name, f"more than {_MAX_MPX}, possibly a decompression bomb") from error
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
            if isinstance(error, OSError) and error.strerror:
                raise BadImageError(name, f"cannot be read ({error.strerror})") from error
            raise BadImageError(name, f"truncated or corrupt ({_size(file)} bytes; {error})") from error

    def _read(self, file: OpenFile) -> Pixels:
        head = file.read(8)
        file.seek(0)
        if head.startswith((_NPY, _ZIP)):
            return self._as_pixels(_read_numpy(file, is_archive=head.startswith(_ZIP)))
        if self.reads_numbers and head.startswith(_TIFF):
            return self._as_pixels(_read_tiff(file))
        image = Image.open(file, formats=_FORMATS)
        if self.reads_numbers:
            setting = f"data.channels={self.channels}" if self.pixel_scale is None else "data.pixel_scale"
            raise _UnsupportedImageError(f"{setting} is for .npy, .npz and TIFF files, and this is {image.format}")
        _require_supported(image)
        fast = self._read_jpeg(file, image)
        if fast is not None:
            return fast
        image.load()
        picture = self._as_picture(image)
        # Only now: PNG may store EXIF behind the pixels, and Pillow turns TIFF upright by itself while loading.
        turn = _UPRIGHT.get(_orientation(image)) if self.exif else None
        pixels: Tensor = pil_to_tensor(picture if turn is None else picture.transpose(turn))
        return pixels

    def _read_jpeg(self, file: OpenFile, opened: Image.Image) -> Pixels | None:
        """Decodes an ordinary upright JPEG to the pixels Pillow gives, in two thirds of the time.

        Whatever is unusual or damaged gives None and is left to Pillow, whose verdict counts.
        """
        is_ordinary = opened.format == "JPEG" and opened.mode in ("RGB", "L") and self.channels == 3
        if not is_ordinary or (self.exif and _orientation(opened) in _UPRIGHT):
            return None
        file.seek(0)
        try:
            pixels = simplejpeg.decode_jpeg(file.read(), "RGB", strict=True)
        except ValueError:
            return None
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _header(self, file: OpenFile) -> ImageHeader:
        head = file.read(8)
        file.seek(0)
        if head.startswith(_NPY):
            shape, dtype = _npy_header(file)
            return self._header_of_array(f"NPY {dtype.name}", shape)
        if head.startswith(_ZIP) or (self.reads_numbers and head.startswith(_TIFF)):
            pixels = self._read(file)
            return ImageHeader("NPZ" if head.startswith(_ZIP) else "TIFF numbers", pixels.shape[1], pixels.shape[2])
        image = Image.open(file, formats=_FORMATS)
        _require_supported(image)
        return ImageHeader(f"{image.format} {image.mode}", image.height, image.width)

    def _header_of_array(self, kind: str, shape: tuple[int, ...]) -> ImageHeader:
        _, height, width = self._channels_first(np.broadcast_to(np.uint8(0), shape)).shape
        return ImageHeader(kind, height, width)

    def _as_picture(self, image: Image.Image) -> Image.Image:
        if image.mode.startswith("I"):  # 16 bit, or 16-bit PGM, which Pillow widens to 32
            values = np.asarray(image).astype(np.int64)
            image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        if image.has_transparency_data:
            opaque = Image.new("RGBA", image.size, self.background)
            opaque.alpha_composite(image.convert("RGBA"))
            image = opaque
        rgb = image.convert("RGB")
        return rgb if self.channels == 3 else rgb.convert("L")

    def _as_pixels(self, array: _Array) -> Pixels:
        ordered = self._channels_first(array)
        scale = _FULL_SCALE.get(ordered.dtype.name) if self.pixel_scale is None else self.pixel_scale
        if scale is None:
            raise _UnsupportedImageError(
                f"{ordered.dtype.name} numbers have no known range; set data.pixel_scale to the one that is to become 1"
            )
        if ordered.dtype == np.uint8 and scale == 255.0:
            return torch.from_numpy(np.ascontiguousarray(ordered))
        if ordered.dtype.kind not in "uif":
            raise _UnsupportedImageError(f"holds {ordered.dtype.name}, not numbers")
        values = torch.from_numpy(np.multiply(ordered, 255.0 / scale, dtype=np.float64).astype(np.float32))
        if not values.isfinite().all():
            raise _UnsupportedImageError("contains infinite or NaN values")
        return values

    def _channels_first(self, array: _Array) -> _Array:
        if array.ndim == 2 and self.channels == 1:
            return array[None]
        if array.ndim == 3 and array.shape[2] == self.channels:
            return array.transpose(2, 0, 1)
        if array.ndim == 3 and array.shape[0] == self.channels:
            return array
        raise _UnsupportedImageError(
            f"has the shape {'x'.join(map(str, array.shape))}, expected {self.channels} channel(s) of height x width; "
            "set data.channels to what the files have"
        )


def _read_numpy(file: OpenFile, *, is_archive: bool) -> _Array:
    """Reads a .npy file, or a .npz with one array; nothing pickled, and nothing larger than an image may be."""
    if not is_archive:
        return _read_npy(file)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(names) != 1 or not names[0].endswith(".npy"):
            raise _UnsupportedImageError(f"holds {', '.join(names[:5]) or 'nothing'}; an .npz needs one array an image")
        with archive.open(names[0]) as member:
            return _read_npy(member)


def _read_npy(file: Any) -> _Array:
    _npy_header(file)
    file.seek(0)
    array: _Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    _require_size(shape)
    if dtype.hasobject:
        raise _UnsupportedImageError("holds pickled Python objects, which are never loaded; save plain numbers")
    return shape, dtype


def _read_tiff(file: OpenFile) -> _Array:
    try:
        tifffile = import_module("tifffile")
    except ImportError:
        raise _UnsupportedImageError(
            "its numbers are read by the package tifffile; pip install 'unmask[tiff]'"
        ) from None
    with tifffile.TiffFile(file) as opened:
        stack = opened.series[0]  # all pages of one shape, or the one with all bands
        _require_size(stack.shape)
        try:
            array: _Array = stack.asarray()
        except (KeyError, ValueError) as error:
            if "imagecodecs" in str(error):
                raise _UnsupportedImageError(
                    f"its compression {stack.keyframe.compression.name} needs pip install 'unmask[tiff]'"
                ) from None
            raise
    return array


def _require_size(shape: tuple[int, ...]) -> None:
    numbers = math.prod(shape)
    if numbers > _MAX_PIXELS * _MAX_CHANNELS or math.prod(sorted(shape)[-2:]) > _MAX_PIXELS:
        raise _UnsupportedImageError(
            f"{'x'.join(map(str, shape))} numbers, more than {_MAX_MPX} in {_MAX_CHANNELS} channels"
        )


def _require_supported(image: Image.Image) -> None:
    """Refuses by the header alone, before any pixel is decoded."""
    width, height = image.size
    if width * height > _MAX_PIXELS:
        raise _UnsupportedImageError(
            f"{width}x{height} = {width * height / 1e6:.0f} Mpx, more than {_MAX_MPX}, possibly a decompression bomb"
        )
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "float" if image.mode == "F" else "or signed integer"
        raise _UnsupportedImageError(
            f"32-bit {kind} pixels have no known range; convert them to 8 or 16 bit, or set data.pixel_scale to the "
            "number that is white"
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata leave the pixels sound, and Pillow raises nearly anything on them
        return 1


def _permissions(path: str, error: OSError) -> str:
    if not isinstance(error, PermissionError):
        return ""
    try:
        status = Path(path).stat()
    except OSError:
        return ""
    return f": mode {stat.S_IMODE(status.st_mode):03o}, owner {status.st_uid}"


def _describe_content(file: OpenFile) -> str:
    size = _size(file)
    if size == 0:
        return "empty file"
    file.seek(0)
    head = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, name in _IMPOSTORS.items():
        if head.startswith(start):
            return f"content is {name}, not an image (failed download?)"
    return f"not a readable JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF image ({size} bytes)"


def _size(file: OpenFile) -> int:
    return file.seek(0, io.SEEK_END)
