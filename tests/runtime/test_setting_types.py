"""Top-level settings of another type are refused in words of the setting."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import re
from typing import Any

import pytest

WRONG = {
    "seed=ten": "seed must be a whole number from 0 to 4294967295, got 'ten'",
    "seed=1.5": "seed must be a whole number from 0 to 4294967295, got 1.5",
    "seed=null": "seed must be a whole number from 0 to 4294967295, got None",
    "seed=[1,2]": "seed must be a whole number from 0 to 4294967295, got [1, 2]",
    "seed=true": "seed must be a whole number from 0 to 4294967295, got True",
    "seed=-1": "seed must be a whole number from 0 to 4294967295, got -1",
    "seed=1000000000000000000000": "seed must be a whole number from 0 to 4294967295, got 1000000000000000000000",
    "global_batch_size=0": "global_batch_size must be a whole number from 1 to 2147483647, got 0",
    "images_per_device=four": "images_per_device must be a whole number from 1 to 2147483647, or null, got 'four'",
    "base_lr=nan": "base_lr must be a number, got nan",
    "base_lr=inf": "base_lr must be a number, got inf",
    "drop_path_rate=a_tenth": "drop_path_rate must be a number, got 'a_tenth'",
    "mixup=yes": "mixup must be a number, got 'yes'",
    "allow_partial=1": "allow_partial must be true or false, got 1",
    "follow_data=maybe": "follow_data must be true or false, or null, got 'maybe'",
}


OF_OTHER_COMMANDS = {
    ("inspect", "seconds_of_loading=0"): "seconds_of_loading must be a number above 0, got 0",
    ("inspect", "decoded_images=all"): "decoded_images must be a whole number from 1 to 2147483647, got 'all'",
    ("inspect", "timed_steps=-1"): "timed_steps must be a whole number from 0 to 2147483647, got -1",
    ("pack", "size=small"): "size must be a whole number from 1 to 2147483647, or null, got 'small'",
    ("pack", "jpeg_quality=high"): "jpeg_quality must be a whole number from 1 to 2147483647, got 'high'",
    ("pack", "images_per_shard=1.5"): "images_per_shard must be a whole number from 1 to 2147483647, got 1.5",
    ("pack", "timing_seconds=none"): "timing_seconds must be a number, got 'none'",
}


def refusal(command: str, override: str, *others: str) -> str:
    from unmask.runtime.config import compose_config
    from unmask.runtime.evaluate import evaluate
    from unmask.runtime.inspect import inspect
    from unmask.runtime.pack import pack
    from unmask.runtime.pretrain import pretrain

    run: Any = {"run": pretrain, "eval": evaluate, "inspect": inspect, "pack": pack}[command]
    with pytest.raises(ValueError, match=" must be ") as raised:
        run(compose_config(command, [*others, override]))
    return str(raised.value)


@pytest.mark.parametrize("override", WRONG)
def test_a_value_of_another_type_is_refused_in_words_of_its_key(override: str, tmp_path: Any) -> None:
    assert refusal("run", override, f"paths.run_dir={tmp_path}") == WRONG[override]
    assert list(tmp_path.glob("[!r]*")) == []


@pytest.mark.parametrize("override", ["seed=ten", "crop_pct=all", "use_ema_weights=2"])
def test_an_evaluation_refuses_them_too(override: str, tmp_path: Any) -> None:
    said = refusal("eval", override, "ckpt_path=none", f"paths.run_dir={tmp_path}")
    assert re.match(rf"{override.partition('=')[0]} must be ", said), said


@pytest.mark.parametrize(("command", "override"), OF_OTHER_COMMANDS)
def test_a_look_and_a_packing_refuse_their_own_before_they_read_anything(
    command: str, override: str, tmp_path: Any
) -> None:
    said = refusal(command, override, "data=synthetic", *([f"out={tmp_path / 'out'}"] if command == "pack" else []))
    assert said == OF_OTHER_COMMANDS[command, override]
    assert list(tmp_path.iterdir()) == []
