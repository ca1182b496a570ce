"""Forty bad inputs, made here and given to the commands: each ends with the exit code and the sentence it deserves.

What a sentence says in detail, and every variant, is held where the code lives (`tests/data`, `tests/runtime`).
"""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import io
import logging
import os
import pickle
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image, PngImagePlugin

TINY = ["model=vit_mini", "model.embed_dim=24", "model.depth=1", "trainer.accelerator=cpu", "logger=none"]
DECODER = ["method.decoder.embed_dim=24", "method.decoder.depth=1", "method.decoder.num_heads=3"]
SMALL = ["data.num_train=16", "data.num_val=4", "data.num_test=4", "trainer.max_epochs=1", "callbacks=none"]
RUN = ["method=mae", *TINY, *DECODER, *SMALL, "global_batch_size=8"]
ALL_TRAIN = ["data.val_fraction=0", "data.test_fraction=0", "data.num_workers=0"]
PACK = ["out=out", "size=null", "timing_seconds=0", "splits=[train]"]
FOLDER = [*PACK, "data=folder", "data.root=photos", *ALL_TRAIN]
LIST = [*PACK, "data=filelist", "data.train=photos/list.txt", *ALL_TRAIN]
ZIP = [*PACK, "data=kaggle", "data.root=zipped.zip", *ALL_TRAIN]
SHARDS = [*PACK, "data=shards", "data.root=shards", *ALL_TRAIN]

Build = Callable[[], Any]


class Ending(NamedTuple):
    """How a command ended."""

    code: int
    said: str
    logged: str


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNMASK_TRACEBACK", raising=False)
    Path("photos").mkdir()
    save("good.png", photo(0))


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[..., Ending]]:
    """Runs a command in this process."""
    from unmask.runtime import cli

    entries = {"run": cli.run, "eval": cli.evaluate, "pack": cli.pack, "inspect": cli.inspect, "export": cli.export}

    def command(name: str, *arguments: str) -> Ending:
        output = ["hydra.run.dir=out"] if name in ("run", "eval") else []
        monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments, *output])
        GlobalHydra.instance().clear()
        caplog.set_level(logging.INFO)
        code = 0
        try:
            entries[name]()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return Ending(code, capsys.readouterr().err, caplog.text)

    yield command
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()


