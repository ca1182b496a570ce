"""What is said where Python lacks what the program needs."""

import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from unmask import missing_packages
from unmask.missing_packages import explain_missing_packages

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("script", ["run.py", "eval.py"])
@pytest.mark.parametrize("arguments", [["--help"], []])
def test_a_python_without_packages_is_told_what_to_install(script: str, arguments: list[str], tmp_path: Path) -> None:
    bare = [sys.executable, "-I", "-S", str(ROOT / script), *arguments]
    done = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {sys.executable} has no package unmask, which is needed; ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_package_that_is_needed_later_is_named_too(tmp_path: Path) -> None:
    start = "import sys; sys.modules['{}'] = None; sys.argv[0] = 'run.py'; from unmask.runtime.cli import run; run()"
    for package in ("torch", "timm"):
        command = [sys.executable, "-c", start.format(package), "trainer.max_steps=1", f"paths.output_root={tmp_path}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 2, done.stderr
        assert f"error: {sys.executable} has no package {package}, which is needed; " in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.rglob("*"))


def test_each_requirement_is_known_by_the_name_of_its_module() -> None:
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    required = {line.split(">")[0].split("<")[0].split("=")[0] for line in written}
    installed = packages_distributions()

    assert set(missing_packages._REQUIRED.values()) == required | {"unmask"}
    for module, package in missing_packages._REQUIRED.items():
        if package != "unmask":
            assert package in [name.lower().replace("_", "-") for name in installed[module]]


def say(module: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="2"), explain_missing_packages():
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    return capsys.readouterr().err


def test_a_package_is_called_as_pip_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(missing_packages, "_ROOT", tmp_path)
    assert say("PIL.Image", capsys).endswith(f"; install it by {sys.executable} -m pip install pillow\n")

    (tmp_path / "pyproject.toml").touch()
    assert f"-m pip install -e {tmp_path}, or into" in say("hydra", capsys)
    assert f"make -C {tmp_path} .venv/installed, and start" in say("hydra", capsys)

    (python := tmp_path / ".venv/bin/python").parent.mkdir(parents=True)
    python.touch()
    assert say("torch", capsys).endswith(f"; start this with {python}, the Python of this repository\n")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert f"-m pip install -e {tmp_path}, or into" in say("torch", capsys)


@pytest.mark.parametrize("module", ["my_views", "my_package.torch", "unmask.methods.gone", None])
def test_other_modules_keep_their_error(module: str | None) -> None:
    with pytest.raises(ModuleNotFoundError), explain_missing_packages():
        raise ModuleNotFoundError("No module", name=module)
