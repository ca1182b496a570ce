"""Folders of images and masks: what belongs together, and what is refused."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.sources.segmentation import SegmentationFolder


def save(path: Path, size=(8, 8), color=0, mode="L", **arguments) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **arguments)


def make(root: Path, **changes) -> SegmentationFolder:
    settings = {
        "image_size": 4,
        "pixel_mean": (0.0, 0.0, 0.0),
        "pixel_std": (1.0, 1.0, 1.0),
        "augmentation": Augmentation(),
        "global_batch_size": 2,
    }
    return SegmentationFolder(root=str(root), **settings | changes)


def first_mask(data: SegmentationFolder, split="train"):
    return data.read_masks(split, torch.tensor([0]))[0]


@pytest.mark.parametrize("layout", ["{kind}/{split}", "{split}/{kind}"])
def test_both_layouts_pair_images_with_masks_of_their_own_split(tmp_path, layout) -> None:
    for number, split in enumerate(("training", "validation", "test")):
        save(tmp_path / layout.format(kind="images", split=split) / "a" / "x.jpg", mode="RGB")
        save(tmp_path / layout.format(kind="masks", split=split) / "a" / "x.png", color=number + 1)
    data = make(tmp_path)
    for number, split in enumerate(("train", "val", "test")):
        assert len(data.dataset(split)) == 1
        assert first_mask(data, split).unique().tolist() == [number + 1]


def test_without_split_folders_the_others_are_held_out_with_their_masks(tmp_path) -> None:
    for number in range(10):
        save(tmp_path / "photos" / f"{number}.jpg", mode="RGB", color=(number, 0, 0))
        save(tmp_path / "labels" / f"{number}.png", color=number)
    data = make(tmp_path, images="photos", masks="labels", val_fraction=0.2, test_fraction=0.2)
    seen = []
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        samples = data.dataset(split)
        masks = data.read_masks(split, torch.arange(count))
        assert len(samples) == count
        assert masks[:, 0, 0].tolist() == [int(Path(path).stem) for path in samples.paths]
        seen += masks[:, 0, 0].tolist()
    assert sorted(seen) == list(range(10))


def test_a_mask_is_cropped_as_its_image_and_keeps_its_numbers(tmp_path) -> None:
    classes = torch.tensor([0, 200, 7, 90], dtype=torch.uint8)[torch.randint(0, 4, (6, 12))].repeat_interleave(2, 0)
    classes = classes.repeat_interleave(2, 1)  # 12 x 24 px
    save(tmp_path / "images" / "x.png", mode="RGB")
    (tmp_path / "masks").mkdir()
    Image.fromarray(classes.numpy()).save(tmp_path / "masks" / "x.png")
    Image.fromarray(classes.numpy()).convert("RGB").save(tmp_path / "images" / "x.png")
    data = make(tmp_path, image_size=6, val_fraction=0.0, test_fraction=0.0)
    assert torch.equal(first_mask(data), classes[1::2, 1::2][:, 3:9])
    image = next(iter(data.evaluation_part("train", part=0, num_parts=1))).image[0, 0]
    assert (image.int() - first_mask(data).int()).abs().float().mean() < 60  # smoothed, but the same place


def test_palette_and_one_bit_masks_give_their_numbers(tmp_path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "images" / f"{name}.jpg", mode="RGB")
    palette = Image.new("L", (8, 8), 3)
    palette.putpalette([200, 100, 0] * 8)  # colors tell nothing of classes
    (tmp_path / "masks").mkdir()
    palette.save(tmp_path / "masks" / "a.png")
    save(tmp_path / "masks" / "b.png", mode="1", color=1)
    data = make(tmp_path, val_fraction=0.0, test_fraction=0.0)
    assert data.read_masks("train", torch.tensor([0, 1])).flatten(1).unique(dim=1).tolist() == [[3], [1]]


def test_images_without_mask_are_left_out_and_named(tmp_path, caplog) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / "images" / f"{name}.jpg", mode="RGB")
    save(tmp_path / "masks" / "b.png")
    data = make(tmp_path, val_fraction=0.0, test_fraction=0.0)
    assert [Path(path).name for path in data.dataset("train").paths] == ["b.jpg"]
    assert "2 images without a mask are left out, the first" in caplog.text


def test_a_sideways_photo_is_compared_as_it_is_shown(tmp_path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    save(tmp_path / "images" / "x.jpg", size=(8, 4), mode="RGB", exif=turned)
    save(tmp_path / "masks" / "x.png", size=(4, 8), color=2)
    data = make(tmp_path, val_fraction=0.0, test_fraction=0.0)
    assert first_mask(data).unique().tolist() == [2]
    with pytest.raises(ValueError, match="is 4x8 px and its image 8x4 px; a mask has the size of its image"):
        first_mask(make(tmp_path, val_fraction=0.0, test_fraction=0.0, exif=False))


def _color_mask(path):
    save(path, mode="RGB")


def _jpeg_mask(path):
    save(path, format="JPEG")


def _cut_mask(path):
    Image.fromarray(torch.randint(0, 9, (64, 64), dtype=torch.uint8).numpy()).save(path)
    path.write_bytes(path.read_bytes()[:400])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_color_mask, "mode RGB, not gray or palette"),
        (_jpeg_mask, "not a PNG file"),
        (_cut_mask, "cannot be read"),
    ],
)
def test_what_is_no_mask_is_refused_by_name(tmp_path, write, message) -> None:
    save(tmp_path / "images" / "x.jpg", mode="RGB")
    save(tmp_path / "masks" / "x.png")
    data = make(tmp_path, val_fraction=0.0, test_fraction=0.0)
    write(tmp_path / "masks" / "x.png")
    with pytest.raises(ValueError, match=rf"bad mask .*x\.png: .*{message}"):
        first_mask(data)


@pytest.mark.timeout(60)
def test_a_mask_that_became_a_named_pipe_is_not_waited_for(tmp_path) -> None:
    save(tmp_path / "images" / "x.jpg", mode="RGB")
    save(tmp_path / "masks" / "x.png")
    data = make(tmp_path, val_fraction=0.0, test_fraction=0.0)
    data.dataset("train")
    (tmp_path / "masks" / "x.png").unlink()
    os.mkfifo(tmp_path / "masks" / "x.png")
    with pytest.raises(ValueError, match=r"bad mask .*x\.png: cannot be read .*not a regular file"):
        first_mask(data)


def test_missing_folders_and_masks_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"data.root=.*nowhere is not a folder"):
        make(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"images is not a folder; data=segmentation reads the folders images and masks"
    ):
        make(tmp_path).dataset("train")
    save(tmp_path / "images" / "x.jpg", mode="RGB")
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match=r"none of the 1 images .* has a mask .*; the mask of photo.jpg is called"):
        make(tmp_path).dataset("train")
    (tmp_path / "images" / "val").mkdir()
    with pytest.raises(ValueError, match="but no training images; put them in a folder train"):
        make(tmp_path).dataset("train")
