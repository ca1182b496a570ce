import itertools
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from unmask.runtime.cli import pack


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for place in range(20):
        path = tmp_path / "files" / ("cat", "dog")[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (place, place, place)).save(path)
    return tmp_path / "files"


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pack", *arguments])
    pack()


def test_a_source_is_packed_and_both_loaders_timed(files: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("HOME", str(tmp_path))  # where the cache is
    source = ["data=folder", f"data.root={files}", "data.num_workers=0", "image_size=16", "data.test_fraction=0"]
    out = tmp_path / "Bürger, packed"
    typed(monkeypatch, *source, f"out='{out}'", "timing_seconds=0.1", "splits=[train,val]", "size=16")
    assert sorted(path.name for path in out.iterdir()) == ["dataset.json", "train-000000.tar", "val-000000.tar"]
    assert "packed train 18, val 2 images" in caplog.text
    assert re.search(r"[\d,]+ images/s from the source, [\d,]+ from the shards: [\d.]+ times as fast", caplog.text)
    assert f"""run.py data=shards 'data.root="{out}"' data.test_fraction=0""" in caplog.text


def test_the_ratio_is_of_the_shards_over_the_source(files: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("HOME", str(tmp_path))
    rates = itertools.cycle([100.0, 250.0])  # the source has the first turn, the shards the second
    monkeypatch.setattr("unmask.runtime.pack._images_per_second", lambda *_: next(rates))
    source = ["data=folder", f"data.root={files}", "data.num_workers=0", "image_size=16", "data.test_fraction=0"]
    typed(monkeypatch, *source, f"out={tmp_path / 'out'}", "timing_seconds=0.1", "splits=[train]", "size=16")
    assert "100 images/s from the source, 250 from the shards: 2.5 times as fast" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["out=x"], "error: name the source to pack, such as data=folder data.root=DIR"),
        (["data=folder", "data.root=DIR"], "error: out must be given; add out=VALUE"),
        (["out=x", "sise=3"], "error: unknown key 'sise'; nearest: size"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], sentence: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()
    with pytest.raises(SystemExit) as stopped:
        typed(monkeypatch, *arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(sentence)


def test_help_is_the_commented_configuration(monkeypatch, capsys) -> None:
    typed(monkeypatch, "--help")
    assert "images_per_shard: 4096" in capsys.readouterr().out
