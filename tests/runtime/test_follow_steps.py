"""A run ended by steps has a warm-up and milestones within them."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import logging
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra


def schedule(*overrides: str, num_train_images: int = 45_000) -> dict[str, float]:
    from unmask.runtime.config import compose_config
    from unmask.runtime.follow_steps import follow_steps

    config = compose_config("run", [*overrides])
    follow_steps(config, num_train_images=num_train_images)
    return config.schedule


CIFAR = ["experiment=mae_cifar10", "data.root=x"]  # 87 steps of 512 an epoch, 18 epochs
STEPPED = ["experiment=simmim_swin-base_2048b-800e_in1k-192px", "data.root=x"]  # milestones


def test_the_warmup_is_the_same_fraction_of_the_steps_that_are_made() -> None:
    assert schedule(*CIFAR).warmup_epochs == pytest.approx(0.05 * 18)
    assert schedule(*CIFAR, "trainer.max_steps=174").warmup_epochs == pytest.approx(0.05 * 2)
    assert schedule(*CIFAR, "trainer.max_steps=20").warmup_epochs * 87 == pytest.approx(1.0)
    assert schedule(*CIFAR, "trainer.max_steps=174", "trainer.max_epochs=null").warmup_epochs == pytest.approx(0.1)


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
