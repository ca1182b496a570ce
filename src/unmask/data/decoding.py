"""Image files of any common kind, read as RGB."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

_OpenFile = io.BufferedReader | io.BytesIO

IMAGE_SUFFIXES = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "avif"}
)
"""What names of image files end in, in lower case and without the dot."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")  # EPS, say, would run Ghostscript
_MAX_PIXELS = 89_478_485  # where Pillow begins to warn: 256 MiB of RGB
_MAX_MPX = f"{_MAX_PIXELS / 1e6:.0f} Mpx"
_UPRIGHT = {  # EXIF 2.32, table of Orientation: how the stored rows and columns are turned for display
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,  # Pillow turns anticlockwise
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


class _UnsupportedImageError(ValueError):
    """A sound file whose content is not taken."""


def decode_image(path: str) -> UInt8[Tensor, "3 height width"]:
    """Reads a JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF file, whatever its name, as RGB.

    The image is turned upright by its EXIF orientation; transparency shows white; grey, palette and CMYK become RGB;
    16-bit grey is divided by 257 and 16-bit colour keeps its high byte; of several frames or pages the first is taken.

    Raises:
        ValueError: The file cannot be read, is no image, is truncated or corrupt, has more than 89 Mpx, or holds
            32-bit numbers.
    """
    try:
        with Path(path).open("rb") as file:
            return _decode_named(file, path)
    except OSError as error:
        raise ValueError(f"bad image {path}: cannot be read ({error.strerror})") from error


def decode_bytes(content: bytes, name: str) -> UInt8[Tensor, "3 height width"]:
    """Reads the bytes of an image file as `decode_image` does; `name` is what messages call it."""
    return _decode_named(io.BytesIO(content), name)


def _decode_named(file: _OpenFile, name: str) -> UInt8[Tensor, "3 height width"]:
    try:
        return _decode(file)
    except _UnsupportedImageError as refusal:
        raise ValueError(f"bad image {name}: {refusal}") from None
    except UnidentifiedImageError as error:
        raise ValueError(f"bad image {name}: {_describe_content(file)}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"bad image {name}: more than {_MAX_MPX}, possibly a decompression bomb") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        if isinstance(error, OSError) and error.strerror:
            raise ValueError(f"bad image {name}: cannot be read ({error.strerror})") from error
        raise ValueError(f"bad image {name}: truncated or corrupt ({_size(file)} bytes; {error})") from error


def _decode(file: _OpenFile) -> UInt8[Tensor, "3 height width"]:
    image = Image.open(file, formats=_FORMATS)
    _require_supported(image)
    image.load()
    rgb = _to_rgb(image)
    # Only now: PNG may store EXIF behind the pixels, and Pillow turns TIFF upright by itself while loading.
    turn = _UPRIGHT.get(_orientation(image))
    pixels: Tensor = pil_to_tensor(rgb if turn is None else rgb.transpose(turn))
    return pixels


def _require_supported(image: Image.Image) -> None:
    """Refuses by the header alone, before any pixel is decoded."""
    width, height = image.size
    if width * height > _MAX_PIXELS:
        raise _UnsupportedImageError(
            f"{width}x{height} = {width * height / 1e6:.0f} Mpx, more than {_MAX_MPX}, possibly a decompression bomb"
        )
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "float" if image.mode == "F" else "or signed integer"
        raise _UnsupportedImageError(f"32-bit {kind} pixels have no known range; convert them to 8 or 16 bit")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bit, or 16-bit PGM, which Pillow widens to 32
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata leave the pixels sound, and Pillow raises nearly anything on them
        return 1


def _describe_content(file: _OpenFile) -> str:
    size = _size(file)
    if size == 0:
        return "empty file"
    file.seek(0)
    head = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, name in _IMPOSTORS.items():
        if head.startswith(start):
            return f"content is {name}, not an image (failed download?)"
    return f"not a readable JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF image ({size} bytes)"


def _size(file: _OpenFile) -> int:
    return file.seek(0, io.SEEK_END)
