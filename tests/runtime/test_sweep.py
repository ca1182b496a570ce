"""Sweeps in processes as users start them: of failing jobs, of several devices, of odd overrides."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

ROOT = Path(__file__).parents[2]
TINY = ["method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=2", "method.decoder.embed_dim=24"]
TINY += ["method.decoder.depth=1", "method.decoder.num_heads=3", "data.num_train=16", "data.num_val=8"]
TINY += ["data.num_test=8", "global_batch_size=8", "trainer.accelerator=cpu", "trainer.precision=32-true"]
TINY += ["callbacks.reconstruction=null", "logger=csv", "schedule=constant", "trainer.max_epochs=1"]
FAULT = """
import os, signal, sys
from pathlib import Path
from lightning import Callback

class Fault(Callback):
    def __init__(self, *, kind, note=""):
        self.kind = kind

    def on_train_epoch_end(self, trainer, pl_module):
        if self.kind == "orphan" and trainer.current_epoch == 1 and Path("armed").exists():
            Path("armed").unlink()
            os.kill(os.getppid(), signal.SIGKILL)
        if self.kind == "requeue" and trainer.current_epoch == 1 and Path("armed").exists():
            Path("armed").unlink()
            os.kill(os.getppid(), signal.SIGUSR2)  # as SLURM does before the time is over

    def on_train_start(self, trainer, pl_module):
        {
            "none": lambda: None,
            "orphan": lambda: None,
            "requeue": lambda: None,
            "exit": lambda: sys.exit("enough"),
            "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "numbers": lambda: next(pl_module.parameters()).data.fill_(float("nan")),
            "setting": lambda: int("seven"),
            "stop": lambda: os.kill(os.getpid(), signal.SIGTERM),
            "spoil": lambda: Path("conf/experiment/mine.yaml").write_text("no: [configuration"),
            "wait": lambda: None if Path("ready").exists() else int("not ready"),
        }[self.kind]()
