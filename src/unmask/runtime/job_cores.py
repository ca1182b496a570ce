"""Which cores of the processor a job of a sweep uses; kept light, since it must be settled before torch counts them."""

import os

CORES_SWITCH = "UNMASK_JOB_CORES"  # tells a job's process the processor cores it may use


def use_cores() -> None:
    """Keeps this process, and those it starts, to the cores the sweep has given it; does nothing without any."""
    cores = os.environ.get(CORES_SWITCH)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
