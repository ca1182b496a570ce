"""Tables of pre-trainings beside each other, made by `run.py` and `eval.py` as a user types them.

    python benchmarks/compare.py benchmarks/plans/ddmim_cifar10.yaml --out tables/ddmim data.root=DIR

A plan (YAML) names variants as lists of overrides of `run.py`, evaluations as lists of overrides of `eval.py`, seeds
and a budget; what follows on the command line is added to every run. Each variant is trained once a seed and each
checkpoint measured once an evaluation, every command in a process of its own on one core. Under `--out` stand the runs
(`VARIANT/seed_N/`), `table.md`, `table.csv`, `differences.csv` and `plot.png`: means over the seeds, the differences
paired by seed with their interval, which split chose what, and each command with its commit and CPU time.

Measured is `last.ckpt`, which must be of the run's last step. A command that was finished is not run again, so an
interrupted table goes on where it stood; one that fails is reported and stops nothing else. Evaluations are separate
commands rather than one with `compare=`, since that writes nothing until all its files are measured; `eval=all` reads
the images once for several protocols.

Keys of a plan:
    variants: {NAME: overrides of run.py}
    evaluations: {NAME: overrides of eval.py}
    seeds: of run.py and eval.py alike
    budget: one of {epochs: N}, {steps: N}, {images: N}, {cpu_minutes: M}
    budgets: {NAME: budget} of variants that have another one
    untrained: a variant beside whose checkpoints random weights of the same backbone are measured, or a list of them,
        whose rows are then called `untrained NAME`
    differences: [[NAME, NAME], ...], first minus second; by default each variant minus the first one
    run: overrides of every run

A budget sets `trainer.max_epochs` and `trainer.max_steps`, so that the schedule ends with the run. CPU minutes, of the
whole command but for validation, are turned into steps by two short runs of the variant; what was really used, of all
processes of the command, stands in the table. Other work on the machine makes a CPU minute shorter.
"""

import argparse
import json
import logging
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from comparison_report import Cell, Failure, Measured, Table, draw, write_tables

from unmask.atomic_write import atomic_write
from unmask.callbacks.provenance import describe_git

ROOT = Path(__file__).resolve().parents[1]
RUN, EVAL = ROOT / "run.py", ROOT / "eval.py"
BUDGETS = ("epochs", "steps", "images", "cpu_minutes")
UNTRAINED = "untrained"  # name of the rows of random weights
CHECKPOINT = "checkpoints/last.ckpt"  # of a run: what is measured
TRAINING = "pretraining"  # folder of a run; no evaluation may be called so
REHEARSED_STEPS = (10, 60)  # of the two short runs behind a budget in CPU minutes
CONSTANT_RATE = "schedule._target_=unmask.optim.schedules.constant"  # a short run may be shorter than its warm-up
ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

_NAME = re.compile(r"[\w.+-][\w .,+'-]*")
_PLAIN = re.compile(r"[\w./+~-]+")  # what Hydra reads without quotes
_BATCH_LINE = re.compile(r"batch\s+([\d,]+) = .*; ([\d,]+) steps an epoch")

_log = logging.getLogger("compare")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a table compares; the keys are those of its file."""

    variants: Mapping[str, Sequence[str]]
    evaluations: Mapping[str, Sequence[str]]
    budget: Mapping[str, float]
    seeds: Sequence[int] = (0,)
    budgets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    untrained: str | Sequence[str] | None = None
    differences: Sequence[Sequence[str]] | None = None
    run: Sequence[str] = ()

    def budget_of(self, variant: str) -> tuple[str, float]:
        """The kind and the amount of a variant's budget."""
        (kind, amount), *_ = self.budgets.get(variant, self.budget).items()
        return kind, amount

    @property
    def untrained_rows(self) -> dict[str, str]:
        """By variant: what the row of random weights of its backbone is called."""
        if self.untrained is None:
            return {}
        if isinstance(self.untrained, str):
            return {self.untrained: UNTRAINED}
        return {variant: f"{UNTRAINED} {variant}" for variant in self.untrained}

    def pairs(self) -> list[tuple[str, str]]:
        """The differences to report, the untrained backbone's among them where none are named."""
        if self.differences is not None:
            return [(first, second) for first, second in self.differences]
        reference, *others = self.variants
        return [(name, reference) for name in [*others, *self.untrained_rows.values()]]


