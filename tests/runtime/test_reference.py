"""References: the one that is shipped, and the command that makes one."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import logging
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

CONF = Path(__file__).parents[2] / "conf"
SHIPPED = sorted((CONF / "experiment").glob("*.reference.json"))
TINY = ["model.embed_dim=24", "model.depth=2", "data.num_train=16", "data.num_val=4", "data.num_test=4"]
DECODER = ["method.decoder.embed_dim=24", "method.decoder.depth=1", "method.decoder.num_heads=3"]
RUN = ["method=mae", *TINY, *DECODER, "global_batch_size=8", "trainer=cpu", "trainer.max_epochs=2", "logger=csv"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_is_shipped_was_made_with_the_settings_of_its_experiment(path: Path) -> None:
    from unmask.callbacks.reference import read_reference
    from unmask.runtime.builders import build_data, resolve_config
    from unmask.runtime.config import compose_config
    from unmask.runtime.resume import settings_of_run

    good = read_reference(path)
    config = compose_config("run", [f"experiment={good.name}", "paths.run_dir=x"])
    data = build_data(config)
    images = {split: data.dataset(split).fingerprint for split in ("train", "val")}
    settings = settings_of_run(resolve_config(config))
    assert good.difference(settings, images=images, num_steps=good.num_steps) is None
    assert good.num_runs >= 3
    assert good.band("train/loss_epoch", good.num_steps) is not None


def run(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    from unmask.runtime import cli

    monkeypatch.setattr("sys.argv", ["run.py", *RUN, *overrides])
    GlobalHydra.instance().clear()
    cli.run()
    logging.shutdown()  # closes run.log


def test_a_user_makes_a_reference_of_runs_and_compares_others_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from unmask.runtime import cli

    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "seed=1", "hydra.run.dir='my run'")
    said = capsys.readouterr().out
    assert "; no reference for this recipe" in said
    told = re.search(r"to compare other seeds with it: .* -m unmask\.(reference .*), then (.*)\n", said)
    assert told is not None
    monkeypatch.setattr("sys.argv", shlex.split(told[1]))
    cli.reference()
    capsys.readouterr()
    run(monkeypatch, "seed=2", *shlex.split(told[2]), "hydra.run.dir=two")
    said = capsys.readouterr().out
    assert "(reference " in said
    assert "to compare other seeds" not in said

    Path("my run").rename("one")
    Path("one/reference.json").rename("mine.json")
    run(monkeypatch, "method.mask_generator.ratio=0.5", "reference=mine.json", "hydra.run.dir=three")
    said = "; no reference for these settings: method.mask_generator.ratio is 0.5, there 0.75 (mine)"
    assert said in capsys.readouterr().out

    run(monkeypatch, "data.picture_seed=1", "reference=mine.json", "hydra.run.dir=four")  # of the same settings
    said = "; no reference for these settings: other images in the train and val split (mine)"
    assert said in capsys.readouterr().out

    for arguments, sentence in (
        (["one", "three", "out=other.json"], "three and one are not of one recipe: method.mask_generator.ratio is 0.5"),
        (
            ["one", "four", "out=other.json"],
            "four and one are of other images; a reference takes runs of the same ones",
        ),
        (["one", "out=mine.json"], "mine.json exists; name another file"),
        (["one"], "name finished runs and one file"),
        (["nowhere", "out=other.json"], "nowhere holds no csv/metrics.csv"),
    ):
        monkeypatch.setattr("sys.argv", ["reference", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.reference()
        assert stopped.value.code == 2
        assert sentence in capsys.readouterr().err
