"""The commands of this program as the user starts them: what a message tells to type works when it is pasted."""

import sys
from pathlib import Path

_INSTALLED = "unmask-"  # in front of the names of installed commands


def interpreter() -> str:
    """The Python of this process, as it was typed: `python`, `.venv/bin/python`."""
    return sys.orig_argv[0]


def sibling_command(name: str) -> list[str]:
    """The words that start `run` or `eval`, from the folder where the program under way was started.

    They lie beside the program where that is one of them itself. Where it is a module (`python -m unmask.pack`) or a
    call from Python, they are the scripts of the working directory, or the installed commands where it has none.
    """
    program, script = Path(sys.argv[0]), f"{name}.py"
    if program.name in ("run.py", "eval.py"):
        return [interpreter(), str(program.with_name(script))]
    if program.name.startswith(_INSTALLED):
        return [str(program.with_name(f"{_INSTALLED}{name}{program.suffix}"))]
    installed = Path(sys.executable).with_name(f"{_INSTALLED}{name}")
    return [str(installed)] if installed.exists() and not Path(script).exists() else [interpreter(), script]
