import os
from collections.abc import Callable
from pathlib import Path

import pytest

from unmask.data.files import listing
from unmask.data.files.listing import FoundImages, find_images

SUFFIXES = frozenset({"png"})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two class folders; listings of any size are remembered, below `tmp_path`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "_CACHED_FROM", 1)
    monkeypatch.setattr(listing, "_SETTLED_NS", -(10**18))  # no folder counts as just changed
    folder = tmp_path / "images"
    for name in ("b/2.png", "a/1.png", "a/deep/3.png", "0.png", "a/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were listed."""
    listed: list[str] = []
    list_visible = listing.list_visible

    def count(folder: str) -> list[os.DirEntry[str]]:
        listed.append(folder)
        return list_visible(folder)

    monkeypatch.setattr(listing, "list_visible", count)
    return listed


def names(found: FoundImages) -> list[str]:
    return [Path(path).relative_to(found.folder).as_posix() for path in found.paths]


def test_a_remembered_listing_is_the_one_that_was_made(root: Path, looks: list[str]) -> None:
    made = find_images(root, SUFFIXES)
    assert len(looks) == 4
    remembered = find_images(root, SUFFIXES)
    assert len(looks) == 4
    assert names(remembered) == names(made) == ["0.png", "a/1.png", "a/deep/3.png", "b/2.png"]
    assert remembered.subfolders == made.subfolders == ((), ("a",), ("a", "deep"), ("b",))
    assert remembered.subfolder_of.tolist() == made.subfolder_of.tolist() == [0, 1, 2, 3]
    assert remembered.ignored == made.ignored == {".txt": 1}
    assert remembered.classes == ("a", "b")


def remove(root: Path) -> None:
    (root / "b" / "2.png").unlink()


def rename(root: Path) -> None:
    (root / "a" / "deep" / "3.png").rename(root / "a" / "deep" / "4.png")


def add_folder(root: Path) -> None:
    (root / "c").mkdir()
    (root / "c" / "9.png").touch()


def exchange(root: Path) -> None:
    """Another folder of the same name and time takes a folder's place."""
    times = (root / "a" / "deep").stat()
    (root / "other").mkdir()
    (root / "other" / "5.png").touch()
    (root / "a" / "deep" / "3.png").unlink()
    (root / "a" / "deep").rmdir()
    (root / "other").rename(root / "a" / "deep")
    os.utime(root / "a" / "deep", ns=(times.st_atime_ns, times.st_mtime_ns))


def hide_the_time(root: Path) -> None:
    """A file is added and the folder's time set back, as a copying program may do."""
    times = (root / "b").stat()
    (root / "b" / "7.png").touch()
    os.utime(root / "b", ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [remove, rename, add_folder, exchange, hide_the_time])
def test_every_change_is_noticed(root: Path, change: Callable[[Path], None]) -> None:
    before = names(find_images(root, SUFFIXES))
    change(root)
    after = names(find_images(root, SUFFIXES))
    assert after != before
    assert after == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))


def test_other_endings_are_another_listing(root: Path) -> None:
    find_images(root, SUFFIXES)
    assert names(find_images(root, frozenset({"txt"}))) == ["a/notes.txt"]


def test_a_folder_changed_a_moment_ago_is_not_remembered(
    root: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_SETTLED_NS", 2 * 10**9)
    find_images(root, SUFFIXES)
    find_images(root, SUFFIXES)
    assert len(looks) == 8


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_a_damaged_listing_is_made_anew(root: Path, tmp_path: Path, content: bytes) -> None:
    made = names(find_images(root, SUFFIXES))
    (file,) = (tmp_path / "cache" / "unmask" / "listings").iterdir()
    file.write_bytes(content)
    assert names(find_images(root, SUFFIXES)) == made


def test_nothing_is_remembered_where_nothing_can_be_written(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "cache").touch()
    assert len(find_images(root, SUFFIXES).paths) == 4
    assert "is not cached" in caplog.text


def test_few_images_are_looked_for_every_time(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_CACHED_FROM", 5)
    find_images(root, SUFFIXES)
    assert not (tmp_path / "cache").exists()
