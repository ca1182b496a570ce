"""Three sets of small images of other kinds than photos, as class folders that `data=folder` reads.

    python benchmarks/image_sets.py letters DIR
    python benchmarks/image_sets.py digits DIR
    python benchmarks/image_sets.py emoji DIR --package emoji-datasource-twitter-16.0.0.tgz

- `letters`: 20 letters in 20 of matplotlib's typefaces, turned, shifted, in any two colors on a shaded noisy ground, so
  that no color says anything of the class; 9,000 to train on, 2,000 to test, 32 px.
- `digits`: scikit-learn's 1,797 handwritten digits of 8 px, every fifth to test.
- `emoji`: the pictures of the npm package of that name (https://registry.npmjs.org/emoji-datasource-twitter/-/), on
  white, in its nine categories, at most two tones of skin; about 1,900 to train on and 640 to test, 64 px. A picture
  and its tones are in one split.
"""

import argparse
import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

LETTERS = "ABCDEFGHJKMNPQRSTWXY"
TYPEFACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
_EMOJI_TEST_FRACTION = 0.25
_TONES = 2


class Labeled(NamedTuple):
    split: str
    class_name: str
    name: str
    image: Image.Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("letters", "digits", "emoji"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--package", type=Path, help="the npm package of the emoji")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    if settings.kind == "emoji" and settings.package is None:
        parser.error("emoji needs --package, the file that npm's registry has")
    images = {
        "letters": lambda: letters(settings.seed),
        "digits": digits,
        "emoji": lambda: emoji(settings.package, settings.seed),
    }[settings.kind]()
    for one in images:
        folder = settings.folder / one.split / one.class_name
        folder.mkdir(parents=True, exist_ok=True)
        one.image.save(folder / f"{one.name}.png")


def letters(seed: int, num_train: int = 9000, num_test: int = 2000) -> Iterator[Labeled]:
    typefaces = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    generator = np.random.default_rng(seed)
    for number in range(num_train + num_test):
        letter = LETTERS[generator.integers(len(LETTERS))]
        typeface = typefaces / f"{TYPEFACES[generator.integers(len(TYPEFACES))]}.ttf"
        split = "train" if number < num_train else "test"
        yield Labeled(split, letter, f"{number:05}", _letter(letter, typeface, generator))


def _letter(letter: str, typeface: Path, generator: np.random.Generator) -> Image.Image:
    ground, ink = _two_colors(generator)
    image = Image.new("RGB", (96, 96), ground)
    font = ImageFont.truetype(str(typeface), int(generator.integers(30, 60)))
    x, y = (int(48 + shift) for shift in generator.integers(-12, 13, size=2))
    ImageDraw.Draw(image).text((x, y), letter, font=font, fill=ink, anchor="mm")
    image = image.rotate(generator.uniform(-35, 35), resample=Image.Resampling.BICUBIC, fillcolor=ground)
    pixels = np.asarray(image.resize((48, 48), Image.Resampling.LANCZOS).crop((8, 8, 40, 40)), dtype=np.float32)
    slope_x, slope_y = generator.uniform(-40, 40, size=2)
    ramp = np.linspace(-1, 1, 32)
    pixels = pixels + slope_x * ramp[None, :, None] + slope_y * ramp[:, None, None]
    pixels = pixels + generator.normal(0, 12, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _two_colors(generator: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    while True:
        ground, ink = generator.integers(0, 256, size=(2, 3))
        if np.abs(ground - ink).sum() >= 160:
            return tuple(map(int, ground)), tuple(map(int, ink))


def digits() -> Iterator[Labeled]:
    shipped = load_digits()
    for number, (pixels, digit) in enumerate(zip(shipped.images, shipped.target, strict=True)):
        image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
        yield Labeled("test" if number % 5 == 4 else "train", str(digit), f"{number:04}", image)


def emoji(package: Path, seed: int) -> Iterator[Labeled]:
    generator = random.Random(seed)
    with tarfile.open(package) as archive:
        listing = archive.extractfile("package/emoji.json")
        assert listing is not None
        for one in json.load(listing):
            split = "test" if generator.random() < _EMOJI_TEST_FRACTION else "train"
            tones = [tone["image"] for tone in one.get("skin_variations", {}).values()][:_TONES]
            if one["category"] == "Component":
                continue
            for name in [one["image"], *tones]:
                try:
                    picture = archive.extractfile(f"package/img/twitter/64/{name}")
                except KeyError:  # listed, and not drawn
                    continue
                assert picture is not None
                image = Image.open(io.BytesIO(picture.read())).convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                white.alpha_composite(image)
                category = one["category"].replace(" & ", "_and_").replace(" ", "_")
                yield Labeled(split, category, Path(name).stem, white.convert("RGB"))


if __name__ == "__main__":
    main()
