import stat
import zipfile
from pathlib import Path

import pytest

from unmask.data.files.archives import unpack_zip


def write_zip(folder: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    archive = folder / "set.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members:
            opened.writestr(name, content, zipfile.ZIP_DEFLATED)
    return archive


def special(kind: int, name: str = "special") -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o644) << 16
    return member


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (special(stat.S_IFLNK), "'special' is a link"),
        (special(stat.S_IFCHR), "'special' is a device, pipe or socket"),
        (special(stat.S_IFBLK), "'special' is a device, pipe or socket"),
        (special(stat.S_IFIFO), "'special' is a device, pipe or socket"),
        ("../out.png", "would be written outside"),
        ("/out.png", "would be written outside"),
        ("..\\\\out.png", "would be written outside"),
        ("C:/out.png", "would be written outside"),
    ],
)
def test_a_member_that_is_no_file_of_the_folder_is_refused(
    tmp_path: Path, member: zipfile.ZipInfo | str, sentence: str
) -> None:
    archive = write_zip(tmp_path, ("good.png", b"1"), (member, b"2"))
    with pytest.raises(ValueError, match=rf"set\.zip: member .*{sentence}.*nothing was extracted"):
        unpack_zip(archive, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_a_name_with_a_nul_byte_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path, ("good.png_.sh", b"1"))
    archive.write_bytes(archive.read_bytes().replace(b"good.png_.sh", b"good.png\0.sh"))
    with pytest.raises(ValueError, match=r"has a NUL byte in its name; nothing was extracted"):
        unpack_zip(archive, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_a_bomb_is_refused_alone_and_among_images(tmp_path: Path) -> None:
    noise = bytes(range(256)) * 2000
    for number, members in enumerate(([], [(f"{place}.png", noise) for place in range(50)])):
        folder = tmp_path / str(number)
        folder.mkdir()
        archive = write_zip(folder, ("bomb.png", bytes(200 * 2**20)), *members)
        with pytest.raises(
            ValueError, match=r"set\.zip.* expands \d+ times, which images never do; nothing was extracted"
        ):
            unpack_zip(archive, folder / "set")
        assert [path.name for path in folder.iterdir()] == ["set.zip"]


def test_odd_names_and_small_flat_files_are_extracted(tmp_path: Path) -> None:
    names = ["with space.png", "comma, here.png", "\u00dcn\u00efc\u00f6d\u00e9.png", "deep/er.png"]
    archive = write_zip(tmp_path, *((name, bytes(2**20)) for name in names))
    unpack_zip(archive, tmp_path / "set")
    assert all((tmp_path / "set" / name).stat().st_size == 2**20 for name in names)
