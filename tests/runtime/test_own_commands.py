"""What a message tells to type: it starts the command that the user has, from where the user is."""

import sys
from pathlib import Path

import pytest

from unmask.runtime.own_commands import sibling_command


@pytest.mark.parametrize(
    ("typed", "program", "told"),
    [
        ("python", "run.py", ["python", "eval.py"]),
        (".venv/bin/python", "run.py", [".venv/bin/python", "eval.py"]),
        ("python3", "../some folder/run.py", ["python3", "../some folder/eval.py"]),
        ("python3", "eval.py", ["python3", "eval.py"]),
        ("/env/bin/python", "/env/bin/unmask-run", ["/env/bin/unmask-eval"]),
        ("python", "C/unmask-run.exe", ["C/unmask-eval.exe"]),
    ],
)
def test_it_is_the_one_beside_the_program(typed: str, program: str, told: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", [typed, program])
    monkeypatch.setattr(sys, "argv", [program])
    assert sibling_command("eval") == told


@pytest.mark.parametrize(
    ("has_script", "is_installed", "told"),
    [
        (True, True, "env/bin/python run.py"),
        (False, True, "env/bin/unmask-run"),
        (False, False, "env/bin/python run.py"),
    ],
)
def test_a_module_names_the_script_that_is_here_or_the_command_that_is_installed(
    has_script: bool, is_installed: bool, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("env/bin").mkdir(parents=True)
    for name, is_there in (("run.py", has_script), ("env/bin/unmask-run", is_installed)):
        if is_there:
            Path(name).touch()
    monkeypatch.setattr(sys, "executable", "env/bin/python")
    monkeypatch.setattr(sys, "orig_argv", ["env/bin/python", "-m", "unmask.pack"])
    monkeypatch.setattr(sys, "argv", ["env/lib/unmask/pack.py"])
    assert sibling_command("run") == told.split()