def read_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Reads a plan and adds overrides to every run.

    Raises:
        ValueError: A key is unknown or missing, or a value is not what it should be.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    known = set(Plan.__dataclass_fields__)
    if not isinstance(content, dict) or not set(content) <= known:
        unknown = sorted(set(content) - known) if isinstance(content, dict) else content
        raise ValueError(f"{path} has {unknown}; a plan has the keys {', '.join(sorted(known))}")
    missing = {"variants", "evaluations", "budget"} - set(content)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    plan = Plan(**content | {"run": [*content.get("run", ()), *overrides]})
    for problem in _problems(plan):
        raise ValueError(f"{path}: {problem}")
    return plan


def _problems(plan: Plan) -> list[str]:
    """Says what is wrong with a plan, in sentences."""
    found = []
    for kind, named in (("variants", plan.variants), ("evaluations", plan.evaluations)):
        if not isinstance(named, dict) or not named or not all(_is_texts(value) for value in named.values()):
            return [f"{kind} must be {{NAME: [override, ...]}}, got {named!r}"]
        reserved = {TRAINING} & set(named) or {name for name in named if str(name).startswith(UNTRAINED)}
        if reserved or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in named):
            found.append(f"{kind} has names {list(named)}; use letters and digits, not {UNTRAINED} or {TRAINING}")
        if len({_folder_name(str(name)) for name in named}) < len(named):
            found.append(f"{kind} has names that differ in spaces alone: {list(named)}")
    if not _is_texts(plan.run):
        found.append(f"run must be a list of overrides, got {plan.run!r}")
    seeds = plan.seeds
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) for seed in seeds):
        found.append(f"seeds must be different whole numbers such as [0, 1, 2], got {seeds}")
    for budget in (plan.budget, *plan.budgets.values()):
        found += _budget_problems(budget)
    rows = {*plan.variants, *plan.untrained_rows.values()}
    pairs = plan.differences or ()
    named_elsewhere = [
        *plan.budgets,
        *plan.untrained_rows,
        *(n for pair in pairs for n in pair),
    ]
    strange = [name for name in named_elsewhere if name not in rows]
    if strange or not all(len(pair) == 2 for pair in pairs):
        found.append(f"budgets, untrained and pairs of differences name {strange or pairs}; choose from {sorted(rows)}")
    return found


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _budget_problems(budget: Any) -> list[str]:
    one = f"a budget must be one of {', '.join(f'{{{kind}: N}}' for kind in BUDGETS)}, above 0"
    if not isinstance(budget, dict) or len(budget) != 1:
        return [f"{one}, got {budget!r}"]
    (kind, amount), *_ = budget.items()
    if kind not in BUDGETS or isinstance(amount, bool) or not isinstance(amount, int | float) or amount <= 0:
        return [f"{one}, got {budget!r}"]
    if kind != "cpu_minutes" and amount != int(amount):
        return [f"{kind} must be a whole number, got {amount}; a part of an epoch is said in steps or images"]
    return []


class CommandError(Exception):
    """A command ended with an error; the text says what it printed of it and where the rest is."""


