"""Which command an experiment is for, read off its file without composing it."""

import re
from pathlib import Path

from unmask.runtime.config import config_directory

_ENTRY = re.compile(r"^ +- (?:override /(?P<group>[\w/]+):|(?P<file>/?[\w/.-]+)(?:\s|$))", re.MULTILINE)
_DEFAULTS = re.compile(r"^defaults:\n((?: +.*\n)*)", re.MULTILINE)


def is_for_command(experiment: str, groups: set[str]) -> bool:
    """Whether a command with these groups takes an experiment; one of the user's own folder is not looked into."""
    file = config_directory() / "experiment" / f"{experiment}.yaml"
    return not file.is_file() or _groups_chosen(file) <= groups


def _groups_chosen(file: Path) -> set[str]:
    """The groups of which a file, or one it starts from, chooses."""
    defaults = _DEFAULTS.search(file.read_text(encoding="utf-8"))
    found: set[str] = set()
    for entry in _ENTRY.finditer("" if defaults is None else defaults[1]):
        if entry["group"] is not None:
            found.add(entry["group"])
        elif entry["file"] != "_self_":
            folder = config_directory() if entry["file"].startswith("/") else file.parent
            found |= _groups_chosen(folder / f"{entry['file'].lstrip('/')}.yaml")
    return found
