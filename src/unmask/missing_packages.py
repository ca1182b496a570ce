"""What to install where Python lacks a package that every command needs.

Imports nothing but Python's own modules, so that it can be imported where nothing is installed.
"""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REQUIRED = {  # modules, and what they are called where they are installed from
    "PIL": "pillow",
    "bokeh": "bokeh",
    "filelock": "filelock",
    "fsspec": "fsspec",
    "huggingface_hub": "huggingface-hub",
    "hydra": "hydra-core",
    "jaxtyping": "jaxtyping",
    "lightning": "lightning",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "omegaconf": "omegaconf",
    "rich": "rich",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "simplejpeg": "simplejpeg",
    "tensorboard": "tensorboard",
    "timm": "timm",
    "torch": "torch",
    "torchmetrics": "torchmetrics",
    "torchvision": "torchvision",
    "unmask": "unmask",
    "wandb": "wandb",
    "yaml": "pyyaml",
}
_ROOT = Path(__file__).absolute().parents[2]  # of the repository; elsewhere in an installed copy
_EXIT_CODE = 2  # of what the user can mend


@contextmanager
def explain_missing_packages() -> Iterator[None]:
    """Ends the program with one sentence where a required package is not installed; other modules' errors are kept."""
    try:
        yield
    except ModuleNotFoundError as error:
        sentence = name_missing_package(error)
        if sentence is None:
            raise
        sys.stderr.write(f"error: {sentence}\n")
        sys.exit(_EXIT_CODE)


def name_missing_package(error: BaseException) -> str | None:
    """Says what to install where an error, or one it was raised from, is that a required package is not there."""
    cause: BaseException | None = error
    while cause is not None:
        module = (cause.name or "") if isinstance(cause, ModuleNotFoundError) else ""
        package = module.partition(".")[0]
        if package in _REQUIRED and not module.startswith("unmask."):  # those are a defect of this program
            return _say_what_to_install(_REQUIRED[package])
        cause = cause.__cause__ or cause.__context__
    return None


def _say_what_to_install(missing: str) -> str:
    lacks = f"{sys.executable} has no package {missing}, which is needed"
    pip = [sys.executable, "-m", "pip", "install"]
    if not (_ROOT / "pyproject.toml").is_file():
        return f"{lacks}; install it by {shlex.join([*pip, missing])}"
    own = _ROOT / ".venv/bin/python"
    if own.exists() and Path(sys.prefix) != own.parents[1]:
        return f"{lacks}; start this with {shlex.quote(str(own))}, the Python of this repository"
    make = shlex.join(["make", "-C", str(_ROOT), ".venv/installed"])
    return (
        f"{lacks}; install everything into this Python by {shlex.join([*pip, '-e', str(_ROOT)])}, or into one of its "
        f"own by {make}, and start this with {shlex.quote(str(own))}"
    )
