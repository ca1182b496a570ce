"""A short training that is disturbed all the time, beside the same training left alone.

    python benchmarks/soak.py --images DIR --out DIR2 --minutes 30

`--images` is a folder of small pictures, such as CIFAR-10 as files. For so many minutes MAE trains on them with two
loader workers while the storage is slow (every image waits, some for long), images turn bad from some epoch on
(`data.on_bad_image=skip`), and every few seconds the run is killed, asked to stop, or one of its workers is killed;
each time it is begun again with `resume=auto`. Then the run is asked to stop, and a second one makes as many steps
without any disturbance (the same images turn bad at the same epochs). Printed: whether weights, optimizer and lists of
bad images are equal, and the slope of resident memory and of open files within the processes, with its 95 % interval.
"""

import argparse
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import t as student_t

from unmask.data.dataset import ImageFileDataset, RawBatch, SampleKey
from unmask.data.sources.folder import ImageFolder

ROOT = Path(__file__).parents[1]
DELAY = "SOAK_DELAY"  # environment variable: mean seconds that reading an image waits
CONFIG = """# @package _global_
defaults:
  - /base/image_files
  - _self_
data:
  _target_: soak.FailingFolder
  root: ???
"""
RUN = [
    *("method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=2", "method.decoder.embed_dim=24"),
    *("method.decoder.depth=1", "method.decoder.num_heads=3", "data=soak", "image_size=32", "data.num_workers=2"),
    *("data.on_bad_image=skip", "data.max_bad_fraction=0.5", "global_batch_size=16", "schedule=constant"),
    *("trainer.accelerator=cpu", "trainer.precision=32-true", "callbacks.reconstruction=null", "logger=csv"),
    *("checkpoint_every_minutes=0.03", "checkpoint_every_n_epochs=100000", "trainer.max_epochs=1000000"),
]
SECONDS_OF_WARM_UP = 240.0  # of a process, before its memory is looked at: until then it was seen to fill up
SECONDS_OF_BLOCK = 10.0  # neighboring samples are not independent: their means are
PREEMPTED = 75  # exit code


