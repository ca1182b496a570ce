"""What logging costs of a training's time.

    python benchmarks/logging_cost.py [logger=wandb] [method=simmim model=swin_mini ...]

Trains 300 steps of MAE mini on generated pictures as `run.py` does, with csv, TensorBoard and an offline run of W&B,
and times what the loggers are handed at the end of a step, in CPU time of the training thread, against all of it.
Pictures, which are drawn between epochs, are left out.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from unmask.runtime.cli import run

OURS = ("method=mae", "model=vit_mini", "data=synthetic", "logger=wandb")
QUIET = ("callbacks.reconstruction=null", "callbacks.report=null", "callbacks.terminal_progress=null")
LENGTH = ("data.num_train=6400", "global_batch_size=64", "trainer.max_epochs=3", "trainer.limit_val_batches=0")


class Stopwatch:
    """CPU seconds of this thread within some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0

    def watch(self, owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **settings: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*arguments, **settings)
            finally:
                self.seconds += time.thread_time() - start
                self.calls += 1

        setattr(owner, name, timed)


def main() -> None:
    logging, whole = Stopwatch(), Stopwatch()
    for logger in (CSVLogger, TensorBoardLogger, WandbLogger):
        logging.watch(logger, "log_metrics")
        logging.watch(logger, "save")
    from lightning.pytorch.loops import _TrainingEpochLoop  # noqa: PLC0415

    whole.watch(_TrainingEpochLoop, "advance")
    os.environ.setdefault("WANDB_MODE", "offline")
    with tempfile.TemporaryDirectory() as folder:
        sys.argv[1:] = [*OURS, *LENGTH, *QUIET, f"hydra.run.dir={folder}/run", *sys.argv[1:]]
        run()
    print(
        f"{logging.calls} calls of loggers took {logging.seconds:.2f} of {whole.seconds:.2f} CPU seconds of "
        f"{whole.calls} steps: {logging.seconds / whole.seconds:.2%}"
    )


if __name__ == "__main__":
    main()
