"""Settings that the program prints are read back by Hydra as they were meant."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

FOLDERS = [
    "/runs/mae/auto",
    "a b",
    " a",
    "Jürgen/写真",
    "a (1)",
    "a,b",
    "a=b",
    "a'b",
    'a"b',
    "a#b",
    "a[1]{2}",
    "~a",
    "a$b",
]
FOLDERS += ["a$b", "a\\b", "a\\", 'a\\"b', "a\\\\", "null", "50%", "a;b!c&d"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_setting_is_read_back_from_the_command_line(folder: str) -> None:
    from unmask.runtime.typed import typed

    (word,) = shlex.split(shlex.join([typed("hydra.run.dir", folder)]))
    override = OverridesParser.create().parse_override(word)
    assert override.key_or_group == "hydra.run.dir"
    assert str(override.value()) == folder.replace("null", "None")


def test_usual_folders_stay_without_quotes() -> None:
    from unmask.runtime.typed import typed

    assert (
        typed("hydra.run.dir", "/runs/mae_vit-mini/2026-11-29_10-00")
        == "hydra.run.dir=/runs/mae_vit-mini/2026-11-29_10-00"
    )
