import json
from pathlib import Path

import pytest

from unmask.data.files.shard_list import Shard, expand_patterns, find_shards, read_record


def places(patterns: str | list[str], root: str | None = None) -> list[str]:
    return [shard.location for shard in expand_patterns(patterns, root, key="data.train")]


def test_braces_stand_for_numbers_and_words_in_order() -> None:
    assert places("http://h/{008..011}.tar") == [f"http://h/{number:03d}.tar" for number in (8, 9, 10, 11)]
    assert places("/d/{b,a}-{0..1}.tar") == ["/d/b-0.tar", "/d/b-1.tar", "/d/a-0.tar", "/d/a-1.tar"]
    assert places(["/d/z.tar", "/d/a.tar"]) == ["/d/z.tar", "/d/a.tar"]
    with pytest.raises(ValueError, match=r"data.train=.*: the range \{9..2\} ends before it starts"):
        places("/d/{9..2}.tar")


def test_relative_patterns_start_from_the_root() -> None:
    assert places("{0..1}.tar", "https://h/d/") == ["https://h/d/0.tar", "https://h/d/1.tar"]
    assert places(["a.tar", "https://other/b.tar", "/c.tar"], "/d") == ["/d/a.tar", "https://other/b.tar", "/c.tar"]


def test_wildcards_are_matched_and_sorted(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    assert places("*.tar", str(tmp_path)) == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    with pytest.raises(ValueError, match=r"data.train=.*x\*.tar matches no file"):
        places("x*.tar", str(tmp_path))
    with pytest.raises(ValueError, match=r"names the shard .*a.tar twice"):
        places(["a.tar", "*.tar"], str(tmp_path))


def test_a_folder_of_shards_is_divided_by_their_names(tmp_path: Path) -> None:
    names = ("imagenet-train-0.tar", "train-1.tar", "train-0.tar", "validation_0.tar", "test/000.tar", "tests.tar")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {split: [Path(shard.location).name for shard in shards] for split, shards in find_shards(tmp_path).items()}
    assert found == {"train": ["train-0.tar", "train-1.tar"], "val": ["validation_0.tar"], "test": ["000.tar"]}


def test_shards_without_a_split_are_training_images(tmp_path: Path) -> None:
    for name in ("0001.tar", "0000.tar"):
        (tmp_path / name).touch()
    assert list(find_shards(tmp_path)) == ["train"]
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "0.tar").touch()
    with pytest.raises(ValueError, match=r"has shards of val but none of train; set data.train to a pattern"):
        find_shards(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no shard in .*empty: neither dataset.json nor \*.tar"):
        find_shards(tmp_path / "empty")


def test_a_shard_of_another_size_than_recorded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"12345")
    assert Shard(str(tmp_path / "a.tar"), 5).fetch(tmp_path) == tmp_path / "a.tar"
    with pytest.raises(ValueError, match=r"a.tar has 5 bytes, .*dataset.json says 6; copy it again"):
        Shard(str(tmp_path / "a.tar"), 6).fetch(tmp_path)
    with pytest.raises(ValueError, match=r"no shard .*b.tar"):
        Shard(str(tmp_path / "b.tar")).fetch(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("{", "cannot be read as the record"), ('{"format": "other"}', "its format is 'other'"), ("[]", "cannot be read")],
)
def test_a_record_of_another_kind_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_record(str(tmp_path), tmp_path)


def test_a_record_names_no_shard_outside_its_folder(tmp_path: Path) -> None:
    shards = [{"name": "../../secret.tar", "bytes": 1}]
    record = {"format": "unmask-shards-1", "class_names": [], "splits": {"train": {"shards": shards}}}
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    read = read_record(str(tmp_path), tmp_path)
    assert read is not None
    assert read["splits"]["train"] == [Shard(str(tmp_path / "secret.tar"), 1)]
