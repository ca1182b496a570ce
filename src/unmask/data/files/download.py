"""Files fetched once from the web."""

import hashlib
import http.client
import logging
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from filelock import FileLock

_ATTEMPTS = 3
_FIRST_PAUSE = 1.0  # seconds; doubled after each failure
_TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 2**20  # bytes

_log = logging.getLogger(__name__)


def is_url(name: str) -> bool:
    """Tells whether a name begins like a URL of any kind."""
    return "://" in name


def download(url: str, folder: Path, *, size: int | None = None) -> Path:
    """Fetches a file into a folder, all of it or nothing; a file that is there already is not fetched again.

    Args:
        url: Of http or https; redirects are followed.
        folder: Made where it is missing. Files of one name from two places do not meet in it.
        size: Bytes the file must have; None trusts what the server says.

    Raises:
        ValueError: The URL is of another kind, the server refuses or breaks off three times, or the disk is full.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(
            f"{url} cannot be fetched: only http:// and https:// are supported; download it and name the files"
        )
    path = folder / hashlib.sha256(url.encode()).hexdigest()[:16] / Path(urllib.parse.urlsplit(url).path).name
    if path.is_file() and size in (None, path.stat().st_size):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with FileLock(path.with_name(f".{path.name}.lock")):  # one device fetches, the others wait for it
        if path.is_file() and size in (None, path.stat().st_size):
            return path
        _log.info("downloading %s to %s", url, path)
        try:
            _fetch_persistently(url, partial, size)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def _fetch_persistently(url: str, partial: Path, size: int | None) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            return _fetch(url, partial, size)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:  # the server knows what it says
                raise ValueError(f"{url} cannot be fetched: {error.code} {error.reason}") from error
            problem: Exception = error
        except (OSError, http.client.HTTPException) as error:
            problem = error
        if attempt + 1 < _ATTEMPTS:
            time.sleep(_FIRST_PAUSE * 2**attempt)
    raise ValueError(f"{url} cannot be fetched, tried {_ATTEMPTS} times: {problem}") from problem


def _fetch(url: str, partial: Path, size: int | None) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
        length = answer.headers.get("Content-Length")
        expected = size if size is not None else None if length is None else int(length)
        free = shutil.disk_usage(partial.parent).free
        if expected is not None and expected > free:
            raise ValueError(
                f"{url} has {expected / 2**30:.1f} GiB, {partial.parent} has {free / 2**30:.1f} free; "
                "set data.cache_dir to a larger disk"
            )
        with partial.open("wb") as file:
            shutil.copyfileobj(answer, file, _CHUNK)
    received = partial.stat().st_size
    if expected is not None and received != expected:
        raise http.client.HTTPException(f"{received} of {expected} bytes were received")
