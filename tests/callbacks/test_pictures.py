from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from unmask.callbacks.pictures import figure_pixels, save_figure


def red_figure():
    figure = Figure(figsize=(2, 1), dpi=30)
    figure.set_facecolor((1.0, 0.0, 0.0))
    return figure


def test_file_holds_the_pixels_of_the_figure(tmp_path):
    path = tmp_path / "new" / "figure.png"
    save_figure(red_figure(), path)
    written = (imread(path)[..., :3] * 255).round().astype(np.uint8)
    assert (written == figure_pixels(red_figure())).all()
    assert (written == np.array([255, 0, 0])).all()
    assert written.shape == (30, 60, 3)
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"earlier")
    write_bytes = Path.write_bytes

    def break_off(self, content):
        write_bytes(self, content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", break_off)
    with pytest.raises(OSError, match="disk full"):
        save_figure(red_figure(), path)
    assert path.read_bytes() == b"earlier"
