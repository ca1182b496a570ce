"""Help and completion wait for no torch, however long it takes to import: so both end within the second."""

import os
import subprocess
import sys

import pytest

_RUN_LIGHT = """
import sys
from unmask.runtime import cli
try:
    getattr(cli, COMMAND)()
finally:
    heavy = sorted({"torch", "lightning", "timm"} & set(sys.modules))
    assert not heavy, heavy
"""


def said_without_torch(command: str, *arguments: str, typed: str = "") -> str:
    code = _RUN_LIGHT.replace("COMMAND", repr(command))
    environment = {**os.environ, "COMP_LINE": f"run.py {typed}", "COMP_POINT": str(len(f"run.py {typed}"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_help_imports_no_torch(command: str) -> None:
    assert "Groups and their choices" in said_without_torch(command, "--help")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("met", "method="), ("method=simm", "method=simmim"), ("trainer.max_ep", "trainer.max_epochs=")],
)
def test_completion_imports_no_torch_once_a_command_has_run(typed: str, offered: str) -> None:
    from unmask.runtime import constructor_defaults  # noqa: PLC0415
    from unmask.runtime.config import compose_config  # noqa: PLC0415

    constructor_defaults.constructor_defaults.cache_clear()
    constructor_defaults._kept_defaults.cache_clear()
    compose_config("run", [])
    assert offered in said_without_torch("run", "-sc", "query=bash", typed=typed)
