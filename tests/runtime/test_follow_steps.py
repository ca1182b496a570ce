"""A run ended by steps has a warm-up and milestones within them."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import csv
import logging
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig


def run_of(*overrides: str, num_train_images: int) -> DictConfig:
    from unmask.runtime.config import compose_config
    from unmask.runtime.follow_data import is_following, tell_rules
    from unmask.runtime.follow_steps import follow_steps

    config = compose_config("run", [*overrides])
    is_published = any(override.startswith("experiment=") for override in overrides)
    if is_following(config, names_experiment=is_published):
        tell_rules(config, num_train_images=num_train_images, backbone_width=128)
    follow_steps(config, num_train_images=num_train_images)
    return config


def schedule(*overrides: str, num_train_images: int = 45_000) -> dict[str, float]:
    return run_of(*overrides, num_train_images=num_train_images).schedule


CIFAR = ["experiment=mae_cifar10", "data.root=x"]  # 87 steps of 512 an epoch, 18 epochs
STEPPED = ["experiment=simmim_swin-base_2048b-800e_in1k-192px", "data.root=x"]  # milestones


def test_the_warmup_is_the_same_fraction_of_the_steps_that_are_made() -> None:
    assert schedule(*CIFAR).warmup_epochs == pytest.approx(0.05 * 18)
    assert schedule(*CIFAR, "trainer.max_steps=174").warmup_epochs == pytest.approx(0.05 * 2)
    assert schedule(*CIFAR, "trainer.max_steps=20").warmup_epochs * 87 == pytest.approx(1.0)
    assert schedule(*CIFAR, "trainer.max_steps=174", "trainer.max_epochs=null").warmup_epochs == pytest.approx(0.1)


@pytest.mark.parametrize("settings", [CIFAR, ["method=mae", "data=folder", "data.root=x", "global_batch_size=16"]])
def test_a_trial_of_two_batches_is_a_whole_run_to_its_warmup(settings: list[str]) -> None:
    trial = run_of(*settings, "debug=fast", num_train_images=180).schedule
    assert trial.warmup_epochs == pytest.approx(0.05 if settings is CIFAR else 0.1)  # of one epoch


@pytest.mark.slow
def test_a_trial_of_two_batches_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.runtime import cli

    monkeypatch.chdir(tmp_path)
    few = ["data.num_train=40", "data.num_val=16", "data.num_test=8", "global_batch_size=16"]
    words = ["debug=fast", "method=mae", "model=vit_mini", "data=synthetic", "image_size=32", "trainer=cpu", *few]
    monkeypatch.setattr("sys.argv", ["run.py", *words, "hydra.run.dir=out"])
    GlobalHydra.instance().clear()
    cli.run()
    assert not Path("out/checkpoints").exists()
    logging.shutdown()  # closes run.log


def test_images_that_do_not_fill_a_batch_make_one_step_an_epoch() -> None:
    assert schedule(*CIFAR, "trainer.max_steps=3", num_train_images=10).warmup_epochs == pytest.approx(0.05 * 3)


def test_milestones_shrink_with_the_run() -> None:
    whole = schedule(*STEPPED, num_train_images=2048 * 10)
    short = schedule(*STEPPED, "trainer.max_steps=100", num_train_images=2048 * 10)  # 10 of 800 epochs
    assert list(short.milestones) == pytest.approx([milestone / 80 for milestone in whole.milestones])
    assert short.warmup_epochs == pytest.approx(whole.warmup_epochs / 80)


@pytest.mark.parametrize("steps", ["-1", "100000"])
def test_steps_that_do_not_end_the_run_change_nothing(steps: str) -> None:
    assert schedule(*CIFAR, f"trainer.max_steps={steps}") == schedule(*CIFAR)


def test_a_length_in_epochs_stays_what_the_user_wrote() -> None:
    assert schedule(*CIFAR, "trainer.max_steps=174", "schedule.warmup_epochs=1").warmup_epochs == 1


SMALL_SET = ["method=mae", "data=folder", "data.root=x"]


@pytest.mark.parametrize("limit", ["trainer.limit_train_batches=10", "trainer.overfit_batches=10"])
@pytest.mark.parametrize("settings", [CIFAR, SMALL_SET])
def test_the_warmup_is_that_fraction_where_the_batches_of_an_epoch_are_limited(limit: str, settings: list[str]) -> None:
    fraction = 0.05 if settings is CIFAR else 0.1  # of the steps, ten of which are an epoch
    limited = run_of(*settings, limit, "trainer.max_steps=80", num_train_images=9000)
    assert limited.schedule.warmup_epochs * 10 == pytest.approx(fraction * 80)
    by_epochs = run_of(*settings, limit, "trainer.max_steps=80", "trainer.max_epochs=5", num_train_images=9000)
    assert by_epochs.schedule.warmup_epochs * 10 == pytest.approx(fraction * 50)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ([], 70),
        (["trainer.limit_train_batches=0.5"], 35),
        (["trainer.limit_train_batches=1000"], 70),
        (["trainer.limit_train_batches=9", "trainer.accumulate_grad_batches=4"], 3),
        (["trainer.limit_train_batches=8", "images_per_device=32", "trainer.devices=2"], 4),  # 2 x 2 x 32 images a step
        (["trainer.limit_train_batches=8", "images_per_device=32", "trainer.devices=[0,1]"], 4),
        (["trainer.limit_train_batches=8", "images_per_device=32", "trainer.devices=auto"], 2),
        (["trainer.limit_train_batches=8", "trainer.overfit_batches=2"], 2),
    ],
)
def test_the_steps_of_an_epoch_are_counted_as_the_trainer_does(limits: list[str], expected: int) -> None:
    from unmask.runtime.follow_steps import steps_an_epoch

    config = run_of(*SMALL_SET, "trainer.accelerator=cpu", *limits, num_train_images=9000)  # 70 batches of 128
    assert steps_an_epoch(config, num_train_images=9000) == expected


def test_a_run_of_three_steps_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from unmask.runtime import cli

    monkeypatch.chdir(tmp_path)
    small = ["model.embed_dim=24", "model.depth=2", "method.decoder={embed_dim: 24, depth: 1, num_heads: 3}"]
    small += ["data.num_train=400", "data.num_val=4", "data.num_test=4", "trainer=cpu", "logger=none"]
    settings = ["experiment=quickstart", *small, "trainer.max_steps=3", "global_batch_size=8", "hydra.run.dir=out"]
    monkeypatch.setattr("sys.argv", ["run.py", *settings])
    GlobalHydra.instance().clear()
    cli.run()

    said = capsys.readouterr().out
    assert "50 steps an epoch, 0.06 epochs, 3 steps" in said
    assert "; no warm-up, " in said  # a twentieth of three steps
    assert Path("out/checkpoints/last.ckpt").is_file()
    logging.shutdown()  # closes run.log


@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_the_plan_the_schedule_and_the_run_agree_where_batches_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, parts: int
) -> None:
    from unmask.runtime import cli

    monkeypatch.chdir(tmp_path)
    small = ["method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=2", "data.num_train=320"]
    small += ["method.decoder={embed_dim: 24, depth: 1, num_heads: 3}", "data.num_val=4", "data.num_test=4"]
    small += ["trainer=cpu", "logger=csv", "callbacks.reconstruction=null", "callbacks.feature_pictures=null"]
    settings = [*small, "global_batch_size=16", f"trainer.accumulate_grad_batches={parts}", "trainer.max_steps=20"]
    settings += [f"trainer.limit_train_batches={4 * parts}", "trainer.log_every_n_steps=1", "hydra.run.dir=out"]
    monkeypatch.setattr("sys.argv", ["run.py", *settings])
    GlobalHydra.instance().clear()
    cli.run()

    said = capsys.readouterr().out
    assert "4 steps an epoch, 5 epochs, 20 steps" in said
    assert "; 2 steps of warm-up from " in said  # a tenth
    with Path("out/csv/metrics.csv").open(newline="") as lines:
        rates = [float(row["train/lr"]) for row in csv.DictReader(lines) if row.get("train/lr")]
    assert len(rates) == 20
    assert rates.index(max(rates)) == 2
    logging.shutdown()
