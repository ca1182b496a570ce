"""Real runs of one and two processes that are asked to stop, killed and begun twice."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TINY = ["method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=2", "method.decoder.embed_dim=24"]
TINY += ["method.decoder.depth=1", "method.decoder.num_heads=3", "data.num_train=64", "data.num_val=8"]
TINY += ["data.num_test=8", "global_batch_size=8", "trainer.accelerator=cpu", "trainer.precision=32-true"]
TINY += ["callbacks.reconstruction=null", "logger=csv", "schedule=constant"]
TWO = ["trainer.devices=2", "trainer.strategy=ddp"]
LONGEST_STOP = 30  # seconds


def command(*overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *TINY, "hydra.run.dir=run", *overrides]


@contextmanager
def started(folder: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a process group of its own that has written its first checkpoint; nothing of it outlives the test."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command(*overrides), cwd=folder, env=environment, **pipes)
    try:
        limit = time.monotonic() + 120
        while not (folder / "run/checkpoints/last.ckpt").exists() and process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.05)
        yield process
    finally:
        if members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def members(group: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def child_of(process: subprocess.Popen[str]) -> int:
    (child,) = [
        pid
        for pid in members(process.pid)
        if "train_ddp_process_1" in (Path("/proc") / str(pid) / "cmdline").read_text(errors="replace")
        and int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1]) == process.pid
    ]
    return child


def final_weights(folder: Path) -> str:
    content = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    weights = [*content["state_dict"].values(), content["optimizer_states"][0]["state"][0]["exp_avg"]]
    return hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in weights)).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "target", "number"),
    [
        ([], "group", signal.SIGINT),
        (TWO, "group", signal.SIGTERM),
        (TWO, "first", signal.SIGTERM),
        (TWO, "second", signal.SIGUSR1),
    ],
)
def test_a_run_asked_to_stop_saves_and_says_how_to_go_on(
    overrides: list[str], target: str, number: signal.Signals, tmp_path: Path
) -> None:
    with started(tmp_path, *overrides, "trainer.max_epochs=5000") as process:
        asked = time.monotonic()
        if target == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid if target == "first" else child_of(process), number)
        output, errors = process.communicate(timeout=LONGEST_STOP)
        assert time.monotonic() - asked < LONGEST_STOP
        assert process.returncode == 75, errors
        assert members(process.pid) == []

    step = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    name = "a signal to another process" if target == "second" else number.name
    assert f"stopped by {name} at step {step}, saved as " in errors
    assert errors.count("go on with:") == 1
    assert "Traceback" not in output + errors
    assert errors.strip().endswith(f"trainer.max_epochs=5000 hydra.run.dir={tmp_path / 'run'} resume=auto")
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["step"]) == ("preempted", step)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], pytest.param(TWO, marks=pytest.mark.nightly)])
def test_a_killed_run_goes_on_bit_for_bit(overrides: list[str], tmp_path: Path) -> None:
    (whole := tmp_path / "whole").mkdir()
    (parts := tmp_path / "parts").mkdir()
    settings = [*overrides, "trainer.max_epochs=3", "checkpoint_every_minutes=0.001"]
    with started(whole, *settings) as process:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    with started(parts, *settings) as process:
        os.killpg(process.pid, signal.SIGKILL)
    with started(parts, *settings, "resume=auto") as process:
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors

    assert "resumed from " in output
    assert final_weights(whole) == final_weights(parts)
    assert json.loads((parts / "run/status.json").read_text())["state"] == "complete"


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with started(tmp_path, "trainer.max_epochs=5000") as first:
        second = subprocess.run(
            command("resume=auto"), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert second.returncode == 2
        assert f"in use by a run of process {first.pid} on " in second.stderr
        assert first.poll() is None
        assert (tmp_path / "run/running.json").exists()