class Commands:
    """Runs commands, each once: what is finished is read from its record, unless another command made it.

    A record `NAME.json` beside the folder `NAME` says that the command is done; the folder of a command that was
    interrupted or failed is put aside as `NAME_unfinished_N`.

    Args:
        run, evaluate: The scripts that train and evaluate.
        one_core: Whether each command keeps to one core.
    """

    def __init__(self, *, run: Path = RUN, evaluate: Path = EVAL, one_core: bool = True) -> None:
        self.run = run
        self.evaluate = evaluate
        self._environment = ONE_CORE if one_core else {}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_stopped = False

    def finish(self, folder: Path, script: Path, overrides: Sequence[str], product: str) -> dict[str, Any]:
        """Runs a command whose output belongs into `folder`, or reads the record of when it was run.

        Args:
            folder: Given to the command as `hydra.run.dir`.
            script: What Python runs.
            overrides: Of its configuration.
            product: A file in `folder` without which it has not done its work.

        Returns:
            `command`, `cpu_seconds` and `wall_seconds` of all its processes, and `git`.

        Raises:
            CommandError: It ended with an error, or without its product.
            ValueError: The folder is the work of another command.
        """
        record_path = _beside(folder, ".json")
        command = [script.name, *overrides, f"hydra.run.dir={_quoted(folder)}"]
        if record_path.exists() and (folder / product).exists():
            record: dict[str, Any] = json.loads(record_path.read_text())
            if record["command"] != command:
                raise ValueError(
                    f"{folder} was made by `{shlex.join(record['command'])}`, now asked for is "
                    f"`{shlex.join(command)}`; take another --out or remove {record_path}"
                )
            return record
        _put_aside(folder)
        _log.info(f"{time.strftime('%H:%M:%S')}  python {shlex.join(command)}")
        git = describe_git()
        cpu, wall = self._call([sys.executable, str(script), *command[1:]], _beside(folder, ".log"))
        if not (folder / product).exists():
            raise CommandError(f"{folder / product} was not written; see {_beside(folder, '.log')}")
        record = {"command": command, "cpu_seconds": cpu, "wall_seconds": wall, "git": git}
        with atomic_write(record_path) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n")
        _log.info(f"{time.strftime('%H:%M:%S')}  {folder}: {cpu:.0f} CPU seconds, {wall:.0f} s")
        return record

    def stop(self) -> None:
        """Ends what is running; nothing more is begun."""
        with self._lock:
            self._is_stopped = True
            for process in self._running:
                process.terminate()

    def _call(self, command: Sequence[str], log: Path) -> tuple[float, float]:
        """Runs a process to its end; returns its CPU and wall seconds, those of processes it waited for included."""
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with log.open("wb") as output:
            with self._lock:
                if self._is_stopped:
                    raise CommandError("not begun: the comparison was stopped")
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **self._environment}
                )
                self._running.add(process)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            with self._lock:
                self._running.discard(process)
        if process.returncode:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("error: ")] or lines
            said = errors[-1].strip() if errors else "nothing"
            raise CommandError(f"exit code {process.returncode}: {said} (all of it: {log})")
        return usage.ru_utime + usage.ru_stime, time.monotonic() - start


