"""Every command that the README and the pages print composes as printed."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")),
)
CONFIGURATIONS = {
    "run.py": "run",
    "eval.py": "eval",
    "unmask.demo": "demo",
    "unmask.export": "export",
    "unmask.pack": "pack",
    "unmask.inspect": "inspect",
}


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """The configuration's name and the settings of each command in the page's blocks of code."""
    for block in re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            program = next((word for word in words if Path(word).name in CONFIGURATIONS), None)
            if program is not None:
                settings = words[words.index(program) + 1 :]
                given = [_first(word) for word in settings if "=" in word and not word.startswith("explain=")]
                yield CONFIGURATIONS[Path(program).name], given


def _first(word: str) -> str:
    """One job's setting of a sweep's: the first of several values, the lower end of an interval."""
    (override,) = OverridesParser.create().parse_overrides([word])
    if not override.is_sweep_override():
        return word
    value: Any = override.value()
    first = value.start if override.is_interval_sweep() else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={first}"


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_command_composes(page: str) -> None:
    from hydra import compose, initialize_config_dir

    from unmask.runtime.config import config_directory, with_own_data, with_probes
    from unmask.runtime.constructor_defaults import show_constructor_defaults
    from unmask.runtime.resolvers import register_resolvers

    register_resolvers()
    show_constructor_defaults()
    refused = []
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        for name, settings in {(name, tuple(settings)) for name, settings in commands(page)}:
            try:
                as_typed = with_own_data(settings) if name == "eval" else with_probes(settings)
                compose(name, as_typed, return_hydra_config=True)
            except Exception as error:
                refused.append(f"{name} {shlex.join(settings)}: {error}")
    assert refused == []


def test_commands_are_found() -> None:
    found = list(commands("README.md"))
    assert ("run", ["method=ddmim", "data=imagenet", "data.root=DIR", "trainer.devices=8"]) in found
    assert {name for name, _ in found} >= {"run", "eval", "export", "inspect"}
