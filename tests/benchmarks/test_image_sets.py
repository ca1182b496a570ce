"""`benchmarks/image_sets.py`: what its sets hold, from a package made here."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import image_sets


def pixels(images: list[image_sets.Labeled]) -> list[bytes]:
    return [one.image.tobytes() for one in images]


def test_letters_follow_their_seed_and_color_says_nothing_of_them() -> None:
    letters = list(image_sets.letters(0, num_train=300, num_test=5))

    assert pixels(letters) == pixels(list(image_sets.letters(0, num_train=300, num_test=5)))
    assert pixels(letters) != pixels(list(image_sets.letters(1, num_train=300, num_test=5)))
    assert [one.split for one in letters].count("test") == 5
    assert {one.class_name for one in letters} == set(image_sets.LETTERS)
    means = np.array([np.asarray(one.image).mean(axis=(0, 1)) for one in letters])
    classes = np.array([one.class_name for one in letters])
    within = [means[classes == letter].std(axis=0) for letter in image_sets.LETTERS]
    assert np.mean(within) > 0.85 * means.std()


def test_every_fifth_digit_is_to_test() -> None:
    digits = list(image_sets.digits())

    assert len(digits) == 1797
    assert sum(one.split == "test" for one in digits) == 359
    assert len({one.name for one in digits}) == 1797
    assert {one.class_name for one in digits} == {str(digit) for digit in range(10)}
    assert max(np.asarray(one.image).max() for one in digits) == 255


def test_a_picture_and_its_tones_are_in_one_split(package: Path) -> None:
    pictures = list(image_sets.emoji(package, seed=0))

    by_picture: dict[str, set[str]] = {}
    for one in pictures:
        by_picture.setdefault(one.name.split("-")[0], set()).add(one.split)
    assert len(by_picture) == 40
    assert all(len(splits) == 1 for splits in by_picture.values())
    assert {one.split for one in pictures} == {"train", "test"}
    assert len(pictures) == 40 * 3  # of three tones two are taken
    assert {one.class_name for one in pictures} == {"Food_and_Drink"}  # a component is no picture of its own
    assert pictures[0].image.mode == "RGB"
    assert pictures[0].image.getpixel((0, 0)) == (255, 255, 255)  # on white


@pytest.fixture
def package(tmp_path: Path) -> Path:
    picture = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(picture, "png")
    listing = [
        {
            "category": "Food & Drink",
            "image": f"{number}.png",
            "skin_variations": {tone: {"image": f"{number}-{tone}.png"} for tone in "abc"},
        }
        for number in range(40)
    ]
    listing += [{"category": "Component", "image": "c.png"}, {"category": "Food & Drink", "image": "not_drawn.png"}]
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        add(archive, "package/emoji.json", json.dumps(listing).encode())
        for one in listing[:-1]:
            for name in [one["image"], *(tone["image"] for tone in one.get("skin_variations", {}).values())]:
                add(archive, f"package/img/twitter/64/{name}", picture.getvalue())
    return tmp_path / "package.tgz"


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
