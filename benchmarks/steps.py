"""What a training step takes: time and peak memory."""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[], Any]
_STEPS_OF_MEMORY = 3


def wait_for(device: torch.device) -> None:
    """Returns when a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(step: Step, settings: argparse.Namespace, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Milliseconds a step, by `settings.steps` of them on `settings.device`."""
    device = torch.device(settings.device)
    wait_for(device)
    start = clock()
    for _ in range(settings.steps):
        step()
    wait_for(device)
    return 1e3 * (clock() - start) / settings.steps


def peak_memory(make_step: Callable[[], Step], settings: argparse.Namespace, *, start_method: str = "spawn") -> float:
    """MiB of a process of its own: on a GPU what tensors took, on a CPU what three steps added to the process.

    Args:
        make_step: Can be pickled, such as a `functools.partial` of a module's function.
        settings: With the `device`.
        start_method: Of `multiprocessing`; "forkserver" imports what the script does only once.
    """
    with multiprocessing.get_context(start_method).Pool(1) as pool:
        return pool.apply(_measure_memory, (make_step, settings.device))


def _measure_memory(make_step: Callable[[], Step], device: str) -> float:
    step = make_step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(_STEPS_OF_MEMORY):
        step()
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
