"""A trainer that knows how a global batch is computed."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import pytest

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

    with pytest.raises(ValueError, match="24 does not divide among 5 devices; use 25"):
        build_trainer(compose_config("run", [*CPU, "trainer.devices=5"]), callbacks=[])
