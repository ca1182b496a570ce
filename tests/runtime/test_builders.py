"""A trainer that knows how a global batch is computed."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import pytest
import torch

CPU = ["trainer.accelerator=cpu", "logger=none", "callbacks=none", "global_batch_size=24", "name=x", "paths.run_dir=x"]


@pytest.mark.parametrize(
    ("overrides", "accumulated"),
    [
        ([], 1),
        (["images_per_device=8"], 3),
        (["images_per_device=5"], 6),  # 24 images are no five parts
        (["images_per_device=8", "trainer.devices=2"], 2),
        (["images_per_device=8", "trainer.devices=4"], 1),
        (["images_per_device=8", "trainer.accumulate_grad_batches=2"], 2),  # what is given wins
    ],
)
def test_accumulation_keeps_the_global_batch_on_any_number_of_devices(overrides: list[str], accumulated: int) -> None:
    from unmask.runtime.builders import build_trainer
    from unmask.runtime.config import compose_config
    from unmask.runtime.console import describe_batch

    config = compose_config("run", [*CPU, *overrides])
    trainer = build_trainer(config, callbacks=[])
    assert trainer.accumulate_grad_batches == accumulated
    each = 24 // (trainer.world_size * accumulated)
    said = describe_batch(config, trainer)
    assert said.startswith(f"24 = {each} x {trainer.world_size} device(s) x {accumulated} accumulated")
    is_derived = any("images" in override for override in overrides) and not any("accumulate" in o for o in overrides)
    assert ("(images_per_device=" in said) == is_derived


def test_devices_that_do_not_share_the_batch_evenly_are_refused() -> None:
    from unmask.runtime.builders import build_trainer
    from unmask.runtime.config import compose_config

    with pytest.raises(ValueError, match="24 does not divide among 5 devices; use 20"):
        build_trainer(compose_config("run", [*CPU, "trainer.devices=5"]), callbacks=[])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer=ddp"], ("auto", "auto", "ddp")),
        (["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"], ("cpu", 2, "ddp")),
        (["trainer.devices=2", "trainer=ddp"], ("auto", 2, "ddp")),
        (["trainer=ddp", "strategy=fsdp"], ("auto", "auto", "fsdp")),
        (["trainer=ddp", "trainer.strategy=ddp_spawn"], ("auto", "auto", "ddp_spawn")),
        (["trainer=ddp_sim"], ("cpu", 2, "ddp")),
        (["trainer=fsdp"], ("gpu", "auto", "fsdp")),
        (["trainer=gpu"], ("gpu", 1, "auto")),
        (["trainer=mps"], ("mps", 1, "auto")),
        ([], ("auto", 1, "auto")),
    ],
)
@pytest.mark.parametrize("command", [["run"], ["eval", "ckpt_path=x"]], ids=["run", "eval"])
def test_a_choice_of_trainer_leaves_its_keys_to_be_changed(
    command: list[str], overrides: list[str], expected: tuple[object, ...]
) -> None:
    from unmask.runtime.config import compose_config

    trainer = compose_config(command[0], [*command[1:], *overrides]).trainer
    assert (trainer.accelerator, trainer.devices, trainer.strategy) == expected
    assert trainer.use_distributed_sampler is False  # which every choice takes over


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["trainer=ddp_sim", "strategy=fsdp"], "over GPUs of CUDA alone, .*=cpu has none here; write strategy=ddp,"),
        pytest.param(
            ["trainer=fsdp"],
            "over GPUs of CUDA alone, .*=gpu has none here; write strategy=ddp,",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"),
        ),
        pytest.param(
            ["trainer=gpu"],
            "accelerator=gpu is not on this machine; write trainer.accelerator=auto,",
            marks=pytest.mark.skipif(
                torch.cuda.is_available() or torch.backends.mps.is_available(), reason="has a GPU"
            ),
        ),
        pytest.param(
            ["trainer=mps"],
            "accelerator=mps is not on this machine; write trainer.accelerator=auto,",
            marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="has a GPU"),
        ),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_what_to_write(overrides: list[str], advice: str) -> None:
    from unmask.runtime.builders import build_trainer
    from unmask.runtime.config import compose_config

    config = compose_config("run", [*CPU[1:], "trainer.precision=32-true", *overrides])
    with pytest.raises(ValueError, match=advice):
        build_trainer(config, callbacks=[])
