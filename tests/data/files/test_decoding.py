import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import ExifTags, Image, PngImagePlugin

from unmask.data.files.decoding import ImageDecoder

decode_image = ImageDecoder().read

# EXIF's own wording: where the stored image's first row and first column belong.
EXIF_SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Writes an image, or bytes, and returns the path."""

    def write(content: Image.Image | bytes, name: str, **options: Any) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, **options)
        return str(path)

    return write


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """Colors a JPEG keeps: each channel a ramp of its own direction."""
    rows, cols = np.mgrid[0:height, 0:width]
    ramps = [255 * rows / height, 255 * cols / width, 255 - 255 * rows / height]
    return np.stack(ramps, axis=2).astype(np.uint8)


def colors(path: str) -> list[tuple[int, ...]]:
    """The pixels in reading order."""
    return [tuple(pixel) for pixel in decode_image(path).flatten(1).T.tolist()]


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.bmp", "a.ppm", "a.PNG", "b,ä 图.png"])
def test_lossless_files_keep_every_pixel(save: Callable[..., str], name: str) -> None:
    pixels = noise(3, 5)
    image = decode_image(save(Image.fromarray(pixels), name, **({"lossless": True} if "webp" in name else {})))
    assert image.dtype == torch.uint8
    for row in range(3):
        for col in range(5):
            assert image[:, row, col].tolist() == pixels[row, col].tolist()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_keeps_colors_and_places(save: Callable[..., str], progressive: bool) -> None:
    pixels = smooth(37, 50)
    image = decode_image(save(Image.fromarray(pixels), "a.jpg", quality=100, subsampling=0, progressive=progressive))
    assert (image.int() - torch.from_numpy(pixels).permute(2, 0, 1).int()).abs().max() <= 4


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_fast_jpeg_decoder_gives_pillows_pixels(save: Callable[..., str], mode: str, subsampling: int) -> None:
    image = Image.fromarray(noise(37, 51)).convert(mode)
    options = {} if mode == "L" else {"subsampling": subsampling}
    path = save(image, "a.jpg", quality=60, **options)
    expected = np.array(Image.open(path).convert("RGB"))
    assert torch.equal(decode_image(path), torch.from_numpy(expected).permute(2, 0, 1))


def test_the_fast_jpeg_decoder_is_used(save: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.fromarray(noise(8, 8)), "a.jpg")
    monkeypatch.setattr(Image.Image, "convert", None)  # Pillow's way needs it
    assert decode_image(path).shape == (3, 8, 8)


def test_the_content_decides_and_not_the_name(save: Callable[..., str]) -> None:
    pixels = noise(4, 4)
    path = save(Image.fromarray(pixels), "a.jpg", format="PNG")
    assert torch.equal(decode_image(path), torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("ink", "rgb"),
    [((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 255, 0), (0, 255, 0)), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_cmyk_jpeg_becomes_rgb(save: Callable[..., str], ink: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    path = save(Image.new("CMYK", (16, 16), ink), "a.jpg", quality=95)
    assert (decode_image(path).int() - torch.tensor(rgb)[:, None, None]).abs().max() <= 8


def test_gray_and_bilevel_files_fill_three_channels(save: Callable[..., str]) -> None:
    gray = Image.fromarray(np.array([[0, 7, 255]], dtype=np.uint8))
    assert colors(save(gray, "gray.png")) == [(0, 0, 0), (7, 7, 7), (255, 255, 255)]
    bilevel = Image.fromarray(np.array([[True, False]]))
    assert bilevel.mode == "1"
    assert colors(save(bilevel, "bilevel.png")) == [(255, 255, 255), (0, 0, 0)]


def test_a_palette_is_looked_up(save: Callable[..., str]) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert colors(save(image, "a.png")) == [(10, 20, 30), (200, 100, 50)]


def test_transparency_shows_white(save: Callable[..., str]) -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 128], [255, 0, 0, 0]]], dtype=np.uint8)
    assert colors(save(Image.fromarray(rgba), "rgba.png")) == [(255, 0, 0), (255, 127, 127), (255, 255, 255)]
    gray_alpha = Image.merge("LA", [Image.new("L", (1, 1), 40), Image.new("L", (1, 1), 0)])
    assert colors(save(gray_alpha, "la.png")) == [(255, 255, 255)]


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_the_transparent_palette_entry_shows_white(save: Callable[..., str], name: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert colors(save(image, name, transparency=0)) == [(255, 255, 255), (200, 100, 50)]


def test_the_transparent_color_of_a_png_shows_white(save: Callable[..., str]) -> None:
    image = Image.new("RGB", (2, 1), (9, 8, 7))
    image.putpixel((1, 0), (1, 2, 3))
    assert colors(save(image, "a.png", transparency=(9, 8, 7))) == [(255, 255, 255), (1, 2, 3)]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_divided_by_257(save: Callable[..., str], name: str) -> None:
    values = np.array([[0, 128, 129, 20000, 65535]], dtype=np.uint16)
    path = save(Image.fromarray(values), name)
    assert decode_image(path)[:, 0].tolist() == [[0, 0, 1, 78, 255]] * 3


def test_big_endian_tiff_is_read_in_its_order(save: Callable[..., str]) -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 20000, 65535))
    assert decode_image(save(image, "a.tif"))[0, 0].tolist() == [78, 255]


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "float"), (np.int32, "signed integer")])
def test_numbers_of_32_bits_are_refused(save: Callable[..., str], dtype: type, kind: str) -> None:
    path = save(Image.fromarray(np.full((2, 2), 1, dtype=dtype)), "a.tif")
    with pytest.raises(ValueError, match=rf"bad image .*a\.tif: 32-bit .*{kind} .*convert them to 8 or 16 bit"):
        decode_image(path)


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.webp"])
def test_the_first_frame_is_taken(save: Callable[..., str], name: str) -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    options = {"lossless": True} if "webp" in name else {}
    path = save(first, name, save_all=True, append_images=[second], **options)
    assert set(colors(path)) == {(255, 0, 0)}


@pytest.mark.parametrize("orientation", EXIF_SIDES)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
def test_exif_orientation_turns_the_image_upright(save: Callable[..., str], name: str, orientation: int) -> None:
    stored = smooth(16, 24)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if "webp" in name else {"quality": 100, "subsampling": 0} if "jpg" in name else {}
    upright = decode_image(save(Image.fromarray(stored), name, exif=exif, **options))

    first_row, first_col = EXIF_SIDES[orientation]
    is_turned = first_row in ("left", "right")
    height, width = (24, 16) if is_turned else (16, 24)
    assert upright.shape == (3, height, width)
    for row in range(16):
        for col in range(24):
            place = {first_row: row, first_col: col}  # distance from that side of the upright image
            y = place["top"] if "top" in place else height - 1 - place["bottom"]
            x = place["left"] if "left" in place else width - 1 - place["right"]
            difference = upright[:, y, x].int() - torch.from_numpy(stored[row, col]).int()
            assert difference.abs().max() <= (4 if "jpg" in name else 0)


def test_damaged_exif_leaves_the_image_as_stored(save: Callable[..., str]) -> None:
    pixels = noise(4, 6)
    path = save(Image.fromarray(pixels), "a.png", exif=b"Exif\x00\x00no such thing")
    assert torch.equal(decode_image(path), torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_from_the_header(save: Callable[..., str]) -> None:
    path = save(png_header(10_000, 10_000), "bomb.png")
    with pytest.raises(ValueError, match=r"bomb\.png: 10000x10000 = 100 Mpx, more than 89 Mpx"):
        decode_image(path)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_bombs_that_pillow_itself_reports_name_the_file(save: Callable[..., str], side: int) -> None:
    path = save(png_header(side, side), "bomb.png")
    with pytest.raises(ValueError, match=r"bad image .*bomb\.png: more than 89 Mpx"):
        decode_image(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.tif", "a.bmp"])
def test_half_a_file_is_refused(save: Callable[..., str], name: str) -> None:
    whole = Path(save(Image.fromarray(noise(64, 64)), name)).read_bytes()
    path = save(whole[: len(whole) // 2], name)
    with pytest.raises(ValueError, match=rf"bad image .*{name}: truncated or corrupt \({len(whole) // 2} bytes; .+\)"):
        decode_image(path)


def test_a_jpeg_without_its_last_two_bytes_is_refused(save: Callable[..., str]) -> None:
    whole = Path(save(Image.fromarray(noise(64, 64)), "a.jpg")).read_bytes()
    with pytest.raises(ValueError, match=r"a\.jpg: truncated or corrupt .*truncated"):
        decode_image(save(whole[:-2], "a.jpg"))


def test_a_jpeg_with_a_foreign_marker_inside_is_refused(save: Callable[..., str]) -> None:
    content = bytearray(Path(save(Image.fromarray(noise(64, 64)), "a.jpg")).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2] = b"\xff\x67"
    with pytest.raises(ValueError, match=r"bad image .*a\.jpg: truncated or corrupt"):
        decode_image(save(bytes(content), "a.jpg"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"\n<!DOCTYPE html><html>403 Forbidden</html>", r"content is HTML, not an image \(failed download\?\)"),
        (b"\xef\xbb\xbf<svg xmlns='http://www.w3.org/2000/svg'/>", "content is SVG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "content is a Git LFS pointer"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", r"truncated or corrupt \(11 bytes; "),
        (b"0123456789", r"not a readable JPEG, PNG, .* \(10 bytes\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable"),
    ],
)
def test_other_content_is_named(save: Callable[..., str], content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"bad image .*a\.jpg: {reason}"):
        decode_image(save(content, "a.jpg"))


def test_a_file_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bad image .*gone\.jpg: cannot be read \(No such file or directory\)"):
        decode_image(str(tmp_path / "gone.jpg"))
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ValueError, match=r"bad image .*folder\.jpg: cannot be read \(Is a directory\)"):
        decode_image(str(tmp_path / "folder.jpg"))


@pytest.mark.timeout(60)
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    for name in ("pipe.jpg", "link.jpg"):
        with pytest.raises(ValueError, match=rf"bad image .*{name}: cannot be read \(not a regular file\)"):
            decode_image(str(tmp_path / name))


ARRAYS = {"a.npy": np.save, "a.npz": np.savez_compressed}


def write_numbers(path: Path, array: np.ndarray) -> str:
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        ARRAYS[path.name](path, array)
    return str(path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.tif"])
@pytest.mark.parametrize("channels", [2, 4, 5, 7, 16])
@pytest.mark.parametrize("is_channels_last", [True, False])
def test_numbers_keep_every_channel_in_its_place(
    tmp_path: Path, name: str, channels: int, is_channels_last: bool
) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (channels, 6, 9), dtype=np.uint16)
    stored = array.transpose(1, 2, 0) if is_channels_last else array
    image = ImageDecoder(channels=channels).read(write_numbers(tmp_path / name, np.ascontiguousarray(stored)))

    assert image.dtype == torch.float32
    np.testing.assert_allclose(image.numpy(), array / 257.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_one_channel_may_go_without_an_axis(tmp_path: Path, name: str) -> None:
    array = noise(4, 6)[:, :, 0]
    assert torch.equal(ImageDecoder(channels=1).read(write_numbers(tmp_path / name, array))[0], torch.from_numpy(array))


@pytest.mark.parametrize(
    ("dtype", "pixel_scale", "white"),
    [("uint8", None, 255), ("uint16", None, 65535), ("float32", None, 1), ("uint16", 4095, 4095), ("int16", 200, 200)],
)
def test_the_scale_decides_which_number_becomes_white(
    tmp_path: Path, dtype: str, pixel_scale: float | None, white: float
) -> None:
    array = np.zeros((4, 3, 3), dtype=dtype)
    array[1] = white
    image = ImageDecoder(channels=4, pixel_scale=pixel_scale).read(write_numbers(tmp_path / "a.npy", array))
    assert image[1].float().tolist() == pytest.approx(np.full((3, 3), 255.0))
    assert float(image[[0, 2, 3]].float().abs().max()) == 0.0


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (
            np.zeros((3, 5, 6), np.uint8),
            r"has the shape 3x5x6, expected 4 channel\(s\) of height x width; set data.channels",
        ),
        (np.zeros((4, 5, 6), np.int16), "int16 numbers have no known range; set data.pixel_scale"),
        (np.full((4, 5, 6), np.nan, np.float32), "contains infinite or NaN values"),
        (np.full((4, 5, 6), np.inf), "contains infinite or NaN values"),
        (np.array([[None]]), "pickled Python objects, which are never loaded"),
        (np.broadcast_to(np.uint8(0), (4, 20_000, 20_000)), "more than 89 Mpx in 16 channels"),
    ],
)
def test_other_arrays_are_refused(save: Callable[..., str], array: np.ndarray, sentence: str) -> None:
    content = io.BytesIO()
    if array.size > 10**6:  # the header of a large array, without its numbers
        header = {"descr": "|u1", "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(content, header)
    else:
        np.save(content, array, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"bad image .*a\.npy: .*{sentence}"):
        ImageDecoder(channels=4).read(save(content.getvalue(), "a.npy"))


def test_an_archive_of_several_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.zeros((4, 5, 6)), mask=np.zeros((5, 6)))
    with pytest.raises(ValueError, match=r"a\.npz: holds image\.npy, mask\.npy; an \.npz needs one array an image"):
        ImageDecoder(channels=4).read(str(tmp_path / "a.npz"))


def test_a_cut_array_is_refused(tmp_path: Path) -> None:
    path = Path(write_numbers(tmp_path / "a.npy", np.zeros((4, 50, 60))))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"a\.npy: truncated or corrupt \(1000 bytes"):
        ImageDecoder(channels=4).read(str(path))


def test_pictures_are_refused_where_numbers_are_read(save: Callable[..., str]) -> None:
    path = save(Image.fromarray(noise(4, 6)), "a.png")
    with pytest.raises(
        ValueError, match=r"a\.png: data\.channels=4 is for \.npy, \.npz and TIFF files, and this is PNG"
    ):
        ImageDecoder(channels=4).read(path)
    with pytest.raises(ValueError, match=r"a\.png: data\.pixel_scale is for"):
        ImageDecoder(pixel_scale=65535).read(path)


def test_a_float_tiff_is_read_where_its_white_is_known(save: Callable[..., str]) -> None:
    path = save(Image.fromarray(np.array([[0.0, 0.45, 2.0]], dtype=np.float32)), "a.tif")
    image = ImageDecoder(channels=1, pixel_scale=1.0).read(path)
    assert image[0, 0].tolist() == pytest.approx([0.0, 114.75, 510.0])


def test_one_channel_of_a_picture_is_its_luma(save: Callable[..., str]) -> None:
    gray = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    assert ImageDecoder(channels=1).read(save(Image.fromarray(gray), "gray.png")).tolist() == [gray.tolist()]
    red = ImageDecoder(channels=1).read(save(Image.new("RGB", (2, 2), (255, 0, 0)), "red.png"))
    assert set(red.flatten().tolist()) == {76}  # 0.299 x 255


def test_the_background_shows_through(save: Callable[..., str]) -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [255, 255, 255, 51]]], dtype=np.uint8)
    path = save(Image.fromarray(rgba), "a.png")
    pixels = ImageDecoder(background="#102030").read(path).flatten(1).T.tolist()
    assert pixels == [[255, 0, 0], [16, 32, 48], [64, 77, 89]]


def test_exif_may_be_ignored(save: Callable[..., str]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = save(Image.fromarray(smooth(16, 24)), "a.jpg", exif=exif)
    assert ImageDecoder(exif=False).read(path).shape[1:] == (16, 24)
    assert ImageDecoder().read(path).shape[1:] == (24, 16)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"channels": 0}, r"data.channels must lie in 1\.\.16, got 0"),
        ({"channels": 17}, "got 17"),
        ({"pixel_scale": 0.0}, "data.pixel_scale must be a positive number"),
        ({"background": "snowwhite"}, "data.background=snowwhite is no color"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ImageDecoder(**settings)


def test_a_png_of_endless_text_is_refused(save: Callable[..., str]) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 70 * 2**20, zip=True)
    with pytest.raises(ValueError, match=r"bad image .*bomb\.png: truncated or corrupt"):
        decode_image(save(Image.new("RGB", (2, 2)), "bomb.png", pnginfo=text))


def test_a_broken_color_profile_is_ignored(save: Callable[..., str]) -> None:
    assert colors(save(Image.new("RGB", (1, 1), (9, 8, 7)), "a.png", icc_profile=b"no profile")) == [(9, 8, 7)]


def test_a_file_of_another_user_says_whose_it_is(save: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.new("RGB", (1, 1)), "a.png")
    Path(path).chmod(0o200)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(ValueError, match=r"a\.png: cannot be read \(Permission denied: mode 200, owner \d+\)"):
        decode_image(path)
