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


def refusal(command: str, override: str, *others: str) -> str:
    from unmask.runtime.config import compose_config
    from unmask.runtime.evaluate import evaluate
    from unmask.runtime.pretrain import pretrain

    run: Any = {"run": pretrain, "eval": evaluate}[command]
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