class Comparison:
    """Runs a plan and reports it.

    Args:
        plan: What is compared.
        out: Folder of the runs and tables.
        commands: Run the scripts.
    """

    def __init__(self, plan: Plan, out: Path, commands: Commands) -> None:
        self.plan = plan
        self.out = out
        self.commands = commands
        self.measured: list[Measured] = []
        self.failures: list[Failure] = []

    def run(self, *, jobs: int) -> list[Failure]:
        """Runs what is not finished and writes the report, anew after each seed of a variant.

        Returns:
            What failed.

        Raises:
            ValueError: The folder holds the work of other commands.
        """
        with ThreadPoolExecutor(jobs) as pool:
            try:
                budgets = self._budgets(pool)
                # Seeds in the outer loop: an interrupted table has whole pairs.
                pending = [
                    pool.submit(self._measure, name, seed, budgets[name])
                    for seed in self.plan.seeds
                    for name in budgets
                ]
                for done in as_completed(pending):
                    found, failed = done.result()
                    self.measured += found
                    self.failures += failed
                    self._report()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.commands.stop()
                raise
        draw(self._report(), self.out / "plot.png")
        return self.failures

    def _report(self) -> Table:
        table = Table(
            self.measured, rows=[*self.plan.variants, *self.plan.untrained_rows.values()], pairs=self.plan.pairs()
        )
        write_tables(self.out, table, self.failures)
        return table

    def _budgets(self, pool: ThreadPoolExecutor) -> dict[str, list[str]]:
        """Says the budget of each variant in overrides; leaves out those whose short runs fail."""
        pending = {name: pool.submit(self._budget_overrides, name) for name in self.plan.variants}
        budgets = {}
        for name, done in pending.items():
            try:
                budgets[name] = done.result()
            except CommandError as error:
                self.failures.append(_failed(name, None, "rehearsal", error))
        return budgets

    def _budget_overrides(self, variant: str) -> list[str]:
        """Finds `trainer.max_epochs` and `trainer.max_steps`; steps take a short run, CPU minutes two.

        The short runs have the first seed and stand in `VARIANT/rehearsal_N`.
        """
        kind, amount = self.plan.budget_of(variant)
        if kind == "epochs":
            return [f"trainer.max_epochs={int(amount)}"]
        home = self.out / _folder_name(variant)
        lengths = REHEARSED_STEPS if kind == "cpu_minutes" else (1,)
        seconds = []
        for length in lengths:
            short = ["trainer.max_epochs=1", f"trainer.max_steps={length}", CONSTANT_RATE]
            overrides = self._training_overrides(variant, short, self.plan.seeds[0])
            folder = home / f"rehearsal_{length}"
            record = self.commands.finish(folder, self.commands.run, overrides, "backbone.safetensors")
            seconds.append(record["cpu_seconds"])
        batch_size, steps_per_epoch = _batch_of(_beside(home / f"rehearsal_{lengths[0]}", ".log"))
        if kind == "cpu_minutes":
            steps = affordable_steps(60 * amount, lengths, seconds)
        else:
            steps = int(amount) if kind == "steps" else math.ceil(amount / batch_size)
        epochs = [f"trainer.max_epochs={math.ceil(steps / steps_per_epoch)}"]  # the warm-up is a fraction of it
        return epochs if steps % steps_per_epoch == 0 else [*epochs, f"trainer.max_steps={steps}"]

    def _training_overrides(self, variant: str, budget: Sequence[str], seed: int) -> list[str]:
        return [*self.plan.variants[variant], *self.plan.run, *budget, f"seed={seed}"]

    def _measure(self, variant: str, seed: int, budget: Sequence[str]) -> tuple[list[Measured], list[Failure]]:
        """Trains a variant with a seed and evaluates it."""
        home = self.out / _folder_name(variant) / f"seed_{seed}"
        run_dir = home / TRAINING
        overrides = self._training_overrides(variant, budget, seed)
        try:
            record = self.commands.finish(run_dir, self.commands.run, overrides, CHECKPOINT)
            training = _training_cell(record, run_dir)
        except CommandError as error:
            return [], [_failed(variant, seed, TRAINING, error)]
        measured, failures = [], []
        for name, given in self.plan.evaluations.items():
            folder = home / _folder_name(name)
            overrides = [*given, *self._baseline(variant), f"seed={seed}", f"ckpt_path={_quoted(run_dir / CHECKPOINT)}"]
            try:
                record = self.commands.finish(folder, self.commands.evaluate, overrides, "report.json")
            except CommandError as error:
                failures.append(_failed(variant, seed, name, error))
                continue
            for report in json.loads((folder / "report.json").read_text())["reports"].values():
                if report["ckpt_path"] is not None:
                    measured.append(Measured(variant, seed, name, report, training, _cell(record)))
                elif variant in self.plan.untrained_rows:
                    measured.append(
                        Measured(self.plan.untrained_rows[variant], seed, name, report, None, _cell(record))
                    )
        return measured, failures

    def _baseline(self, variant: str) -> list[str]:
        """Random weights are measured once a seed, not beside every variant."""
        rows = self.plan.untrained_rows
        return [f"eval.baseline={str(variant in rows).lower()}"] if rows else []


