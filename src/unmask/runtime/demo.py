"""The demonstration behind `make demo`: pre-train on generated pictures, then measure what was learned.

It types the two commands a user would, so what it prints is what they print.
"""

import logging
import subprocess
import sys
from datetime import datetime
from pathlib import Path

_log = logging.getLogger("unmask")
_PRETRAIN = "unmask.runtime.cli:run"
_EVALUATE = "unmask.runtime.cli:evaluate"


def main() -> None:
    """Runs both commands and says where the pictures and the report lie."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    out = Path("runs") / f"demo_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    pretrained, evaluated = out / "pretrain", out / "linear"
    checkpoint = pretrained / "checkpoints" / "last.ckpt"
    _run("run.py", _PRETRAIN, [f"hydra.run.dir={pretrained}"])
    _run("eval.py", _EVALUATE, ["eval=linear", f"ckpt_path={checkpoint}", f"hydra.run.dir={evaluated}"])
    _log.info(
        f"pictures: {pretrained / 'panels'} and {pretrained / 'loss_curve.png'}\n"
        f"report:   {evaluated / 'report.md'} and report.json\n"
        f"next:     .venv/bin/python run.py method=simmim model=swin_mini data=folder data.root=YOUR_IMAGES"
    )


def _run(script: str, command: str, overrides: list[str]) -> None:
    _log.info(f"\n$ python {script} {' '.join(overrides)}")
    module, function = command.split(":")
    code = f"from {module} import {function}; {function}()"
    finished = subprocess.run([sys.executable, "-c", code, *overrides], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


if __name__ == "__main__":
    main()
