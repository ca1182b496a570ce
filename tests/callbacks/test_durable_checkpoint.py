"""A checkpoint under its name is whole, whatever happens while it is written."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import errno
import logging
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer


@pytest.fixture
def writer() -> Any:
    from unmask.callbacks.durable_checkpoint import DurableCheckpointIO

    return DurableCheckpointIO()


def checkpoint(step: int, *, size: int = 1000) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": torch.full((size,), float(step))}, "optimizer_states": []}


def steps(folder: Path) -> dict[str, int]:
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in sorted(folder.iterdir())}


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Lets writing fail in the middle of a file, as a disk that runs full does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_replaced_last_checkpoint_stays_beside_it(writer: Any, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        writer.save_checkpoint(checkpoint(step), tmp_path / "last.ckpt")
        writer.save_checkpoint(checkpoint(step), tmp_path / "best.ckpt")

    assert steps(tmp_path) == {"best.ckpt": 3, "last-previous.ckpt": 2, "last.ckpt": 3}


def test_it_stays_on_a_disk_without_hard_links(writer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    for step in (1, 2):
        writer.save_checkpoint(checkpoint(step), tmp_path / "last.ckpt")

    assert steps(tmp_path) == {"last-previous.ckpt": 1, "last.ckpt": 2}


@pytest.mark.parametrize("is_known_before", [True, False])
def test_a_full_disk_costs_the_new_checkpoint_and_not_the_old_one(
    is_known_before: bool, writer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    big = checkpoint(2, size=2**20)  # 4 MiB
    writer.save_checkpoint(checkpoint(1), tmp_path / "last.ckpt")
    if is_known_before:
        monkeypatch.setattr("unmask.callbacks.durable_checkpoint._free_bytes", lambda folder: 3 * 2**20)
        writer.save_checkpoint(big, tmp_path / "last.ckpt")
    else:
        with largest_file(2**20):
            writer.save_checkpoint(big, tmp_path / "last.ckpt")

    assert steps(tmp_path) == {"last.ckpt": 1}  # and no temporary file
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "last.ckpt could not be written at step 2" in record.message
    assert "it needs 4.0 MiB and " in record.message
    assert not is_known_before or "3.0 MiB are free" in record.message
    assert writer.reason_to_stop is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT, errno.ESTALE, errno.EACCES])
def test_a_disk_that_is_lost_costs_the_new_checkpoint_alone(
    number: int, writer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Neither are older files removed, as where a run keeps its three best ones."""
    for step in (1, 2):
        writer.save_checkpoint(checkpoint(step), tmp_path / f"best-{step}.ckpt")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as lost:
        lost.setattr(Path, "open", refuse)
        if number == errno.EDQUOT:
            lost.setattr("unmask.callbacks.durable_checkpoint._free_bytes", lambda folder: 2**40)
        writer.save_checkpoint(checkpoint(3), tmp_path / "best-3.ckpt")
        writer.remove_checkpoint(tmp_path / "best-1.ckpt")
    assert steps(tmp_path) == {"best-1.ckpt": 1, "best-2.ckpt": 2}
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert f"best-3.ckpt could not be written at step 3 ({os.strerror(number)})" in record.message
    assert ("it needs 0.0 MiB and 1048576.0 MiB are free" in record.message) is (number == errno.EDQUOT)

    writer.save_checkpoint(checkpoint(4), tmp_path / "best-4.ckpt")
    with monkeypatch.context() as lost:
        lost.setattr("lightning.fabric.plugins.io.torch_io.get_filesystem", refuse)
        writer.remove_checkpoint(tmp_path / "best-1.ckpt")  # a warning
    writer.remove_checkpoint(tmp_path / "best-2.ckpt")
    assert steps(tmp_path) == {"best-1.ckpt": 1, "best-4.ckpt": 4}


def test_a_disk_that_is_gone_is_told_without_its_size(
    writer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def gone(folder: Path) -> int:
        raise OSError(errno.ENOENT, "No such file or directory", str(folder))

    (tmp_path / "checkpoints").write_text("a file in the folder's place")
    writer.save_checkpoint(checkpoint(1), tmp_path / "checkpoints" / "last.ckpt")
    monkeypatch.setattr("unmask.callbacks.durable_checkpoint._free_bytes", gone)
    monkeypatch.setattr("unmask.callbacks.durable_checkpoint._NO_ROOM", (errno.ENOENT,))
    writer.save_checkpoint(checkpoint(2), tmp_path / "last.ckpt")
    first, second = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert f"in {tmp_path}/checkpoints; the files before it are kept" in first
    assert f"it needs 0.0 MiB in {tmp_path}; the files before it are kept" in second


def test_only_three_steps_without_a_file_in_a_row_end_a_run(writer: Any, tmp_path: Path) -> None:
    from unmask.callbacks.stopping import MachineFailed

    def fail(step: int, name: str = "last.ckpt") -> None:
        with largest_file(2**20):
            writer.save_checkpoint(checkpoint(step, size=2**20), tmp_path / name)

    for name in ("best.ckpt", "epoch_0001.ckpt", "last.ckpt"):  # of one step
        fail(1, name)
    fail(2)
    writer.save_checkpoint(checkpoint(3), tmp_path / "last.ckpt")
    fail(4)
    fail(5)
    assert writer.reason_to_stop is None
    fail(6)
    assert isinstance(writer.reason_to_stop, MachineFailed)
    assert writer.reason_to_stop.exit_code == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["state_dict", "optimizer_states"])
