"""How long a user waits: for `run.py --help`, for a press of the tab key, and for the first step of the quickstart.

    python benchmarks/start.py [--rounds 5]

Each is a process of its own, timed from its start to its end, or to the end of the first training step, after one that
is not counted, which keeps what the next ones read (`constructor_defaults.json`). Wall and CPU seconds: on a machine
with other work the first are longer, the second hardly.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from turns import spread, take_turns

RUN = Path(__file__).resolve().parents[1] / "run.py"
TYPED = "run.py method=simm"
FIRST_STEP = """
import os
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from unmask.runtime.cli import run

advance = _TrainingEpochLoop.advance

def make_one_step_and_end(*arguments, **settings):
    advance(*arguments, **settings)
    os._exit(0)

_TrainingEpochLoop.advance = make_one_step_and_end
run()
"""


class Command(NamedTuple):
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = {}


class Seconds(NamedTuple):
    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each command")
    settings = parser.parse_args()
    completion = {"COMP_LINE": TYPED, "COMP_POINT": str(len(TYPED))}
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "`run.py --help`": Command((str(RUN), "--help")),
            "a press of the tab key": Command((str(RUN), "-sc", "query=bash"), completion),
            "first step of the quickstart": Command(("-c", FIRST_STEP, f"hydra.run.dir={folder}/${{now:%H%M%S%f}}")),
        }
        seconds = take_turns(commands, timed, rounds=settings.rounds)
    print("| what | wall s | CPU s |\n|---|---|---|")
    for name, found in seconds.items():
        print(f"| {name} | {spread([one.wall for one in found])} | {statistics.median(one.cpu for one in found):.2f} |")


def timed(command: Command) -> Seconds:
    used, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *command.arguments],
        env={**os.environ, **command.environment},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    wall, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(wall, now.ru_utime - used.ru_utime + now.ru_stime - used.ru_stime)


if __name__ == "__main__":
    main()
