"""Real runs of one and two processes that are asked to stop, killed and begun twice."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
TINY = ["method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=2", "method.decoder.embed_dim=24"]
TINY += ["method.decoder.depth=1", "method.decoder.num_heads=3", "data.num_train=64", "data.num_val=8"]
TINY += ["data.num_test=8", "global_batch_size=8", "trainer.accelerator=cpu", "trainer.precision=32-true"]
TINY += ["callbacks.reconstruction=null", "logger=csv", "schedule=constant"]
TWO = ["trainer.devices=2", "trainer.strategy=ddp"]
FILES = ["data=folder", *(setting for setting in TINY if not setting.startswith("data."))]
LONGEST_STOP, LONGEST_END = 30, 60  # seconds


def command(*overrides: str, settings: Sequence[str] = TINY, script: Path = ROOT / "run.py") -> list[str]:
    return [sys.executable, str(script), *settings, "hydra.run.dir=run", *overrides]


@contextmanager
def started(
    folder: Path, *overrides: str, settings: Sequence[str] = TINY, script: Path = ROOT / "run.py"
) -> Iterator[subprocess.Popen[str]]:
    """A run in a process group of its own that has written its first checkpoint; nothing of it outlives the test."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(
        command(*overrides, settings=settings, script=script), cwd=folder, env=environment, **pipes
    )
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


def until(is_so: Callable[[], bool], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.05)


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


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Pictures in files, which two workers read."""
    generator = torch.Generator().manual_seed(0)
    (folder := tmp_path / "pictures").mkdir()
    for number in range(72):
        pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number:02}.png")
    return [f"data.root={folder}", "image_size=32", "data.num_workers=2", "trainer.max_epochs=5000"]


def workers_of(pid: int) -> list[int]:
    """The processes forked from one, once there are some."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        own = Path(f"/proc/{pid}/cmdline").read_bytes()
        if forked := [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_bytes() == own]:
            return forked
        time.sleep(0.05)
    raise AssertionError("no worker was started")


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "number", "said"),
    [
        ([], signal.SIGKILL, "a loader worker died "),
        (["data.worker_timeout=2"], signal.SIGSTOP, "a loader worker returned nothing for 2 s "),
        (TWO, signal.SIGKILL, "a loader worker died "),
    ],
)
def test_a_worker_that_dies_or_hangs_ends_the_run_in_one_sentence(
    overrides: list[str], number: signal.Signals, said: str, files: list[str], tmp_path: Path
) -> None:
    with started(tmp_path, *overrides, *files, settings=FILES) as process:
        reader = child_of(process) if overrides is TWO else process.pid
        os.kill(workers_of(reader)[0], number)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 4, errors
        assert members(process.pid) == []
    assert "Traceback" not in output + errors
    assert errors.count(said) == 1
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"
    if overrides is TWO:
        assert "error: process 1 of this run ended with exit code 4; its message stands above" in errors
    assert errors.strip().endswith("resume=auto")


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("target", ["first", "second"])
def test_a_process_that_is_killed_ends_the_others(target: str, tmp_path: Path) -> None:
    with started(tmp_path, *TWO, "trainer.max_epochs=5000") as process:
        killed = time.monotonic()
        os.kill(process.pid if target == "first" else child_of(process), signal.SIGKILL)
        output, errors = process.communicate(timeout=LONGEST_END)
        while members(process.pid):
            assert time.monotonic() - killed < LONGEST_END
            time.sleep(0.1)
        assert process.returncode == (-signal.SIGKILL if target == "first" else 4), errors
    assert "Traceback" not in output + errors
    if target == "second":
        assert errors.count("error: ") == errors.count("error: process 1 of this run was killed by SIGKILL\n") == 1
        assert errors.strip().endswith("resume=auto")
        status = json.loads((tmp_path / "run/status.json").read_text())
        assert (status["state"], status["reason"]) == ("failed", "process 1 of this run was killed by SIGKILL")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name"),
    [("shared_cores", "choose_waiting"), pytest.param("builders", "build_trainer", marks=pytest.mark.nightly)],
)
def test_a_process_that_still_begins_ends_with_the_first(module: str, name: str, tmp_path: Path) -> None:
    """The second is held before it imports torch, or right before it looks for the first."""
    script, held = tmp_path / "run.py", tmp_path / "held"
    script.write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "from unmask.runtime.cli import run\n"
        "def hold(*_, **__):\n"
        f"    Path({str(held)!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        f"if os.environ.get('LOCAL_RANK') == '1':\n"
        f"    import unmask.runtime.{module} as held\n    held.{name} = hold\n"
        "run()\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            command(*TWO, script=script), cwd=tmp_path, env=environment, stderr=said, start_new_session=True
        )
    try:
        until(held.exists, 180)
        assert members(process.pid) != [process.pid]
        process.kill()
        process.wait()
        until(lambda: members(process.pid) == [], LONGEST_END)
    finally:
        if members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "error: the first process of this run is gone; this one ends\n" in (tmp_path / "said").read_text()


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("target", ["first", "second"])
def test_a_process_that_is_frozen_ends_the_others(target: str, tmp_path: Path) -> None:
    script = tmp_path / "run.py"  # which Lightning starts again for the second process
    script.write_text(
        "import functools\nimport unmask.runtime.pretrain as pretrain\nfrom unmask.callbacks import first_process\n"
        "from unmask.runtime.cli import run\nfirst_process.FROZEN_SECONDS = 3\n"
        "pretrain.ProcessWatch = functools.partial(pretrain.ProcessWatch, frozen_seconds=3)\nrun()\n"
    )
    with started(tmp_path, *TWO, "trainer.max_epochs=5000", script=script) as process:
        second = child_of(process)
        os.kill(process.pid if target == "first" else second, signal.SIGSTOP)
        if target == "first":
            limit = time.monotonic() + LONGEST_END
            while second in members(process.pid):
                assert time.monotonic() < limit
                time.sleep(0.1)
            os.kill(process.pid, signal.SIGCONT)
        output, errors = process.communicate(timeout=LONGEST_END)
        assert process.returncode == 4, errors
        assert members(process.pid) == []
    assert "Traceback" not in output + errors
    who = "the first process" if target == "first" else "process 1"
    assert f"error: {who} of this run has been stopped (SIGSTOP) for 3 s" in errors
    assert errors.strip().endswith("resume=auto")


@pytest.mark.nightly
@pytest.mark.slow
def test_an_interrupted_run_stays_one_run_of_wandb_and_loses_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb_records: Callable[[Path], Iterator[Any]]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = ["logger=wandb", "trainer.log_every_n_steps=2", "trainer.max_epochs=5000"]
    with started(tmp_path, *settings) as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=LONGEST_STOP)
        assert process.returncode == 75, errors
    step = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    end = (step // 8 + 2) * 8
    with started(tmp_path, *settings, f"trainer.max_steps={end}", "resume=auto") as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    folders = sorted((tmp_path / "run/wandb").glob("offline-run-*"))
    assert len(folders) == 2
    records = [record for folder in folders for record in wandb_records(next(folder.glob("*.wandb")))]
    runs = {record.run.run_id for record in records if record.WhichOneof("record_type") == "run"}
    assert len(runs) == 1
    logged: Counter[tuple[str, int]] = Counter()
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            logged.update((key, int(row["trainer/global_step"])) for key in row if key.endswith("/loss"))
    expected = [("train/loss", step) for step in range(1, end, 2)] + [("val/loss", step) for step in range(7, end, 8)]
    assert logged == Counter(expected)