class FailingImages(ImageFileDataset):
    """Image files of which one in twelve is cut in half from some epoch on, on a storage that may be slow."""

    def read(self, keys: Sequence[SampleKey], crop: Any) -> RawBatch:
        delay = float(os.environ.get(DELAY, "0"))
        for key in keys:
            if delay:
                time.sleep(random.expovariate(1 / delay) + (0.5 if random.random() < 0.002 else 0.0))
            if key.index % 12 == 5 and key.epoch >= key.index // 12:
                self.decode_part(key.index)
        return super().read(keys, crop)

    def decode_part(self, index: int) -> None:
        content, _ = self.stored(index)
        self.decode.__self__.decode(content[: len(content) // 2], self.paths[index])  # raises: the picture is cut short

    def subset(self, indices: Any) -> "FailingImages":
        return FailingImages(self.paths.take(indices), self.labels[indices], self.class_names, decode=self.decode)


class FailingFolder(ImageFolder):
    """A folder whose training images fail; those of the other splits stay whole."""

    def load_split(self, split: Any) -> Any:
        whole = super().load_split(split)
        if split != "train":
            return whole
        return FailingImages(whole.paths, whole.labels, whole.class_names, decode=whole.decode)


class Sample(NamedTuple):
    """What a process of the training used at a moment."""

    process: int
    seconds: float  # since it was first seen
    mebibytes: float
    files: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of small pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; runs and their output")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the disturbed run")
    parser.add_argument("--between", type=float, default=45.0, help="mean seconds between two disturbances")
    parser.add_argument("--delay", type=float, default=0.002, help="mean seconds an image waits")
    parser.add_argument("--seed", type=int, default=0, help="of the disturbances")
    settings = parser.parse_args()
    conf = settings.out / "conf/data/soak.yaml"
    conf.parent.mkdir(parents=True)
    conf.write_text(CONFIG)
    random.seed(settings.seed)

    disturbed, events = disturb(settings)
    steps = torch.load(last_checkpoint(settings.out / "disturbed"), weights_only=True)["global_step"]
    print(f"disturbed run: {steps} steps; {', '.join(f'{count} {what}' for what, count in events.items())}", flush=True)
    alone = train_alone(settings, steps)
    compare(settings.out)
    report_growth("disturbed run", disturbed)
    report_growth("run left alone", alone)


def start(settings: argparse.Namespace, name: str, *overrides: str, delay: float = 0.0) -> subprocess.Popen[bytes]:
    out = settings.out.absolute()
    command = [sys.executable, str(ROOT / "run.py"), "--config-dir", str(out / "conf"), *RUN]
    command += [f"data.root={settings.images.absolute()}", f"hydra.run.dir={out / name}", "resume=auto", *overrides]
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", DELAY: str(delay)}
    with (out / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def disturb(settings: argparse.Namespace) -> tuple[list[Sample], Counter[str]]:
    """Trains for the time asked for, hurting the run again and again; returns what it used and what was done to it."""
    samples: list[Sample] = []
    events: Counter[str] = Counter()
    end = time.monotonic() + 60 * settings.minutes
    is_last = False  # the last thing done is to ask it to stop, which may begin after the time is over
    while not is_last:
        process = start(settings, "disturbed", delay=settings.delay)
        wait_for_workers(process)
        samples += watch(process, min(random.expovariate(1 / settings.between) + 2, max(5.0, end - time.monotonic())))
        is_last = time.monotonic() >= end
        what = "asked to stop" if is_last else random.choice(["killed", "asked to stop", "worker killed"])
        events[what if process.poll() is None else f"ended by itself with {process.returncode}"] += 1
        hurt(process, what)
        events[f"exit code {process.wait(timeout=120)}"] += 1
        end_group(process)
    if process.returncode != PREEMPTED:  # the last state must be that of a step that was made and saved
        raise SystemExit(f"the run did not stop when asked to, see {settings.out}/disturbed.log")
    return samples, events


def wait_for_workers(process: subprocess.Popen[bytes]) -> None:
    """Waits until the run has begun to read images."""
    while process.poll() is None and not workers_of(process.pid):
        time.sleep(0.2)


def hurt(process: subprocess.Popen[bytes], what: str) -> None:
    if what == "asked to stop":
        process.send_signal(signal.SIGTERM)
    elif what == "killed":
        process.kill()
    else:
        for worker in workers_of(process.pid)[:1]:
            os.kill(worker, signal.SIGKILL)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends what a killed run leaves behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def train_alone(settings: argparse.Namespace, steps: int) -> list[Sample]:
    process = start(settings, "alone", f"trainer.max_steps={steps}")
    samples = watch(process, math.inf)
    if process.returncode != 0:
        raise SystemExit(f"the undisturbed run ended with {process.returncode}, see {settings.out}/alone.log")
    return samples


def watch(process: subprocess.Popen[bytes], seconds: float) -> list[Sample]:
    """Looks at the run and its workers twice a second until the time is over or the run ends."""
    samples: list[Sample] = []
    began = time.monotonic()
    first_seen: dict[int, float] = {}  # workers of a validation live for moments
    while process.poll() is None and time.monotonic() - began < seconds:
        for pid in (process.pid, *workers_of(process.pid)):
            now = time.monotonic()
            samples += look_at(pid, now - first_seen.setdefault(pid, now))
        time.sleep(0.5)
    return samples


def look_at(pid: int, seconds: float) -> Iterator[Sample]:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    except OSError:  # gone meanwhile
        return
    yield Sample(pid, seconds, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files)


def workers_of(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if b"run.py" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []


def last_checkpoint(run: Path) -> Path:
    return run / "checkpoints/last.ckpt"


def compare(out: Path) -> None:
    """Says whether both runs ended alike."""
    runs = [torch.load(last_checkpoint(out / name), weights_only=True) for name in ("disturbed", "alone")]
    for part in ("global_step", "state_dict", "optimizer_states"):
        first, second = ([*leaves(run[part])] for run in runs)
        different = sum(not is_equal(one, other) for one, other in zip(first, second, strict=True))
        print(f"{part}: {different} of {len(first)} differ")
    bad = [{line.split("\t")[0] for line in (out / name / "bad_images.txt").open()} for name in ("disturbed", "alone")]
    print(f"bad images: {len(bad[0])} and {len(bad[1])}, {'the same' if bad[0] == bad[1] else 'NOT THE SAME'}")


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def is_equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def report_growth(name: str, samples: Sequence[Sample]) -> None:
    for unit, values in (
        ("MiB of resident memory", [sample.mebibytes for sample in samples]),
        ("open files", [float(sample.files) for sample in samples]),
    ):
        slope, half, blocks = pooled_slope(samples, values)
        if math.isnan(slope):
            print(f"{name}: no process lived long enough to tell whether its {unit} grow")
            continue
        print(f"{name}: {60 * slope:+.3f} +- {60 * half:.3f} {unit} a minute (95 %, {blocks} means of 10 s)")


def pooled_slope(samples: Sequence[Sample], values: Sequence[float]) -> tuple[float, float, int]:
    """Least squares with one slope and a constant for each process: slope and half its interval, a second; blocks."""
    blocks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for sample, value in zip(samples, values, strict=True):
        if sample.seconds > SECONDS_OF_WARM_UP:
            block = sample.process, int(sample.seconds / SECONDS_OF_BLOCK)
            blocks.setdefault(block, []).append((sample.seconds, value))
    of_process: dict[int, list[tuple[float, float]]] = {}
    for (process, _), members in blocks.items():
        mean = statistics.fmean(x for x, _ in members), statistics.fmean(y for _, y in members)
        of_process.setdefault(process, []).append(mean)
    centered = []
    for means in of_process.values():
        x0, y0 = statistics.fmean(x for x, _ in means), statistics.fmean(y for _, y in means)
        centered += [(x - x0, y - y0) for x, y in means]
    spread = sum(x * x for x, _ in centered)
    freedom = len(centered) - len(of_process) - 1
    if freedom < 1 or not spread:
        return math.nan, math.nan, len(centered)
    slope = sum(x * y for x, y in centered) / spread
    error = math.sqrt(sum((y - slope * x) ** 2 for x, y in centered) / freedom / spread)
    return slope, float(student_t.ppf(0.975, freedom)) * error, len(centered)


if __name__ == "__main__":
    main()
