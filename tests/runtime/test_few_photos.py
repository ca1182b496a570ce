"""The README's command on as many photos as people have at hand."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import logging
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

SMALL = ["model.embed_dim=8", "model.depths=[1,1,1,1]", "model.num_heads=[1,1,1,1]", "image_size=64", "trainer=cpu"]


@pytest.mark.parametrize(("num_photos", "counts"), [(200, (160, 20, 20)), (50, (40, 5, 5))])
def test_it_trains_and_says_how_many_photos_it_set_aside(
    num_photos: int,
    counts: tuple[int, int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    from unmask.runtime import cli

    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(num_photos):
        Image.new("RGB", (70, 60), (number, 255 - number, 90)).save(f"photos/{number:03d}.jpg")
    readme = ["method=simmim", "model=swin_tiny", "data=folder", "data.root=photos"]
    short = ["trainer.max_steps=2", "data.num_workers=0", "logger=none", "hydra.run.dir=out"]
    monkeypatch.setattr("sys.argv", ["run.py", *readme, *SMALL, *short])
    monkeypatch.setattr("sys.orig_argv", ["python", "run.py"])
    GlobalHydra.instance().clear()
    cli.run()

    said = capsys.readouterr().out
    assert f"{counts[0]} to train on, {counts[1]} held out to validate, {counts[2]} of them set aside to test" in said
    assert "next: python eval.py eval=reconstruct image=PHOTO ckpt_path=" in said
    assert Path("out/backbone.safetensors").is_file()
    logging.shutdown()  # closes run.log


def test_a_batch_of_ones_own_that_is_too_large_names_one_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from unmask.runtime import cli

    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(50):
        Image.new("RGB", (70, 60), (number, 255 - number, 90)).save(f"photos/{number:03d}.jpg")
    source = ["method=simmim", "model=swin_tiny", "data=folder", "data.root=photos", "data.num_workers=0"]
    common = [*source, *SMALL, "trainer.max_steps=1", "logger=none", "hydra.run.dir=out"]
    monkeypatch.setattr("sys.argv", ["run.py", *common, "global_batch_size=256"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit):
        cli.run()
    said = capsys.readouterr().err
    assert "40 images, fewer than one batch of 256; set global_batch_size=20 or less" in said

    monkeypatch.setattr("sys.argv", ["run.py", *common, "global_batch_size=20"])
    GlobalHydra.instance().clear()
    cli.run()
    assert Path("out/backbone.safetensors").is_file()
    logging.shutdown()  # closes run.log
