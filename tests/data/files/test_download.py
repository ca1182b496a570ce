import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from unmask.data.files import download as module
from unmask.data.files.download import download


class Server(http.server.BaseHTTPRequestHandler):
    """Breaks off, refuses or fails as often as a path says."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        times = self.asked.count(self.path)
        self.asked.append(self.path)
        if self.path == "/missing.tar":
            return self.send_error(404)
        if self.path == "/busy.tar" and times < 2:
            return self.send_error(503)
        content = b"x" * 1000
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        breaks_off = self.path == "/broken.tar" or (self.path == "/once.tar" and times < 1)
        self.wfile.write(content[:300] if breaks_off else content)
        return None

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    Server.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_file_is_fetched_once_and_again_where_its_size_is_not_the_one_stated(tmp_path: Path, url: str) -> None:
    path = download(f"{url}/a.tar", tmp_path)
    assert path.read_bytes() == b"x" * 1000
    assert download(f"{url}/a.tar", tmp_path, size=1000) == path
    assert Server.asked == ["/a.tar"]
    path.write_bytes(b"cut")
    assert download(f"{url}/a.tar", tmp_path, size=1000).stat().st_size == 1000
    assert len(Server.asked) == 2


def test_files_of_one_name_do_not_meet(tmp_path: Path, url: str) -> None:
    assert download(f"{url}/1/a.tar", tmp_path) != download(f"{url}/2/a.tar", tmp_path)


@pytest.mark.parametrize(("name", "times"), [("once.tar", 2), ("busy.tar", 3)])
def test_a_transfer_that_failed_is_begun_again(tmp_path: Path, url: str, name: str, times: int) -> None:
    assert download(f"{url}/{name}", tmp_path).stat().st_size == 1000
    assert len(Server.asked) == times


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("broken.tar", r"broken.tar cannot be fetched, tried 3 times: 300 of 1000 bytes were received"),
        ("missing.tar", r"missing.tar cannot be fetched: 404 Not Found"),
    ],
)
def test_a_transfer_that_goes_on_failing_leaves_nothing(tmp_path: Path, url: str, name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        download(f"{url}/{name}", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_other_places_than_the_web_are_refused(tmp_path: Path) -> None:
    for place in ("s3://bucket/a.tar", "file:///etc/passwd"):
        with pytest.raises(ValueError, match=f"{place} cannot be fetched: only http:// and https:// are supported"):
            download(place, tmp_path)


def test_a_file_larger_than_the_disk_is_not_begun(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free = module.shutil.disk_usage(tmp_path)._replace(free=999)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: free)
    with pytest.raises(ValueError, match=r"a.tar has .* GiB, .* has 0.0 free; set data.cache_dir to a larger disk"):
        download(f"{url}/a.tar", tmp_path)