def test_weights_that_are_not_finite_are_never_written(bad: float, part: str, writer: Any, tmp_path: Path) -> None:
    from unmask.callbacks.stopping import NumbersFailed

    writer.save_checkpoint(checkpoint(1), tmp_path / "last.ckpt")
    spoilt = checkpoint(2)
    values = torch.tensor([0.0, bad])
    spoilt[part] = {"decoder": values} if part == "state_dict" else [{"state": {0: {"exp_avg": values}}}]
    writer.save_checkpoint(spoilt, tmp_path / "last.ckpt")

    assert steps(tmp_path) == {"last.ckpt": 1}
    assert isinstance(writer.reason_to_stop, NumbersFailed)
    assert ("decoder" if part == "state_dict" else "exp_avg") in str(writer.reason_to_stop)


def test_every_way_to_damage_a_file_is_found(writer: Any, tmp_path: Path) -> None:
    from unmask.callbacks.durable_checkpoint import find_damage

    path = tmp_path / "last.ckpt"
    writer.save_checkpoint(checkpoint(1), path)
    whole = path.read_bytes()
    assert find_damage(path) is None
    draw = random.Random(0)
    for length in [draw.randrange(1, len(whole)) for _ in range(10)]:
        path.write_bytes(whole[:length])
        assert "is truncated" in str(find_damage(path)), length
    weights_at = whole.index(torch.full((1000,), 1.0).numpy().tobytes())
    for position in [weights_at, weights_at + 3999, weights_at + 1234]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        assert "does not match its checksum" in str(find_damage(path)), position
    path.write_bytes(b"")
    assert find_damage(path) == "is empty"
    path.unlink()
    assert find_damage(path) == "does not exist"
    path.symlink_to("gone.ckpt")
    assert find_damage(path) == "leads to gone.ckpt, which does not exist"


def _write_for_ever(folder: Path) -> None:
    from unmask.callbacks.durable_checkpoint import DurableCheckpointIO

    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork: a second one would be waited for without end
    writer, step = DurableCheckpointIO(), 0
    while True:
        step += 1
        writer.save_checkpoint(checkpoint(step, size=2**20), folder / "last.ckpt")


def _kill_while_writing(folder: Path, kills: int, seed: int) -> int:
    """Kills a process that writes checkpoints, again and again; checks what it leaves. Counts partial files met."""
    from unmask.atomic_write import remove_partial
    from unmask.callbacks.durable_checkpoint import find_damage

    draw, partial, newest = random.Random(seed), 0, 0
    for _ in range(kills):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(folder,))
        process.start()
        deadline = time.monotonic() + 60.0
        while not (folder / "last.ckpt").exists():
            assert process.is_alive()
            assert time.monotonic() < deadline, "no checkpoint was written within a minute"
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.15))
        process.kill()
        process.join()
        files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        assert "last.ckpt" in files
        assert [name for name in files if find_damage(folder / name)] == []
        found = steps_of_whole_files(folder)
        assert found["last.ckpt"] >= 1
        newest += found["last.ckpt"]
        partial += len(remove_partial(folder))
        assert sorted(path.name for path in folder.iterdir()) == files
    return partial


def steps_of_whole_files(folder: Path) -> dict[str, int]:
    named = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in named}


def test_a_process_killed_while_writing_leaves_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/shm")  # another disk, from where Lightning's own writer would copy
    _kill_while_writing(tmp_path, kills=10, seed=0)


@pytest.mark.nightly
def test_a_hundred_kills_leave_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    partial = _kill_while_writing(tmp_path, kills=100, seed=1)
    print(f"partial files swept: {partial}")  # noqa: T201
    assert partial > 0  # some were hit while writing


class _FullDisk(Callback):
    """Lets the disk be full at some optimizer steps."""

    def __init__(self, steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.monkeypatch = steps, monkeypatch

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        free = 0 if trainer.global_step in self.steps else 2**40
        self.monkeypatch.setattr("unmask.callbacks.durable_checkpoint._free_bytes", lambda folder: free)


def test_a_run_goes_on_while_the_disk_is_full_and_ends_at_the_third_time(
    fit: Callable[..., Trainer], writer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.callbacks.durable_checkpoint import DurableCheckpointIO
    from unmask.callbacks.last_checkpoint import LastCheckpoint
    from unmask.callbacks.stopping import MachineFailed

    def train(full_at: set[int], plugin: Any) -> Trainer:
        callbacks = [_FullDisk(full_at, monkeypatch), LastCheckpoint(dirpath=tmp_path)]
        return fit(*callbacks, max_epochs=5, plugins=[plugin], enable_checkpointing=True)

    assert train({6, 12, 24}, writer).global_step == 30
    assert steps(tmp_path) == {"last-previous.ckpt": 18, "last.ckpt": 30}
    with pytest.raises(MachineFailed, match="failure 3 in a row; make room and resume"):
        train({6, 12, 18, 24}, DurableCheckpointIO())
    assert steps(tmp_path)["last.ckpt"] == 30  # of the run before


def test_partial_files_of_others_are_not_touched(tmp_path: Path) -> None:
    from unmask.atomic_write import remove_partial

    for name in ("notes.partial.ckpt", ".hidden", f".last.{os.getpid()}.partial.ckpt"):
        (tmp_path / name).write_text("")
    assert [path.name for path in remove_partial(tmp_path)] == [f".last.{os.getpid()}.partial.ckpt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "notes.partial.ckpt"]
