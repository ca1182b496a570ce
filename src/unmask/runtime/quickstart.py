"""The demonstration behind `make demo`: pre-train on generated pictures, then measure what was learned.

It types the two commands a user would, so what it prints is what they print, and ends with a summary of their report.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

_log = logging.getLogger("unmask")
_PRETRAIN = "unmask.runtime.cli:run"
_EVALUATE = "unmask.runtime.cli:evaluate"
_PROBE_EPOCHS = 30


def main() -> None:
    """Runs both commands, then says what pre-training was worth and where pictures and report lie."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    out = Path("runs") / f"demo_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    pretrained, evaluated = out / "pretrain", out / "linear"
    checkpoint = pretrained / "checkpoints" / "last.ckpt"
    _run("run.py", _PRETRAIN, [f"hydra.run.dir={pretrained}"])
    probe = ["eval=linear", f"eval.epochs={_PROBE_EPOCHS}", f"ckpt_path={checkpoint}", f"hydra.run.dir={evaluated}"]
    _run("eval.py", _EVALUATE, probe)
    report = json.loads((evaluated / "report.json").read_text())
    panel = max((pretrained / "panels").glob("*.png"))
    _log.info(
        f"\n{summarize(report['reports'])}\n\n"
        f"reconstructions: {panel}\n"
        f"loss:            {pretrained / 'loss_curve.png'}\n"
        f"report:          {evaluated / 'report.md'}\n"
        f"next:            .venv/bin/python run.py method=mae model=vit_mini data=folder data.root=YOUR_IMAGES "
        f"image_size=64"
    )


def summarize(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Compares the pre-trained backbone with the untrained one, and says so if the intervals overlap."""
    trained, untrained = reports["checkpoint"]["metrics"], reports["random"]["metrics"]
    gain = trained["top1"] - untrained["top1"]
    if trained["top1_ci95_low"] > untrained["top1_ci95_high"]:
        verdict = f"Pre-training without labels gains {gain:.1f} points here."
    elif gain > 0:
        verdict = f"The gain of {gain:.1f} points is not certain: the 95 % intervals overlap."
    else:
        verdict = f"Pre-training gained nothing here: {gain:.1f} points."
    num_test = reports["checkpoint"]["num_test_images"]
    return (
        f"linear probe on frozen features, top-1 in percent with 95 % interval, {num_test:,} test pictures:\n"
        f"  pre-trained  {_describe(trained)}\n"
        f"  untrained    {_describe(untrained)}\n"
        f"{verdict}"
    )


def _describe(metrics: Mapping[str, float]) -> str:
    return f"{metrics['top1']:.1f} [{metrics['top1_ci95_low']:.1f}, {metrics['top1_ci95_high']:.1f}]"


def _run(script: str, command: str, overrides: list[str]) -> None:
    _log.info(f"\n$ python {script} {' '.join(overrides)}")
    module, function = command.split(":")
    code = f"from {module} import {function}; {function}()"
    finished = subprocess.run([sys.executable, "-c", code, *overrides], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


if __name__ == "__main__":
    main()
