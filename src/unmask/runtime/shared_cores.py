"""How OpenMP's threads wait for each other, chosen by what else the machine does.

Between two operations they spin, by default, which is fastest on cores of one's own and takes the cores from everyone
where others compute as well, this run's own threads included. Their number is not chosen: sums depend on it, so two
runs of one seed would differ by what else the machine did.
"""

import os
import sys
import time
from pathlib import Path

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # OpenMP's own, GNU's, LLVM's and Intel's
_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
_REASON = "UNMASK_WAITING"  # what was found, for the processes that this one starts
_LOOK = 0.1  # seconds that cores are looked at
_BUSY = 0.25  # of a core that others take, from which on cores count as shared
_IDLE_COLUMNS = (3, 4)  # of /proc/stat: idle, waiting for disks


def choose_waiting(*, stat: Path = Path("/proc/stat")) -> None:
    """Lets threads wait without spinning where other processes use this process's cores now.

    It is read when torch is imported, so it must be called before; afterwards, and where the user has set one of
    `WAITING`, it does nothing.
    """
    if "torch" in sys.modules or any(name in os.environ for name in WAITING):
        return
    busy = busy_cores(stat)
    if busy is not None and busy >= _BUSY:
        os.environ.update(_PASSIVE)
        os.environ[_REASON] = f"{busy:.1f} of {len(_own_cores())} cores were busy"


def describe_waiting() -> str:
    """Says how threads wait and why, for the plan of a run."""
    if _REASON in os.environ:
        return f"waiting without spinning, since {os.environ[_REASON]} at the start"
    given = [f"{name}={os.environ[name]}" for name in WAITING if name in os.environ]
    return f"waiting as {', '.join(given)} says" if given else "spinning while they wait"


def busy_cores(stat: Path) -> float | None:
    """Measures how many of this process's cores others use, over a tenth of a second; None where Linux is not asked."""
    before = _read(stat)
    if before is None:
        return None
    time.sleep(_LOOK)
    after = _read(stat) or {}
    return sum(_busy_fraction(before[core], after[core]) for core in before.keys() & after.keys())


def _busy_fraction(before: list[int], after: list[int]) -> float:
    passed = sum(after) - sum(before)
    idle = sum(after[column] - before[column] for column in _IDLE_COLUMNS)
    return max(0.0, 1.0 - idle / passed) if passed > 0 else 0.0


def _read(stat: Path) -> dict[int, list[int]] | None:
    """Time each of this process's cores has spent in each state since the machine started."""
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    own, found = _own_cores(), {}
    for line in lines:
        name, *columns = line.split()
        number = name.removeprefix("cpu")
        if name.startswith("cpu") and number.isdigit() and int(number) in own:
            found[int(number)] = [int(column) for column in columns[:8]]  # the rest is in these
    return found or None


def _own_cores() -> set[int]:
    return set(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else set()
