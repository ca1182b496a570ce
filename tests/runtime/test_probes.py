"""Probes named on the command line."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import csv
import logging
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

TINY = ["model.embed_dim=24", "model.depth=2", "data.num_train=16", "data.num_val=4", "data.num_test=4"]
DECODER = ["method.decoder.embed_dim=24", "method.decoder.depth=1", "method.decoder.num_heads=3"]
RUN = ["method=mae", *TINY, *DECODER, "global_batch_size=8", "trainer=cpu", "trainer.max_epochs=1", "logger=csv"]


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, shade in (("dark", 20), ("bright", 220)):
        Path("photos", name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (40, 36), (shade, shade, shade + number)).save(f"photos/{name}/{number}.png")


def run(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    from unmask.runtime import cli

    monkeypatch.setattr("sys.argv", ["run.py", *RUN, *overrides, "hydra.run.dir=out"])
    GlobalHydra.instance().clear()
    cli.run()
    logging.shutdown()  # closes run.log


def test_a_labeled_folder_is_probed_while_other_images_train(monkeypatch: pytest.MonkeyPatch) -> None:
    run(
        monkeypatch,
        "probes.shades.data=folder",
        "probes.shades.root=photos",
        "probes.shades.k=3",
        "probes.mine.data=own",
        "probes.mine.k=3",
    )

    with Path("out/csv/metrics.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("probe/shades/knn_top1")]
    assert [float(rows[-1][f"probe/shades/{kind}_top1"]) for kind in ("knn", "logistic")] == [100.0, 100.0]
    assert "probe/mine/knn_top1" in rows[-1]
    assert "probe/shades/knn_top1" in Path("out/report.html").read_text()


def test_the_best_checkpoint_follows_the_first_probe_also_when_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import torch

    from unmask.callbacks.online_probe import OnlineProbe

    found = iter([30.0, 50.0, 40.0, 20.0])
    monkeypatch.setattr(OnlineProbe, "_measure", lambda self, *_: {"knn": 1.0, "logistic": next(found)})
    probe = ["probes.mine.data=own", "probes.mine.k=3", "probes.mine.max_time_fraction=1.0"]

    def best_step() -> int:
        return int(torch.load("out/checkpoints/best.ckpt", weights_only=True)["global_step"])

    run(monkeypatch, *probe, "trainer.max_epochs=2", "schedule=constant")
    assert best_step() == 4
    assert "best.ckpt  largest probe/mine/logistic_top1" in capsys.readouterr().out
    run(monkeypatch, *probe, "trainer.max_epochs=4", "schedule=constant", "resume=auto")
    assert best_step() == 4  # that of the part before


@pytest.mark.parametrize(
    ("settings", "monitor", "mode"),
    [
        ([], "val/loss", "min"),
        (["++probes.a.data=own", "++probes.b.data=own"], "probe/a/logistic_top1", "max"),
        (["++probes.a.data=own", "monitor=probe/a/knn_top1"], "probe/a/knn_top1", "max"),
        (["++probes.a.data=own", "monitor=val/pixel_mse"], "val/pixel_mse", "min"),
        (["++probes.a=null", "++probes.b.data=own"], "probe/b/logistic_top1", "max"),
    ],
)
def test_the_best_checkpoint_follows_a_probe_or_what_is_named(settings: list[str], monitor: str, mode: str) -> None:
    from unmask.runtime.config import compose_config

    best = compose_config("run", ["name=x", "paths.run_dir=x", *settings]).callbacks.best_checkpoint
    assert (best.monitor, best.mode) == (monitor, mode)
    assert best.save_on_train_epoch_end is (True if monitor.startswith("probe/") else None)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["probes.a.root=photos"], "probes.a.data must name a source of labeled images"),
        (["probes.a.data=folder"], "probes.a.root must be given; add probes.a.root=VALUE"),
        (["probes.a.data=folder", "probes.a.rot=photos"], "probes.a.rot is no setting of data=folder, which has "),
        (
            ["probes.a.data=own", "monitor=probe/b/knn_top1"],
            "monitor=probe/b/knn_top1 is the reading of no probe; there",
        ),
        (["monitor=probe/b/knn_top1"], "there is no probe; add probes.NAME.data=own"),
        (["probes.a.data=foldr"], "data=foldr does not exist; nearest: folder"),
        (["probes.a.data=own", "probes.a.root=x"], "probes.a.root has no effect on the run's own images"),
    ],
)
def test_a_mistake_is_one_sentence(
    settings: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *settings)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not Path("out").exists()