"""


def sweep(folder: Path, *overrides: str, program: str = "run.py") -> subprocess.CompletedProcess[str]:
    (folder / "fault.py").write_text(FAULT)
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, str(ROOT / program), "-m", *overrides, "hydra.sweep.dir=out"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "sweep.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def status(folder: Path, job: int) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "out" / str(job) / "status.json").read_text())
    return content


@pytest.mark.slow
def test_failing_jobs_leave_the_others_alone_and_are_all_accounted_for(tmp_path: Path) -> None:
    kinds = {"setting": 2, "numbers": 3, "exit": 1, "kill": -9, "none": 0}
    faults = "+callbacks.fault={_target_:fault.Fault,kind:none}"
    done = sweep(tmp_path, *TINY, faults, f"+kind={','.join(kinds)}", "callbacks.fault.kind=${kind}")

    assert done.returncode == 5, done.stderr
    jobs = rows(tmp_path)
    assert {job["overrides"].split("+kind=")[1].split()[0]: int(job["exit_code"]) for job in jobs} == kinds
    assert [job["state"] for job in jobs] == ["failed"] * 4 + ["complete"]
    sentences = ["'seven'", "is not finite", "left by sys.exit('enough')", "killed by SIGKILL"]
    for number, sentence in enumerate(sentences):
        assert sentence in jobs[number]["sentence"]
        assert sentence in done.stdout.partition("1 of 5 jobs complete")[2]
        assert status(tmp_path, number)["state"] == "failed"
        assert not (tmp_path / "out" / str(number) / "backbone.safetensors").exists()
    assert status(tmp_path, 4)["state"] == "complete"
    assert (tmp_path / "out" / "4" / "backbone.safetensors").exists()
    assert 0 < float(jobs[4]["value"]) < 10
    assert [job["value"] for job in jobs[:4]] == [""] * 4


@pytest.mark.slow
def test_two_devices_run_each_job_once_in_its_folder(tmp_path: Path) -> None:
    done = sweep(tmp_path, *TINY, "seed=0,1", "trainer=ddp", "trainer.devices=2")

    assert done.returncode == 0, done.stderr
    assert (
        sorted(path.parent.name for path in tmp_path.rglob("last.ckpt*") if path.name == "last.ckpt")
        == ["checkpoints"] * 2
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["0", "1", "jobs"]
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "multirun").exists()
    assert [job["state"] for job in rows(tmp_path)] == ["complete", "complete"]
    assert done.stdout.count("8 = 4 x 2 device(s)") == 2
    assert rows(tmp_path)[0]["value"] != rows(tmp_path)[1]["value"]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_job_asked_to_stop_ends_the_sweep_and_odd_overrides_break_no_path(tmp_path: Path) -> None:
    note = "it's/../a b,=" + "x" * 300
    quoted = note.replace("'", "\\'")
    fault = f"+callbacks.fault={{_target_:fault.Fault,kind:none,note:'{quoted}'}}"
    done = sweep(tmp_path, *TINY, fault, "callbacks.fault.kind=none,stop,exit")

    assert done.returncode == 75, done.stderr
    assert [job["state"] for job in rows(tmp_path)] == ["complete", "preempted", "waiting"]
    assert f"go on with:\n  {sys.executable} " in done.stderr
    assert "later jobs were not begun" in done.stderr
    assert "Traceback" not in done.stderr
    assert note in (tmp_path / "out" / "0" / ".hydra" / "config.yaml").read_text().replace("''", "'")


@pytest.mark.slow
def test_a_sweep_has_its_folder_to_itself(tmp_path: Path) -> None:
    from filelock import FileLock  # noqa: PLC0415

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "run.lock"):
        done = sweep(tmp_path, *TINY, "seed=0,1")
    assert done.returncode == 2
    assert "out is in use by another run; wait for its end, or choose another folder by hydra.sweep.dir=DIR" in (
        done.stderr
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run.lock"]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_sweep_goes_on_from_frozen_configurations_and_runs_again_what_has_not_ended_well(tmp_path: Path) -> None:
    own = tmp_path / "conf" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    text = "# @package _global_\ntrainer: {max_epochs: 1}\n"
    own.write_text(text)
    fault = "+callbacks.fault={_target_:fault.Fault,kind:none,note:null}"
    command = ["--config-dir", "conf", "experiment=mine", *TINY[:-1], fault, "callbacks.fault.note=${name}${seed}"]

    first = sweep(tmp_path, *command, "callbacks.fault.kind=spoil,wait")
    assert first.returncode == 5, first.stderr
    assert [job["state"] for job in rows(tmp_path)] == ["complete", "failed"]
    assert "not ready" in rows(tmp_path)[1]["sentence"]  # of its own, although its experiment no longer composes
    own.write_text(text)
    (tmp_path / "ready").touch()
    weights = tmp_path / "out" / "0" / "backbone.safetensors"
    written = weights.stat().st_mtime_ns

    again = sweep(tmp_path, *command, "callbacks.fault.kind=spoil,wait")
    assert again.returncode == 2
    assert "out holds an earlier sweep; continue it by resume=auto" in again.stderr

    known = tmp_path / "out" / "jobs" / "000001.json"  # from which no folder is taken: what lies in it is run as code
    known.write_text(json.dumps(json.loads(known.read_text()) | {"folder": str(tmp_path / "elsewhere")}))
    more = [*command, "callbacks.fault.kind=none,spoil,wait", "resume=auto", "hydra.launcher.n_jobs=2"]
    continued = sweep(tmp_path, *more)
    assert continued.returncode == 0, continued.stderr
    assert "1 job(s) ended well" in continued.stdout
    assert weights.stat().st_mtime_ns == written
    assert rows(tmp_path)[0]["overrides"].count(r"callbacks.fault.note=$\{name\}$\{seed\}") == 1  # not resolved
    kinds = [(job["number"], job["callbacks.fault.kind"], job["state"]) for job in rows(tmp_path)]
    assert kinds == [("0", "spoil", "complete"), ("1", "wait", "complete"), ("2", "none", "complete")]
    for job in (1, 2):  # two at once write apart
        assert "val/loss" in (tmp_path / "out" / str(job) / "output.log").read_text()
    assert 'href="2/report.html"' in (tmp_path / "out" / "sweep.html").read_text()


@pytest.mark.nightly
@pytest.mark.slow
def test_a_sweep_of_evaluations_goes_on_with_those_that_have_not_ended_well(tmp_path: Path) -> None:
    assert sweep(tmp_path, *TINY, "seed=0").returncode == 0
    trained = tmp_path / "out" / "0" / "checkpoints" / "last.ckpt"
    trained.parents[2].rename(tmp_path / "trained")
    trained = tmp_path / "trained" / "0" / "checkpoints" / "last.ckpt"
    measured = [
        "eval=knn",
        "eval.k=4",
        "eval.baseline=false",
        f"ckpt_path={trained},later.ckpt",
        "trainer.accelerator=cpu",
    ]

    first = sweep(tmp_path, *measured, program="eval.py")
    assert first.returncode == 5, first.stderr
    assert [job["state"] for job in rows(tmp_path)] == ["complete", "failed"]
    report = tmp_path / "out" / "0" / "report.json"
    written = report.stat().st_mtime_ns
    again = sweep(tmp_path, *measured, program="eval.py")
    assert again.returncode == 2
    assert "out holds an earlier sweep; continue it by resume=auto" in again.stderr

    shutil.copy(trained, tmp_path / "later.ckpt")
    continued = sweep(tmp_path, *measured, "resume=auto", program="eval.py")
    assert continued.returncode == 0, continued.stderr
    assert "1 job(s) ended well" in continued.stdout
    assert report.stat().st_mtime_ns == written
    assert [job["state"] for job in rows(tmp_path)] == ["complete"] * 2
    assert rows(tmp_path)[0]["value"] == rows(tmp_path)[1]["value"]


@pytest.mark.parametrize("command", [["run"], ["eval", "ckpt_path=x"]], ids=["run", "eval"])
def test_the_jobs_of_an_earlier_sweep_are_forgotten_by_no_command(command: list[str], tmp_path: Path) -> None:
    from omegaconf import OmegaConf  # noqa: PLC0415

    from unmask.runtime.config import compose_config  # noqa: PLC0415
    from unmask.runtime.job_outcome import JobOutcome, outcome_path, read_outcomes, write_outcome  # noqa: PLC0415
    from unmask.runtime.sweep import _may_continue  # noqa: PLC0415

    write_outcome(outcome_path(tmp_path, 0), JobOutcome(0, ["seed=0"], str(tmp_path / "0"), state="complete"))
    for resume, leaves in (("never", True), ("yes", True), ("auto", False), ("must", False)):
        chosen = compose_config(command[0], [*command[1:], f"resume={resume}"]).resume
        config = OmegaConf.create({"resume": chosen})
        if leaves:
            with pytest.raises(SystemExit):
                _may_continue(config, tmp_path)
        else:
            assert _may_continue(config, tmp_path)
    assert len(read_outcomes(tmp_path)) == 1
    assert not _may_continue(OmegaConf.create({"resume": "never"}), tmp_path / "new")


def test_an_evaluation_by_itself_is_told_that_it_does_not_resume() -> None:
    from omegaconf import OmegaConf  # noqa: PLC0415

    from unmask.runtime.cli import _evaluate_once  # noqa: PLC0415

    with pytest.raises(ValueError, match="one by itself is made again, leave it out"):
        _evaluate_once(OmegaConf.create({"resume": "auto"}))


@pytest.mark.nightly
@pytest.mark.slow
def test_a_study_killed_with_its_run_goes_on_and_a_run_that_promises_less_is_pruned(tmp_path: Path) -> None:
    fault = "+callbacks.fault={_target_:fault.Fault,kind:orphan}"
    pruner = "hydra.sweeper.pruner={_target_:optuna.pruners.ThresholdPruner,upper:1.5,n_warmup_steps:15}"
    command = [*TINY[:-1], "trainer.max_epochs=40", fault, "sweep=optuna", "optimizer.lr=choice(1e-3,1e-9)", pruner]
    command += ["hydra.sweeper.sampler={_target_:optuna.samplers.BruteForceSampler,seed:0}", "hydra.sweeper.n_trials=2"]
    (tmp_path / "armed").touch()

    assert sweep(tmp_path, *command).returncode == -9
    continued = sweep(tmp_path, *command, "resume=auto")
    assert continued.returncode == 0, continued.stderr
    assert "trial 0 was under way when the sweep ended; it is tried again" in continued.stdout
    assert f"resumed from {tmp_path / 'out' / '0' / 'checkpoints' / 'last.ckpt'}" in continued.stdout
    storage = f"sqlite:///{tmp_path / 'out' / 'study.db'}"
    trials = optuna.load_study(study_name="sweep", storage=storage).get_trials()
    states = optuna.trial.TrialState
    assert trials[0].state == states.FAIL
    ends = {trial.params["optimizer.lr"]: trial.state for trial in trials[1:]}
    assert ends == {"0.001": states.COMPLETE, "1e-09": states.PRUNED}
    found = {job["optimizer.lr"]: (job["number"], job["state"], job["exit_code"]) for job in rows(tmp_path)}
    assert {end[1:] for end in found.values()} == {("complete", "0"), ("pruned", "6")}
    assert {end[0] for end in found.values()} == {"0", "2"}  # the second trial took up the folder of the first
    assert status(tmp_path, int(found["1e-09"][0]))["state"] == "pruned"
    assert status(tmp_path, int(found["0.001"][0]))["epoch"] == 40
    assert (tmp_path / "out" / "sweep.html").stat().st_size < 5_000_000


@pytest.mark.nightly
@pytest.mark.slow
def test_a_job_of_submitit_that_is_preempted_saves_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    fault = "+callbacks.fault={_target_:fault.Fault,kind:requeue}"
    (tmp_path / "armed").touch()
    queue = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=30"]
    done = sweep(tmp_path, *TINY[:-1], "trainer.max_epochs=40", fault, "seed=3", *queue)

    assert done.returncode == 0, done.stderr
    (job,) = rows(tmp_path)
    assert (job["state"], job["exit_code"]) == ("complete", "0")
    log = (tmp_path / "out" / "0" / "run.log").read_text()
    assert "resumed from" in log
    assert log.count("epoch 40/40") == 1
    assert log.count("epoch 1/40") == 1


def test_a_job_that_slurm_started_is_no_part_of_a_larger_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.fabric.plugins.environments import SLURMEnvironment  # noqa: PLC0415

    from unmask.runtime.job_process import own_processes  # noqa: PLC0415

    assert own_processes({}) == {}
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert SLURMEnvironment.detect()
    for name, value in own_processes(os.environ).items():
        monkeypatch.setenv(name, value)
    assert not SLURMEnvironment.detect()
