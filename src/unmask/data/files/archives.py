"""Zip archives, which may come from untrusted sources."""

import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

_MAX_EXPANSION = 200  # times; images hardly shrink in a zip
_SMALL = 2**24  # bytes; below, any expansion is harmless
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError)
_ORDINARY = (0, stat.S_IFREG, stat.S_IFDIR)  # kinds of members; 0 where the archive names none


def unpack_zip(archive: Path, target: Path) -> Path:
    """Extracts an archive into a folder that does not exist yet, all of it or nothing.

    A folder that is there already is taken as the archive's and left as it is. Where the archive holds nothing but one
    folder of the target's name, that folder becomes the target.

    Raises:
        ValueError: The file is no zip archive or damaged; a member would be written outside the folder, is a link or a
            device, or has a name with a NUL byte; the content expands suspiciously or does not fit on the disk. Nothing
            is left behind then.
    """
    if target.exists():
        return target
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # an interrupted extraction of ours
    with _refusing_damage(archive, partial):
        if not zipfile.is_zipfile(archive):
            raise ValueError(f"{archive} is not a zip archive ({archive.stat().st_size} bytes); download it again")
    with _refusing_damage(archive, partial), zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            _require_ordinary(member, archive)
            _require_inside(member, archive, target)
        _require_room(members, archive, target)
        opened.extractall(partial)
    inner = partial / target.name
    if inner.is_dir() and len(list(partial.iterdir())) == 1:
        inner.rename(target)
        partial.rmdir()
    else:
        partial.rename(target)
    return target


@contextmanager
def _refusing_damage(archive: Path, partial: Path) -> Iterator[None]:
    """Removes what was extracted and raises a ValueError where an archive cannot be read to its end."""
    try:
        yield
    except (*_DAMAGED, ValueError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
            raise
        # A RuntimeError asks for a password.
        raise ValueError(f"{archive} cannot be extracted: {error}; nothing was kept") from error


def _require_inside(member: zipfile.ZipInfo, archive: Path, target: Path) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise ValueError(
            f"{archive}: member {member.filename!r} would be written outside {target}; nothing was extracted"
        )


def _require_ordinary(member: zipfile.ZipInfo, archive: Path) -> None:
    if "\0" in member.orig_filename:  # zipfile itself cuts the name there
        raise ValueError(
            f"{archive}: member {member.orig_filename!r} has a NUL byte in its name; nothing was extracted"
        )
    if stat.S_IFMT(member.external_attr >> 16) not in _ORDINARY:
        kind = "link" if stat.S_ISLNK(member.external_attr >> 16) else "device, pipe or socket"
        raise ValueError(f"{archive}: member {member.filename!r} is a {kind}; nothing was extracted")


def _require_room(members: list[zipfile.ZipInfo], archive: Path, target: Path) -> None:
    needed, stored = sum(m.file_size for m in members), sum(m.compress_size for m in members)
    _require_little_expansion(needed, stored, str(archive))
    for member in members:  # one alone hides among many
        _require_little_expansion(member.file_size, member.compress_size, f"{archive}: member {member.filename!r}")
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise ValueError(
            f"{archive} needs {needed / 2**30:.1f} GiB at {target.parent}, which has {free / 2**30:.1f} free; "
            "nothing was extracted"
        )


def _require_little_expansion(needed: int, stored: int, what: str) -> None:
    if needed > _SMALL and needed > _MAX_EXPANSION * stored:
        raise ValueError(
            f"{what} expands {needed / max(1, stored):.0f} times, which images never do; nothing was extracted"
        )