def _failed(variant: str, seed: int | None, part: str, error: CommandError) -> Failure:
    failure = Failure(variant, seed, part, str(error))
    _log.error(f"{time.strftime('%H:%M:%S')}  failed: {failure.text}")
    return failure


def _training_cell(record: Mapping[str, Any], run_dir: Path) -> Cell:
    """What a run came to, by its last checkpoint.

    Raises:
        CommandError: The checkpoint is not of the run's last step.
    """
    checkpoint = torch.load(run_dir / CHECKPOINT, map_location="cpu", mmap=True, weights_only=True)
    steps = int(checkpoint["global_step"])
    _, steps_per_epoch = _batch_of(_beside(run_dir, ".log"))
    planned = _planned_steps(record["command"], steps_per_epoch)
    if steps != planned:
        raise CommandError(f"{run_dir / CHECKPOINT} is of step {steps}, but the run was to end at {planned}")
    return _cell(record, epochs=steps / steps_per_epoch)


def _planned_steps(command: Sequence[str], steps_per_epoch: int) -> int:
    settings = dict(override.lstrip("+").partition("=")[::2] for override in command if "=" in override)
    if "trainer.max_steps" in settings:
        return int(settings["trainer.max_steps"])
    return int(settings["trainer.max_epochs"]) * steps_per_epoch


def _cell(record: Mapping[str, Any], epochs: float | None = None) -> Cell:
    git = record["git"]
    commit = "unknown" if git is None else f"{git['commit'][:7]}{' with changes' if git['is_dirty'] else ''}"
    return Cell(command=tuple(record["command"]), cpu_seconds=record["cpu_seconds"], commit=commit, epochs=epochs)


def affordable_steps(budget: float, lengths: Sequence[int], seconds: Sequence[float]) -> int:
    """Finds how many steps a budget allows, of what two shorter runs took: `start + steps * step`.

    Args:
        budget: Seconds.
        lengths: Steps of the two runs, the shorter first.
        seconds: What each took.

    Raises:
        CommandError: The longer run took no longer, or the budget does not suffice for a step.
    """
    step = (seconds[1] - seconds[0]) / (lengths[1] - lengths[0])
    start = seconds[0] - lengths[0] * step
    if step <= 0 or budget < start + step:
        raise CommandError(
            f"a budget of {budget:.0f} CPU seconds allows no step: runs of {lengths[0]} and {lengths[1]} steps took "
            f"{seconds[0]:.1f} and {seconds[1]:.1f}"
        )
    return int((budget - start) / step)


def _batch_of(log: Path) -> tuple[int, int]:
    """Reads the images of a step and the steps of an epoch from the plan a run prints."""
    found = _BATCH_LINE.search(log.read_text(errors="replace"))
    if found is None:
        raise CommandError(f"{log} does not say how many steps an epoch has")
    batch_size, steps = (int(number.replace(",", "")) for number in found.groups())
    return batch_size, steps


def _put_aside(folder: Path) -> None:
    if not folder.exists():
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}_unfinished_{number}")).exists():
        number += 1
    folder.rename(aside)


def _beside(folder: Path, ending: str) -> Path:
    """A file called as a folder, with an ending."""
    return folder.with_name(folder.name + ending)


def _folder_name(name: str) -> str:
    return re.sub(r"[ ,']+", "-", name)


def _quoted(path: Path) -> str:
    """Writes a path as Hydra's grammar reads it."""
    text = str(path)
    return text if _PLAIN.fullmatch(text) else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="YAML, such as benchmarks/plans/ddmim_cifar10.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and tables")
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time, each on one core")
    parser.add_argument("overrides", nargs="*", help="of every run, such as data.root=DIR")
    settings = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        plan = read_plan(settings.plan, settings.overrides)
        failures = Comparison(plan, settings.out, Commands()).run(jobs=settings.jobs)
    except ValueError as error:
        parser.error(str(error))
    print((settings.out / "table.md").read_text())
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
