"""Runs whose processes torchrun, SLURM or a user on every machine has started."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=2", "method.decoder.embed_dim=24"]
TINY += ["method.decoder.depth=1", "method.decoder.num_heads=3", "data.num_train=16", "data.num_val=8"]
TINY += ["data.num_test=8", "global_batch_size=8", "trainer.accelerator=cpu", "trainer.precision=32-true"]
TINY += ["callbacks.reconstruction=null", "schedule=constant", "strategy=ddp", "trainer.devices=1"]
CPU = ["trainer.accelerator=cpu", "logger=none", "callbacks=none", "name=x", "paths.run_dir=x"]


def torchrun_starts(processes: int, monkeypatch: pytest.MonkeyPatch, *, port: int = 1) -> None:
    told = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": str(processes)}
    for name, value in {**told, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)


def test_processes_of_torchrun_share_the_folder_that_the_first_has_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import TCPStore

    from unmask.runtime.resolvers import run_folder

    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchrun_starts(2, monkeypatch, port=agent.port)
    assert [run_folder("never", now, 1) for now in ("12-00", "12-01", "12-02")] == ["12-00"] * 3
    assert run_folder("auto", "12-03", 1) == "auto"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert [run_folder("never", now, 2) for now in ("13-00", "13-01")] == ["13-00"] * 2


def test_processes_of_torchrun_without_its_store_need_the_folders_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.runtime.resolvers import run_folder

    torchrun_starts(2, monkeypatch)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    with pytest.raises(ValueError, match=r"choose one that all of them see by hydra\.run\.dir=DIR"):
        run_folder("never", "12-00", 1)


def test_processes_that_cannot_agree_on_a_folder_need_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.runtime.resolvers import run_folder

    assert run_folder("never", "12-00", 1) == "12-00"
    with pytest.raises(ValueError, match=r"choose one that all of them see by hydra\.run\.dir=DIR"):
        run_folder("never", "12-00", 2)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(ValueError, match="Use `--ntasks-per-node=2` instead"):
        run_folder("never", "12-00", 1)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    with pytest.raises(ValueError, match=r"hydra\.run\.dir=DIR"):
        run_folder("never", "12-00", 1)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert run_folder("never", "12-00", 1) == "12-00"


@pytest.mark.parametrize(("variable", "name"), [("WORLD_SIZE", "torchrun"), ("SLURM_NTASKS", "SLURM")])
def test_processes_that_would_each_do_the_whole_run_are_refused(
    variable: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.runtime.builders import build_trainer
    from unmask.runtime.config import compose_config

    config = compose_config("run", CPU)
    if name == "torchrun":
        torchrun_starts(4, monkeypatch)
    monkeypatch.setenv(variable, "4")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    with pytest.raises(ValueError, match=rf"{name} has started 4 processes, and .*=1 .*=1 make 1; .* N x M = 4"):
        build_trainer(config, callbacks=[])
    monkeypatch.setenv(variable, "1")
    assert build_trainer(config, callbacks=[]).world_size == 1


def test_the_first_process_of_another_machine_leaves_the_folder_to_the_first_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    from unmask.runtime.run_folder import locked
    from unmask.runtime.started_processes import tell_machine

    monkeypatch.setattr(rank_zero_only, "rank", 0)
    monkeypatch.setenv("NODE_RANK", "1")
    with locked(tmp_path):
        tell_machine(num_nodes=1)  # the machine's number is of something else
        with pytest.raises(ValueError, match="is in use"), locked(tmp_path):
            pass
        tell_machine(num_nodes=2)
        with locked(tmp_path):
            pass
        assert (tmp_path / "running.json").exists()


def test_what_torchrun_started_goes_on_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.runtime.cli import _launcher

    monkeypatch.setattr("sys.orig_argv", [".venv/bin/python", "run.py"])
    assert _launcher() == [".venv/bin/python"]
    torchrun_starts(4, monkeypatch)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    assert _launcher() == ["torchrun", "--nproc-per-node=2"]
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert _launcher() == ["torchrun", "--nnodes=2", "...", "--nproc-per-node=2"]


@pytest.mark.nightly
@pytest.mark.slow
def test_two_machines_make_one_run_which_goes_on(tmp_path: Path) -> None:
    """Two agents of torchrun that find each other, and two programs that a user has told their number."""
    own = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=1"]
    _on_two_machines(tmp_path, [*own, f"--rdzv-endpoint=127.0.0.1:{_free_port()}"], "trainer.max_epochs=1")
    (folder,) = (tmp_path / "runs" / "mae_vit_mini_synthetic").iterdir()
    assert _steps(folder) == [1]
    refused = _on_two_machines(tmp_path, [], "trainer.max_epochs=1", code=2)
    assert all("hydra.run.dir=DIR" in said for said in refused)
    go_on = [f"hydra.run.dir={folder}", "resume=auto", "trainer.max_epochs=2"]
    first, second = _on_two_machines(tmp_path, [], *go_on)
    assert f"resumed from {folder / 'checkpoints' / 'last.ckpt'} (step 2" in first
    assert "1 x CPU on each of 2 machines" in first
    assert "epoch" not in second
    assert _steps(folder) == [1, 3]
    assert (folder / "run.log").read_text().count("backbone exported") == 2
    assert len(list((tmp_path / "runs").rglob("last.ckpt"))) == 1


def _on_two_machines(folder: Path, launcher: list[str], *overrides: str, code: int = 0) -> list[str]:
    """What each of two machines, which are this one, prints."""
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(ROOT / "run.py"), *TINY, "trainer.num_nodes=2", *overrides]
    programs = [
        subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **({} if launcher else together), "NODE_RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [program.communicate(timeout=250)[0] for program in programs]
    finally:
        for program in programs:
            program.kill()
    assert [program.returncode for program in programs] == [code] * 2, said
    return said


def _steps(folder: Path) -> list[int]:
    """The steps of the epochs' ends."""
    with (folder / "csv" / "metrics.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("val/loss")]
    return [int(row["step"]) for row in rows]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