def refuse(ending: Ending, sentence: str, *, code: int = 2) -> None:
    """Asserts one sentence, no traceback, and nothing half made."""
    assert ending.code == code, ending
    assert re.search(sentence, ending.said), ending.said
    assert "Traceback" not in ending.said + ending.logged
    lines = [line for line in ending.said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    if code == 2:
        assert len(ending.said.splitlines()) == 2
        assert not Path("out").exists()
    assert not list(Path().glob(".*.partial"))


def photo(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    pixels = torch.randint(256, (*size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def save(name: str, image: Image.Image, **options: Any) -> Path:
    path = Path("photos") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def write(name: str, content: bytes | str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg() -> bytes:
    return encoded(photo(1), "JPEG")


def flipped_jpeg() -> bytes:
    content = bytearray(jpeg())
    for place in range(len(content) // 2, len(content) // 2 + 40):
        content[place] = 0xFF if place % 2 else 0xC4  # markers where there is data
    return bytes(content)


def huge_png(side: int) -> bytes:
    """The header of a picture of side x side; no pixel need be read to refuse it."""
    small = bytearray(encoded(photo(1), "PNG"))
    small[16:24] = struct.pack(">II", side, side)
    small[29:33] = struct.pack(">I", zlib.crc32(bytes(small[12:29])))
    return bytes(small)


def png_with_endless_text() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "a" * 70_000_000, zip=True)
    return encoded(photo(1), "PNG", pnginfo=text)


def loop() -> None:
    Path("photos/a.png").symlink_to("b.png")
    Path("photos/b.png").symlink_to("a.png")


def list_of(*lines: bytes | str) -> None:
    write("photos/list.txt", b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))


def archive(*members: tuple[str, bytes], kind: int = 0) -> None:
    with zipfile.ZipFile("zipped.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (kind | 0o644) << 16
            opened.writestr(info, content)


def shard_with_link() -> None:
    Path("shards").mkdir()
    with tarfile.open("shards/train-000000.tar", "w", format=tarfile.USTAR_FORMAT) as opened:
        link = tarfile.TarInfo("000000.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)


REFUSED: list[Any] = [
    pytest.param(lambda: write("photos/a.jpg", jpeg()[: len(jpeg()) // 2]), FOLDER, r"a\.jpg: truncated", id="1"),
    pytest.param(lambda: write("photos/a.jpg", jpeg()[:-2]), FOLDER, r"photos/a\.jpg: truncated", id="2"),
    pytest.param(lambda: write("photos/a.jpg", jpeg()[:20]), FOLDER, r"photos/a\.jpg: .*\(20 bytes", id="3"),
    pytest.param(lambda: write("photos/a.jpg", b""), FOLDER, r"photos/a\.jpg: empty file", id="4"),
    pytest.param(lambda: write("photos/a.jpg", flipped_jpeg()), FOLDER, r"photos/a\.jpg: truncated or corrupt", id="5"),
    pytest.param(lambda: write("photos/a.jpg", "<html>404"), FOLDER, r"a\.jpg: content is HTML", id="6-html"),
    pytest.param(lambda: write("photos/a.jpg", "<svg/>"), FOLDER, r"a\.jpg: content is SVG", id="6-svg"),
    pytest.param(
        lambda: save("a.tif", Image.new("F", (40, 40), 0.45)), FOLDER, r"a\.tif: 32-bit float .* 8 or 16 bit", id="12"
    ),
    pytest.param(
        lambda: write("photos/a.png", huge_png(10_000)), FOLDER, r"a\.png: 10000x10000 = 100 Mpx, .*bomb", id="15"
    ),
    pytest.param(lambda: write("photos/a.png", huge_png(20_000)), FOLDER, r"a\.png: more than 89 Mpx, .*bomb", id="16"),
    pytest.param(lambda: write("photos/a.png", png_with_endless_text()), FOLDER, r"photos/a\.png: ", id="17"),
    pytest.param(lambda: Path("photos/a.png").symlink_to("gone.png"), FOLDER, r"broken link .*a\.png -> gone", id="21"),
    pytest.param(loop, FOLDER, r"broken link .*photos/a\.png -> b\.png", id="21-loop"),
    pytest.param(
        lambda: Path("photos/x.jpg").mkdir(), FOLDER, r"x\.jpg is a folder with the name of an image", id="22"
    ),
    pytest.param(lambda: Path("photos/up").symlink_to("../photos"), FOLDER, r"symlink cycle: .*photos/up", id="23"),
    pytest.param(
        lambda: (save("x/a.png", photo(1)), save("y/a.png", photo(2)), Path("photos/z").mkdir(), clear()),
        FOLDER,
        r"no image in 'z' of .*photos",
        id="26",
    ),
    pytest.param(
        lambda: None, [*FOLDER, "data.root=/nope"], r"data\.root=/nope does not exist \(seen from /", id="27-missing"
    ),
    pytest.param(
        lambda: None, [*FOLDER, "data.labels=folders"], r"photos/good\.png lies in no class folder", id="27-flat"
    ),
    pytest.param(lambda: list_of("# nothing", ""), LIST, r"photos/list\.txt lists no image", id="30"),
    pytest.param(
        lambda: list_of("good.png,0", "a,b.jpg"), LIST, r"photos/list\.txt:2: no file photos/a,b\.jpg", id="31"
    ),
    pytest.param(lambda: list_of("good.png", b"caf\xe9.png"), LIST, r"photos/list\.txt:2: not UTF-8", id="32"),
    pytest.param(
        lambda: list_of("../../etc/passwd,0"),
        [*LIST, "data.root=photos"],
        r"photos/list\.txt:1: \.\./\.\./etc/passwd leads out of data\.root=photos",
        id="33-up",
    ),
    pytest.param(
        lambda: list_of("good.png,0", "../../etc/passwd,0"),
        LIST,
        r"list\.txt:2: .* out of the list's folder",
        id="33-b",
    ),
    pytest.param(
        lambda: list_of("/etc/hostname,0"),
        [*LIST, "data.root=photos"],
        r"list\.txt:1: /etc/hostname leads out of data\.root=photos",
        id="33-absolute",
    ),
    pytest.param(
        lambda: list_of(*["good.png,0", "good.png,1", "good.png,2"], "good.png,cat"),
        LIST,
        r"list\.txt:4 has the label 'cat' among class numbers",
        id="33-label-text",
    ),
    pytest.param(
        lambda: archive(("../../evil.txt", b"x")),
        ZIP,
        r"zipped\.zip: member '\.\./\.\./evil\.txt' .* outside",
        id="40-up",
    ),
    pytest.param(
        lambda: archive(("a.png", b"/etc/passwd"), kind=stat.S_IFLNK),
        ZIP,
        r"zipped\.zip: member 'a\.png' is a link",
        id="40-link",
    ),
    pytest.param(lambda: archive(("a.png", bytes(2**25))), ZIP, r"zipped\.zip expands \d+ times", id="40-bomb"),
    pytest.param(lambda: write("zipped.zip", "<html>403"), ZIP, r"zipped\.zip is not a zip archive", id="40-page"),
    pytest.param(shard_with_link, SHARDS, r"train-000000\.tar: 000000\.png is a link", id="40-tar"),
]


def clear() -> None:
    Path("photos/good.png").unlink()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # a warning to users, not an error
@pytest.mark.parametrize(("build", "arguments", "sentence"), REFUSED)
def test_images_lists_and_archives_are_refused(
    build: Build, arguments: list[str], sentence: str, command: Callable[..., Ending]
) -> None:
    build()
    before = sorted(path.name for path in Path().iterdir())

    refuse(command("pack", *arguments), sentence)
    assert sorted(path.name for path in Path().iterdir()) == before
    assert not Path("../../evil.txt").exists()


def test_no_room_to_extract(command: Callable[..., Ending], monkeypatch: pytest.MonkeyPatch) -> None:  # row 40
    archive(("a.png", encoded(photo(1), "PNG")))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))

    refuse(command("pack", *ZIP), r"zipped\.zip needs 0\.0 GiB at .*nothing was extracted")


def test_a_file_no_one_may_read(command: Callable[..., Ending]) -> None:  # row 20
    command("pack", *FOLDER)  # imports what later may not be readable
    shutil.rmtree("out")
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        closed = Path(folder) / "a.png"
        photo(1).save(closed)
        closed.chmod(0)
        Path.cwd().chmod(0o777)
        if root:
            os.seteuid(65534)
        try:
            ending = command("pack", *FOLDER, f"data.root={folder}")
        finally:
            if root:
                os.seteuid(0)

    refuse(ending, r"a\.png: cannot be read \(Permission denied: mode 000, owner \d+\)")


def gray_16_bit() -> Image.Image:
    return Image.fromarray(np.full((40, 40), 20_000, dtype=np.uint16))


def transparent() -> Image.Image:
    return Image.new("RGBA", (40, 40), (255, 0, 0, 0))


def many_frames() -> dict[str, Any]:
    return {"save_all": True, "append_images": [Image.new("RGB", (40, 40), "blue")]}


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


ACCEPTED: list[Any] = [
    pytest.param(lambda: write("photos/a.jpg", encoded(Image.new("RGB", (4, 4), "red"), "PNG")), (255, 0, 0), id="7"),
    pytest.param(lambda: save("a.jpg", Image.new("CMYK", (40, 40), (0, 255, 255, 0))), (254, 0, 0), id="8"),
    pytest.param(lambda: save("a.png", Image.new("L", (40, 40), 77)), (77, 77, 77), id="9-L"),
    pytest.param(lambda: save("a.png", Image.new("LA", (40, 40), (77, 255))), (77, 77, 77), id="9-LA"),
    pytest.param(lambda: save("a.png", Image.new("1", (40, 40), 1)), (255, 255, 255), id="9-1"),
    pytest.param(lambda: save("a.png", Image.new("RGB", (40, 40), "lime").quantize(4)), (0, 255, 0), id="9-P"),
    pytest.param(lambda: save("a.png", transparent()), (255, 255, 255), id="10"),
    pytest.param(lambda: save("a.png", gray_16_bit()), (78, 78, 78), id="11"),
    pytest.param(lambda: save("a.gif", Image.new("RGB", (40, 40), "red"), **many_frames()), (255, 0, 0), id="13-gif"),
    pytest.param(lambda: save("a.tif", Image.new("RGB", (40, 40), "red"), **many_frames()), (255, 0, 0), id="13-tiff"),
    pytest.param(lambda: save("a.png", Image.new("RGB", (9, 9), "red"), icc_profile=b"no"), (255, 0, 0), id="18"),
    pytest.param(lambda: save("a.png", Image.new("RGB", (1, 1), "red")), (255, 0, 0), id="19"),
    pytest.param(
        lambda: (
            save(".DS_Store.png", photo(1)),
            save("__MACOSX/b.png", photo(2)),
            save("a.png", Image.new("L", (9, 9))),
        ),
        (0, 0, 0),
        id="24",
    ),
    pytest.param(
        lambda: save("a.jfif", Image.new("RGB", (40, 40), "white"), format="JPEG"), (255, 255, 255), id="25-jfif"
    ),
    pytest.param(lambda: save("a.avif", Image.new("RGB", (40, 40), "white")), (255, 255, 255), id="25-avif"),
]


def packed() -> list[np.ndarray]:
    """The images of the shards that were written."""
    with tarfile.open("out/train-000000.tar") as opened:
        members = [opened.extractfile(member) for member in opened if member.name.endswith(".npy")]
        return [np.load(io.BytesIO(member.read())) for member in members if member is not None]


@pytest.mark.parametrize(("build", "color"), ACCEPTED)
def test_images_are_taken_as_they_look(
    build: Build, color: tuple[int, int, int], command: Callable[..., Ending]
) -> None:
    build()
    assert command("pack", *FOLDER).code == 0

    image, _good = packed()  # exactly two: frames, hidden files and copies of other systems are none
    np.testing.assert_allclose(image.reshape(-1, 3).mean(0), color, atol=1.0)


def test_a_photo_held_sideways_is_turned_unless_told_otherwise(command: Callable[..., Ending]) -> None:  # row 14
    save("a.jpg", photo(1, (40, 60)), exif=turned())

    assert command("pack", *FOLDER).code == 0
    assert packed()[0].shape == (60, 40, 3)
    shutil.rmtree("out")
    assert command("pack", *FOLDER, "data.exif=false").code == 0
    assert packed()[0].shape == (40, 60, 3)


def test_other_files_are_counted(command: Callable[..., Ending]) -> None:  # row 25
    write("photos/notes.txt", "x")
    write("photos/more.txt", "x")
    write("photos/list.csv", "x")

    ending = command("pack", *FOLDER)
    assert ending.code == 0
    assert re.search(r"ignored 3 files below .*photos .*: 2 \.txt, 1 \.csv", ending.logged)


def test_small_images_are_pointed_out(command: Callable[..., Ending]) -> None:  # row 19
    save("a.png", Image.new("RGB", (1, 1), "red"))
    save("b.png", Image.new("RGB", (400, 2), "red"))
    small = ["image_size=32", "seconds_of_loading=0.05", "timed_steps=0"]

    ending = command("inspect", *FOLDER[4:], "data.val_fraction=0", "data.test_fraction=0", *small)
    assert ending.code == 0, ending
    assert re.search(r"2 with a side shorter than 32 px", ending.logged), ending.logged


def test_a_list_of_any_script_is_read(command: Callable[..., Ending], monkeypatch: pytest.MonkeyPatch) -> None:  # 32
    monkeypatch.setenv("LC_ALL", "C")
    save("écran, 猫.png", photo(1))
    list_of("﻿good.png,0\r", "# comment", "", "écran, 猫.png,1", "good.png,0")

    ending = command("pack", *LIST)
    assert ending.code == 0, ending
    assert "1 image(s) more than once" in ending.logged  # row 33
    with tarfile.open("out/train-000000.tar") as opened:
        assert sum(member.name.endswith(".npy") for member in opened) == 3


FOLDER_RUN = [
    "method=mae",
    *TINY,
    *DECODER,
    "trainer.max_epochs=1",
    "callbacks=none",
    "data=folder",
    "data.root=photos",
]
FOLDER_RUN += ["data.val_fraction=1", "data.test_fraction=1", "data.num_workers=0", "image_size=32"]
SWIN = ["method=simmim", "model=swin_tiny", "data=synthetic"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(
            [*FOLDER_RUN, "global_batch_size=4"],
            r"1 images, fewer than one batch of 4; set global_batch_size=1",
            id="28",
        ),
        pytest.param([*RUN, "method.mask_generator.ratio=0"], r"mask ratio must .*(0|1)", id="34-0"),
        pytest.param([*RUN, "method.mask_generator.ratio=1"], r"mask ratio must", id="34-1"),
        pytest.param(
            [*RUN, "method.mask_generator.ratio=0.999"], r"0\.999 of \d+ patches would mask them all", id="34-all"
        ),
        pytest.param(["method=simmim", *TINY, *SMALL, "method.mask_generator.patch_size=12"], r"12", id="35"),
        pytest.param([*SWIN, "image_size=100"], r"image_size.*100|100.*image_size", id="36"),
        pytest.param(["method=mae", "model.name=vit_tiny_patch16_22x"], r"vit_tiny_patch16_22[x4].*nearest", id="37"),
        pytest.param(["method=mae", "data=synthetic", "model.in_chans=1"], r"in_chans", id="37-channels"),
        pytest.param([*RUN, "xx=1"], r"unknown key 'xx'", id="39-key"),
        pytest.param([*RUN, "+base_lrr=1"], r"base_lr", id="39-added-key"),
    ],
)
def test_settings_are_refused_before_the_first_step(
    arguments: list[str], sentence: str, command: Callable[..., Ending]
) -> None:
    save("b.png", photo(1))
    save("c.png", photo(2))

    refuse(command("run", *arguments), sentence)


def test_one_image_is_enough_to_pretrain_and_too_few_for_a_batch_norm(command: Callable[..., Ending]) -> None:  # row 29
    save("b.png", photo(1))
    save("c.png", photo(2))
    alone = ["global_batch_size=1"]
    assert command("run", *FOLDER_RUN, *alone).code == 0
    shutil.rmtree("out")

    shutil.rmtree("photos")
    for name in ("x/a.png", "x/b.png", "x/c.png", "y/a.png", "y/b.png", "y/c.png"):
        save(name, photo(1))
    head = [
        "method=supervised",
        *[entry for entry in FOLDER_RUN[1:] if entry not in DECODER],
        "method.head._target_=unmask.heads.classifier.BatchNormMLPClassifier",
    ]
    refuse(command("run", *head, *alone), r"batch norm")


def test_an_exploding_rate_ends_with_a_code_of_its_own(command: Callable[..., Ending]) -> None:  # row 38
    guard = ["base_lr=1e30", "callbacks=default", "trainer.max_epochs=20"]
    ending = command("run", *RUN, *guard, "callbacks.reconstruction=null")

    refuse(ending, r"not finite .*at step \d+ \(epoch \d+\); the step was not taken", code=3)
    assert list(Path("out/nonfinite").iterdir())


def test_an_image_that_is_not_a_number(command: Callable[..., Ending]) -> None:  # row 38
    clear()
    values = np.zeros((40, 40, 3), dtype=np.float32)
    np.save("photos/a.npy", values)
    values[3, 4, 1] = np.nan
    np.save("photos/b.npy", values)

    refuse(
        command("pack", *FOLDER, "data.pixel_scale=1", "format=keep"), r"photos/b\.npy: contains infinite or NaN values"
    )


class _Intruder:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("intruded",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(lambda whole: whole[: len(whole) // 2], r"a\.ckpt is not a complete checkpoint", id="torn"),
        pytest.param(lambda whole: b"", r"a\.ckpt is not a complete checkpoint", id="empty"),
        pytest.param(lambda whole: pickle.dumps(_Intruder()), r"a\.ckpt is not a complete checkpoint", id="pickle"),
        pytest.param(lambda whole: saved({"a": _Intruder()}), r"a\.ckpt .*posix\.mkdir would be run", id="evil"),
        pytest.param(lambda whole: saved({"a": torch.zeros(3)}), r"a\.ckpt has an unknown format", id="foreign"),
    ],
)
def test_other_files_than_checkpoints_are_refused(  # row 39
    content: Callable[[bytes], bytes], sentence: str, command: Callable[..., Ending]
) -> None:
    write("a.ckpt", content(saved({"state_dict": {"weight": torch.zeros(1000)}})))

    for name, arguments in (("eval", ["eval=knn"]), ("export", ["directory=out"])):
        refuse(command(name, *arguments, "ckpt_path=a.ckpt"), sentence)
    assert not Path("intruded").exists()


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
