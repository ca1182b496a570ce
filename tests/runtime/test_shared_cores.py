"""How threads wait is chosen by what else uses the cores, before torch is imported, and never against the user."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unmask.runtime import shared_cores

Busy = Callable[..., Path]


@pytest.fixture(autouse=True)
def _as_before_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The variables are unset and come back as they were."""
    before = dict(os.environ)
    for name in (*shared_cores.WAITING, "UNMASK_WAITING"):
        os.environ.pop(name, None)
    monkeypatch.delitem(sys.modules, "torch")
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Busy:
    """Makes two cores of this process, which are as busy as a test says, and a third one of others."""
    monkeypatch.setattr(shared_cores, "_own_cores", lambda: {0, 1})
    stat = tmp_path / "stat"

    def stand(times: int, fractions: tuple[float, ...]) -> None:
        lines = ["cpu  9 9 9 9 9 9 9 9 9 9"]
        for core, fraction in enumerate((*fractions, 1.0)):
            used = round(1000 * fraction) * times
            waited = round(1000 * (1 - fraction)) * times
            lines.append(f"cpu{core} {used // 2} 0 {used - used // 2} {waited // 2} {waited - waited // 2} 0 0 0 7 0")
        stat.write_text("\n".join([*lines, "intr 123"]))

    def be(*fractions: float) -> Path:
        stand(1, fractions)
        monkeypatch.setattr(shared_cores.time, "sleep", lambda _: stand(2, fractions))
        return stat

    return be


def test_on_shared_cores_threads_do_not_spin(busy: Busy) -> None:
    threads = os.environ.get("OMP_NUM_THREADS")
    shared_cores.choose_waiting(stat=busy(0.75, 0.5))
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"], os.environ["KMP_BLOCKTIME"]) == (
        "PASSIVE",
        "0",
        "0",
    )
    assert os.environ.get("OMP_NUM_THREADS") == threads  # sums depend on their number
    assert shared_cores.describe_waiting() == "waiting without spinning, since 1.2 of 2 cores were busy at the start"


def test_on_idle_cores_they_spin(busy: Busy) -> None:
    shared_cores.choose_waiting(stat=busy(0.1, 0.1))
    assert not any(name in os.environ for name in shared_cores.WAITING)
    assert shared_cores.describe_waiting() == "spinning while they wait"


@pytest.mark.parametrize("name", shared_cores.WAITING)
def test_what_the_user_has_set_stands(name: str, busy: Busy) -> None:
    os.environ[name] = "5"
    shared_cores.choose_waiting(stat=busy(1.0, 1.0))
    assert [os.environ.get(other) for other in shared_cores.WAITING] == [
        "5" if other == name else None for other in shared_cores.WAITING
    ]
    assert shared_cores.describe_waiting() == f"waiting as {name}=5 says"


def test_once_torch_is_there_nothing_is_chosen(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", object())
    shared_cores.choose_waiting(stat=busy(1.0, 1.0))
    assert "OMP_WAIT_POLICY" not in os.environ


def test_where_there_is_no_proc_nothing_is_chosen(tmp_path: Path) -> None:
    shared_cores.choose_waiting(stat=tmp_path / "absent")
    assert "OMP_WAIT_POLICY" not in os.environ


def test_it_is_chosen_before_torch_is_imported() -> None:
    found = """
import sys
import unmask.runtime.cli as cli
import unmask.runtime.shared_cores as shared_cores
def note():
    sys.exit("torch" in sys.modules)
shared_cores.choose_waiting = note
sys.argv[1:] = ["method=mae"]
cli.run()
"""
    assert subprocess.run([sys.executable, "-c", found], check=False, timeout=300).returncode == 0
