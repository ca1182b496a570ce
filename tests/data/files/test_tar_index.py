import gzip
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from unmask.data.files.tar_index import LabelSource, ShardIndex, read_index

TWO = {"a.png": b"first image", "a.cls": "3", "b.png": b"second", "b.cls": "1"}


def read(shard: Path, **source: Any) -> ShardIndex:
    return read_index(shard, LabelSource(**source), shard.parent / "cache")


def content(shard: Path, index: ShardIndex) -> list[bytes]:
    whole = shard.read_bytes()
    return [whole[start : start + size] for start, size in zip(index.offset, index.size, strict=True)]


def test_samples_are_found_in_their_order_whatever_lies_between(tmp_path: Path, write_shard) -> None:
    shard = write_shard(
        tmp_path / "x.tar",
        {
            "z/1.seg.png": b"mask",
            "z/1.jpg": b"first",
            "z/1.cls": "7",
            "z/1.txt": "a caption",
            "._1.jpg": b"rubbish of an operating system",
            "README": "none",
            "a/1.WebP": b"second",
            "a/1.cls": "0\n",
            "a/" + "long" * 60 + ".png": b"third",
            "a/" + "long" * 60 + ".cls": "cat",
        },
    )
    index = read(shard)
    assert content(shard, index) == [b"first", b"second", b"third"]
    assert index.label.tolist() == ["7", "0", "cat"]


def test_labels_of_json_and_of_other_members(tmp_path: Path, write_shard) -> None:
    both = {"a.png": b"1", "a.json": '{"label": 4, "name": "cat"}', "a.cls": "2", "a.txt": "x"}
    shard = write_shard(tmp_path / "x.tar", both)
    assert read(shard).label.tolist() == ["2"]
    assert read(shard, label_key="json").label.tolist() == ["4"]
    assert read(shard, label_key="json", json_field="name").label.tolist() == ["cat"]
    assert read(shard, label_key="txt").label.tolist() == ["x"]
    assert not read(shard, label_key="none").has_labels
    described = write_shard(tmp_path / "y.tar", {"a.png": b"1", "a.json": '{"width": 4}'})
    assert not read(described).has_labels
    partly = {"a.png": b"1", "a.json": '{"label": null}', "b.png": b"1", "b.json": '{"label": 0}'}
    assert read(write_shard(tmp_path / "z.tar", partly)).label.tolist() == ["", "0"]


def test_the_image_member_can_be_named(tmp_path: Path, write_shard) -> None:
    shard = write_shard(tmp_path / "x.tar", {"a.jpg": b"small", "a.png": b"large", "a.depth.png": b"depth"})
    with pytest.raises(ValueError, match=r"x.tar: sample a has the images jpg and png; set data.image_key to one of"):
        read(shard)
    assert content(shard, read(shard, image_key="png")) == [b"large"]
    assert content(shard, read(shard, image_key="depth.png")) == [b"depth"]


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"a.png": b"", "a.cls": "1", "b.png": b""}, r"sample b has no member .cls, as others have; give each"),
        ({"a.png": b"", "b.png": b"", "b.cls": "1"}, r"sample a has no member .cls, as others have; give each"),
        ({"a.png": b"", "a.cls": "1", "b.cls": "1"}, r"sample b has no image, only .cls"),
        ({"a.png": b"", "a.json": '{"label": 1}', "b.png": b"", "b.json": "{}"}, r"b.json has no field 'label'"),
        ({"a.png": b"", "a.json": '{"label": 1.5}'}, r"a.json: label is 1.5, expected a whole number or a name"),
        ({"a.png": b"", "a.json": '{"label": true}'}, r"a.json: label is True, expected"),
        ({"a.png": b"", "a.json": "[1]"}, r"a.json is not a JSON object"),
        ({"a.png": b"", "a.json": "{"}, r"a.json cannot be read as a label"),
        ({"a.png": b"", "a.cls": b"\xff"}, r"a.cls cannot be read as a label"),
        ({"README": b"x"}, r"contains no sample; expected members such as"),
        ({"a.PNG": b"", "a.png": b""}, r"a.png appears twice"),
    ],
)
def test_samples_that_do_not_fit_together_are_refused(tmp_path, write_shard, members, sentence) -> None:
    with pytest.raises(ValueError, match=rf"^shard .*x.tar.*{sentence}"):
        read(write_shard(tmp_path / "x.tar", members))


@pytest.mark.parametrize("kept", [0, 100, 700, 1024, 1500, 2048, 2100])
def test_a_shard_cut_short_anywhere_is_refused(tmp_path: Path, write_shard, kept: int) -> None:
    whole = write_shard(tmp_path / "whole.tar", TWO).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:kept])
    with pytest.raises(ValueError, match=r"^shard .*cut.tar is (damaged or cut short|not a tar archive)"):
        read(tmp_path / "cut.tar")


def test_a_damaged_header_does_not_end_a_shard(tmp_path: Path, write_shard) -> None:
    shard = write_shard(tmp_path / "x.tar", TWO)
    damaged = bytearray(shard.read_bytes())
    damaged[2 * 1024 + 3] ^= 255  # in the name of the third member, so that the checksum fails
    shard.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"x.tar is damaged or cut short at byte 2048; make or download it again"):
        read(shard)


def test_what_is_no_plain_archive_of_files_is_refused(tmp_path: Path, write_shard) -> None:
    whole = write_shard(tmp_path / "x.tar", TWO).read_bytes()
    for name, bad, sentence in (
        ("zipped.tar", gzip.compress(whole), r"is compressed \(gzip\).*unpack it to a plain .tar"),
        ("page.tar", b"<!DOCTYPE html>" + bytes(9999), r"is not a tar archive \(it begins with an HTML page\)"),
        ("joined.tar", whole + whole, "has data after its end marker; join archives with tar -A, not with cat"),
    ):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(ValueError, match=rf"^shard .*{name} {sentence}"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match=r"nowhere.tar cannot be read \(No such file"):
        read(tmp_path / "nowhere.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(link)
    with pytest.raises(ValueError, match=r"x.tar: a.png is a link; shards may contain only files"):
        read(tmp_path / "x.tar")


def test_a_listed_shard_is_not_listed_again_until_it_changes(tmp_path: Path, write_shard) -> None:
    shard = write_shard(tmp_path / "x.tar", TWO)
    first = read(shard)
    status = shard.stat()
    rubbish = bytes(status.st_size)
    shard.write_bytes(rubbish)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if nothing had happened
    assert read(shard).label.tolist() == first.label.tolist()
    assert read(shard).offset.tolist() == first.offset.tolist()
    with pytest.raises(ValueError, match=r"contains no sample|cut short"):
        read(shard, label_key="none")  # another question is not answered from there
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(ValueError, match=r"contains no sample|cut short"):
        read(shard)


def test_a_torn_cache_is_made_again(tmp_path: Path, write_shard) -> None:
    shard = write_shard(tmp_path / "x.tar", TWO)
    read(shard)
    (stored,) = (tmp_path / "cache").iterdir()
    stored.write_bytes(stored.read_bytes()[:100])
    assert read(shard).label.tolist() == ["3", "1"]
    assert stored.stat().st_size > 100
