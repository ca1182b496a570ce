"""Whether this program does on a GPU what it does on a CPU, and how fast: one command, at most 8 minutes.

    python benchmarks/gpu_check.py --json gpu_check.json
    python benchmarks/gpu_check.py --device cpu --tiny          # proves every row of this script on any machine

Each row runs in a process of its own with a limit of time, so one that fails or hangs takes no other with it: its line
says why. Rows for which no time is left say so. What is checked:

    train METHOD    trains in bf16 with fused attention, compiled and not; its losses against those of the same steps in
                    fp32 on the CPU (at most 1e-2 apart), the waits for the device and the graph breaks of a step
    speed NAME      images/s, model FLOP utilization and peak memory of training steps on images that lie on the device
    options         what compiling, activation checkpointing, channels-last and accumulation change in speed and memory
    guard           what looking at loss and gradients before every step costs
    data FORMAT     `run.py` from JPEG files and from shards: the time spent waiting, and its speed beside the bare step
    resume          a run that was interrupted ends with the weights of one that was not, bit by bit
    scaler          16-mixed: the scaler leaves out steps whose gradients overflow, and trains on

On a CPU nothing can wait for it: there, waits are counted on torch's meta device (`host_syncs.py`), and memory is what
the process took from the system.
"""

import argparse
import contextlib
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from host_syncs import HostSyncError, require_no_host_sync, training_step
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.plugins import MixedPrecision
from steps import wait_for
from torch import Tensor

from unmask.callbacks.model_flops import count_flops
from unmask.callbacks.nonfinite_guard import NonfiniteGuard
from unmask.callbacks.step_options import StepOptions
from unmask.callbacks.step_seeding import StepSeeding
from unmask.methods.backbone_module import BackboneModule
from unmask.runtime.builders import build, build_module
from unmask.runtime.config import compose_config
from unmask.types import ImageBatch

ROOT = Path(__file__).resolve().parents[1]
BUDGET, LONGEST_ROW = 480.0, 150.0  # seconds
LARGEST_GAP = 1e-2  # between a loss and the CPU's, relative
_RESULT = "RESULT "  # in front of a row's JSON, on its last line
_NUM_STEPS, _COUNTED_FROM = 10, 6  # of a row that trains

_TWO_STAGES = ["method.mask_generator.ratios=[0.5,0.5]", "method.features.weights=[1,0.1]"]
_SMALL = {
    "mae": ["method=mae", "model=vit_mini"],
    "simmim": ["method=simmim", "model=swin_mini", "method.mask_generator.patch_size=8"],
    "ddmim": ["method=ddmim", "model=swinv2_mini", *_TWO_STAGES, "method.mask_generator.patch_size=8"],
    "supervised": ["method=supervised", "model=vit_mini"],
}
_FULL = {
    "mae vit-base": ["method=mae", "model=vit_base", "image_size=224", "global_batch_size=256"],
    "mae vit-large": ["method=mae", "model=vit_large", "image_size=224", "global_batch_size=128"],
    "simmim swin-base": [
        *("method=simmim", "model=swin_base", "image_size=192"),
        *("model.window_size=6", "global_batch_size=128"),
    ],
    "ddmim swinv2-tiny": ["method=ddmim", "image_size=256", "global_batch_size=128"],
}
_TINY_SIZES = ["image_size=32", "global_batch_size=8"]
_TINY = {name: [*_SMALL[name.split()[0]], *_TINY_SIZES] for name in _FULL}

Row = Callable[[argparse.Namespace], Mapping[str, Any]]


class FixedBatches:
    """The same images again and again, on the device already, so that nothing is timed but steps."""

    def __init__(self, batch: ImageBatch, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[ImageBatch]:
        return iter([self.batch] * self.count)


class Recorder(Callback):
    """Keeps the losses, and from `counted_from` on the time and the waits for the device."""

    def __init__(self, *, counted_from: int, watches_syncs: bool = False) -> None:
        self.counted_from = counted_from
        self.watches_syncs = watches_syncs
        self.losses: list[Tensor] = []
        self.seconds = 0.0
        self.syncs: list[str] = []
        self._caught = contextlib.ExitStack()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.counted_from:
            wait_for(module.device)
            if module.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            if self.watches_syncs and module.device.type == "cuda":
                self._heard = self._caught.enter_context(warnings.catch_warnings(record=True))
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
            self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        if batch_idx + 1 == trainer.num_training_batches:
            if self.watches_syncs and module.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
                self.syncs = [str(one.message) for one in self._heard if "synchroniz" in str(one.message)]
                self._caught.close()
            wait_for(module.device)
            self.seconds = time.perf_counter() - self._start


def accelerator(settings: argparse.Namespace) -> str:
    return "gpu" if settings.device == "cuda" else "cpu"


def make_method(overrides: Sequence[str]) -> BackboneModule:
    """A method with the weights of seed 0, whatever the device."""
    seed_everything(0, verbose=False)
    config = compose_config("run", [*overrides, "data.num_train=8", "data.num_val=2", "data.num_test=2"])
    return build_module(config.method, build(config.data))


def make_batch(method: BackboneModule, num_images: int, device: torch.device) -> ImageBatch:
    """Images of smooth noise: there is something to predict."""
    generator = torch.Generator().manual_seed(1)
    height, width = method.backbone.image_size
    coarse = torch.randn(num_images, method.backbone.in_channels, height // 8, width // 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    labels = torch.arange(num_images) % 2
    return ImageBatch(images.to(device), labels.to(device), torch.arange(num_images, device=device))


def train(
    overrides: Sequence[str],
    *,
    device: str,
    precision: str,
    num_images: int,
    callbacks: Sequence[Callback] = (),
    steps: int = _NUM_STEPS,
    watches_syncs: bool = False,
    **arguments: Any,
) -> tuple[Recorder, BackboneModule]:
    """Trains by Lightning's loop, as `run.py` does, without logging and checkpoints."""
    method = make_method(overrides)
    recorder = Recorder(counted_from=min(_COUNTED_FROM, steps - 1), watches_syncs=watches_syncs)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[StepSeeding(seed=0), *callbacks, recorder],
            **arguments,
        )
        batches = FixedBatches(make_batch(method, num_images, torch.device(device)), steps)
        trainer.fit(method, train_dataloaders=batches)
    return recorder, method


def losses_of(recorder: Recorder) -> list[float]:
    return torch.stack([loss.float().cpu() for loss in recorder.losses]).tolist()


def largest_gap(losses: Sequence[float], expected: Sequence[float]) -> float:
    """The largest difference, relative to what is expected."""
    return max(abs(one - other) / max(abs(other), 1e-12) for one, other in zip(losses, expected, strict=True))


def check_training(method: str, settings: argparse.Namespace) -> Mapping[str, Any]:
    plain = ["method.views=null"] if method == "ddmim" else []  # views are drawn by the device's own generator
    plain += ["mixup=0", "cutmix=0"] if method == "supervised" else []
    overrides = [*_SMALL[method], *_TINY_SIZES, *plain, "base_lr=1e-4", "schedule.warmup_epochs=0"]
    steps = 4 if settings.tiny else _NUM_STEPS
    shared: dict[str, Any] = {"num_images": 8, "steps": steps}
    reference, _ = train(overrides, device="cpu", precision="32-true", **shared)
    expected = losses_of(reference)
    eager, module = train(overrides, device=settings.device, precision="bf16-mixed", watches_syncs=True, **shared)
    torch._dynamo.utils.counters.clear()
    options = StepOptions(compile=True, backend="aot_eager" if settings.tiny else "inductor")
    compiled, _ = train(overrides, device=settings.device, precision="bf16-mixed", callbacks=[options], **shared)
    gaps = largest_gap(losses_of(eager), expected), largest_gap(losses_of(compiled), expected)
    num_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    result = {
        "loss_gap": gaps[0],
        "loss_gap_compiled": gaps[1],
        "loss": losses_of(eager)[-1],
        "graphs": num_graphs,
        "graph_breaks": sum(torch._dynamo.utils.counters["graph_break"].values()),
        "host_syncs_a_step": host_syncs(eager, overrides, settings),
        "fused_attention": all(getattr(part, "fused_attn", True) for part in module.modules()),
    }
    require(max(gaps) <= LARGEST_GAP, f"losses differ from the CPU's by {max(gaps):.2g}", result)
    require(num_graphs > 0, "nothing was compiled", result)
    require(result["graph_breaks"] == 0, "compiled blocks break", result)
    require(result["host_syncs_a_step"] == 0, "a step waits for the device", result)
    if settings.device == "cuda":
        require(result["fused_attention"], "attention is not fused", result)
    return result


def host_syncs(recorder: Recorder, overrides: Sequence[str], settings: argparse.Namespace) -> float | str:
    """The waits of a step on a GPU; elsewhere 0, or what would wait."""
    if settings.device == "cuda":
        for line in sorted(set(recorder.syncs)):
            print(line, file=sys.stderr)
        return len(recorder.syncs) / (len(recorder.losses) - recorder.counted_from)
    try:
        require_no_host_sync(training_step(make_method(overrides), num_images=4))
    except HostSyncError as found:
        return str(found)
    return 0


def require(holds: bool, reason: str, result: Mapping[str, Any]) -> None:
    """Lets a row fail that has measured something all the same."""
    if not holds:
        raise UnmetError(reason, result)


class UnmetError(Exception):
    """A row's condition does not hold."""

    def __init__(self, reason: str, result: Mapping[str, Any]) -> None:
        super().__init__(reason)
        self.result = result


def speed(overrides: Sequence[str], settings: argparse.Namespace, **options: Any) -> dict[str, Any]:
    """Images per second, utilization and memory of training steps in bfloat16."""
    given = next(one for one in overrides if one.startswith("global_batch_size="))
    num_images = int(given.partition("=")[2])
    callbacks, arguments = options.pop("callbacks", []), {}
    parts = options.pop("accumulate", 1)
    if parts > 1:
        arguments["accumulate_grad_batches"] = parts
    if any(options.values()):
        callbacks = [*callbacks, StepOptions(**options, backend="aot_eager" if settings.tiny else "inductor")]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    recorder, method = train(
        overrides,
        device=settings.device,
        precision="bf16-mixed",
        num_images=num_images // parts,
        steps=(4 if settings.tiny else _COUNTED_FROM + 20) * parts,
        callbacks=callbacks,
        **arguments,
    )
    batches = len(recorder.losses) - recorder.counted_from
    rate = batches * num_images / parts / recorder.seconds
    flops = count_flops(method)
    assert flops is not None
    result = {"images_per_s": rate, "gflop_an_image": flops / 1e9, "tflops": rate * flops / 1e12, "batch": num_images}
    if settings.device == "cuda":
        peak = get_available_flops(torch.device("cuda"), torch.bfloat16)
        result |= {"mfu": None if peak is None else rate * flops / peak}
        result |= {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}
    else:
        result |= {"peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10}
    return result


def check_speed(name: str, settings: argparse.Namespace) -> Mapping[str, Any]:
    overrides = (_TINY if settings.tiny else _FULL)[name]
    eager = speed(overrides, settings)
    compiled = speed(overrides, settings, compile=True)
    return {
        **eager,
        **{f"{key}_compiled": compiled[key] for key in ("images_per_s", "mfu", "peak_mib") if key in compiled},
    }


def check_option(option: str, settings: argparse.Namespace) -> Mapping[str, Any]:
    """What one option changes beside none, in a process of its own, since memory on a CPU only grows."""
    overrides = (_TINY if settings.tiny else _FULL)["mae vit-base"]
    chosen: dict[str, Any] = {"accumulate": 2} if option == "accumulate" else {option: True} if option != "none" else {}
    return speed(overrides, settings, **chosen)


def check_guard(settings: argparse.Namespace) -> Mapping[str, Any]:
    overrides = (_TINY if settings.tiny else _FULL)["mae vit-base"]
    with tempfile.TemporaryDirectory() as folder:
        bare = speed(overrides, settings)["images_per_s"]
        guarded = speed(overrides, settings, callbacks=[NonfiniteGuard(folder=folder)])["images_per_s"]
    return {"images_per_s": guarded, "of_the_bare_step": guarded / bare}


def check_data(kind: str, settings: argparse.Namespace) -> Mapping[str, Any]:
    overrides = (_TINY if settings.tiny else _FULL)["mae vit-base"]
    num_images = 64 if settings.tiny else 8192
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder) / "photos", num_images)
        source = ["data=folder", f"data.root={photos}", "data.test_fraction=0"]
        if kind == "shards":
            packed = Path(folder) / "shards"
            command("-m", "unmask.pack", *source, f"out={packed}", "format=jpeg", "timing_seconds=0")
            source = ["data=shards", f"data.root={packed}"]
        shown = ["trainer.log_every_n_steps=2", "trainer.max_epochs=2", f"hydra.run.dir={folder}/run"]
        device = [f"trainer.accelerator={accelerator(settings)}", "trainer.precision=bf16-mixed"]
        quiet = ["callbacks.report=null", "callbacks.reconstruction=null", "trainer.limit_val_batches=0"]
        command("run.py", *overrides, *source, *device, *shown, *quiet)
        rows = list(csv.DictReader((Path(folder) / "run/csv/metrics.csv").open()))
    logged = [row for row in rows if row.get("system/images_per_s")]
    last = logged[len(logged) // 2 :]  # the first epoch starts workers
    rate = sum(float(row["system/images_per_s"]) for row in last) / len(last)
    wait = sum(float(row["system/data_wait"]) for row in last) / len(last)
    bare = speed(overrides, settings)["images_per_s"]
    return {"images_per_s": rate, "data_wait": wait, "of_the_bare_step": rate / bare, "cpus": os.cpu_count()}


def write_photos(folder: Path, count: int) -> Path:
    """JPEG files of 500 x 375 px and some 60 KB, as those of ImageNet are."""
    from PIL import Image  # noqa: PLC0415  (a row that fails must not end the others)

    generator = torch.Generator().manual_seed(0)
    patterns = []
    for _ in range(32):
        coarse = torch.rand(1, 3, 47, 63, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (375, 500), mode="bicubic")[0].clamp(0, 1)
        noise = 0.06 * torch.randn(3, 375, 500, generator=generator)
        patterns.append(((smooth + noise).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).numpy())
    for number in range(count):
        path = folder / f"class{number % 4}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(patterns[number % len(patterns)]).save(path, quality=90)
    return folder


def check_resume(settings: argparse.Namespace) -> Mapping[str, Any]:
    """By `run.py` as users start it, ended by its own limit of steps and gone on with."""
    overrides = [*_SMALL["mae"], *_TINY_SIZES, "data.num_train=64", "data.num_val=8", "logger=csv"]
    overrides += [f"trainer.accelerator={accelerator(settings)}", "trainer.precision=bf16-mixed"]
    overrides += ["trainer.deterministic=true", "trainer.max_epochs=3"]
    with tempfile.TemporaryDirectory() as folder:
        whole, parted = f"{folder}/whole", f"{folder}/parted"
        command("run.py", *overrides, f"hydra.run.dir={whole}")
        kept = [
            "++callbacks.kept._target_=lightning.pytorch.callbacks.ModelCheckpoint",
            "++callbacks.kept.save_top_k=-1",
        ]
        kept += [f"++callbacks.kept.dirpath={parted}", "++callbacks.kept.every_n_train_steps=11"]
        kept += ["++callbacks.kept.filename=at", "++callbacks.kept.enable_version_counter=false"]
        command("run.py", *overrides, *kept, f"hydra.run.dir={folder}/first")
        command("run.py", *overrides, f"hydra.run.dir={folder}/second", f"ckpt_path={parted}/at.ckpt")
        weights = [
            torch.load(f"{folder}/{run}/checkpoints/last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
            for run in ("whole", "second")
        ]
    differing = [name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])]
    result = {"tensors": len(weights[0]), "differing": len(differing)}
    require(not differing, f"differ after resuming: {', '.join(differing[:3])}", result)
    return result


def check_scaler(settings: argparse.Namespace) -> Mapping[str, Any]:
    scaler = torch.amp.GradScaler(settings.device, init_scale=2.0**40)  # too large: the first steps overflow
    plugin = MixedPrecision("16-mixed", settings.device, scaler)
    recorder, _ = train(
        [*_SMALL["mae"], *_TINY_SIZES, "base_lr=1e-3", "schedule.warmup_epochs=0"],
        device=settings.device,
        precision=None,  # type: ignore[arg-type]  # the plugin's
        num_images=8,
        steps=40,
        plugins=[plugin],
    )
    losses = losses_of(recorder)
    result = {"first_loss": losses[0], "last_loss": losses[-1], "scale": scaler.get_scale()}
    require(scaler.get_scale() < 2.0**40, "no step was left out", result)
    require(losses[-1] < losses[0], "nothing was learned", result)
    return result


def command(*arguments: str) -> None:
    """Runs a command of this program; its last words are the reason where it fails."""
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"{' '.join(arguments[:3])} failed: {next((w for w in words if 'rror' in w), words[-1:])}")


def rows() -> dict[str, Row]:
    """By name, what matters most first: time may run out."""
    found: dict[str, Row] = {f"train {name}": lambda s, name=name: check_training(name, s) for name in _SMALL}
    found |= {"resume": check_resume, "scaler": check_scaler}
    found |= {f"speed {name}": lambda s, name=name: check_speed(name, s) for name in _FULL}
    found |= {f"data {kind}": lambda s, kind=kind: check_data(kind, s) for kind in ("jpeg", "shards")}
    options = ("none", "activation_checkpointing", "accumulate", "channels_last")
    found |= {f"options {option}": lambda s, option=option: check_option(option, s) for option in options}
    found |= {"guard": check_guard}
    return found


def run_row(name: str, settings: argparse.Namespace) -> None:
    """In a process of its own: prints the result as the last line."""
    try:
        result = {"row": name, "ok": True, **rows()[name](settings)}
    except UnmetError as unmet:
        result = {"row": name, "ok": False, "why": str(unmet), **unmet.result}
    except Exception as error:  # whatever it is, the other rows go on
        traceback.print_exc()
        result = {"row": name, "ok": False, "why": f"{type(error).__name__}: {error}".splitlines()[0]}
    print(_RESULT + json.dumps(result))


def start_row(name: str, settings: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Runs a row as a process group of its own, which is ended when its time is up."""
    words = [sys.executable, __file__, "--row", name, "--device", settings.device, *(["--tiny"] * settings.tiny)]
    start = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return {"row": name, "ok": False, "why": f"did not end within {limit:.0f} s"}
    found = [line for line in output.splitlines() if line.startswith(_RESULT)]
    if not found:
        last = (errors.strip().splitlines() or ["no word"])[-1]
        return {"row": name, "ok": False, "why": f"ended with exit code {process.returncode}: {last}"}
    result: dict[str, Any] = json.loads(found[-1].removeprefix(_RESULT))
    return {**result, "seconds": round(time.monotonic() - start, 1)}


def run_rows(names: Sequence[str], settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs rows in turn as long as there is time."""
    end = time.monotonic() + settings.budget
    results = []
    for name in names:
        left = end - time.monotonic()
        if left <= 5.0:
            results.append({"row": name, "ok": False, "why": "no time was left"})
        else:
            results.append(start_row(name, settings, min(left, settings.row_limit)))
        print(line_of(results[-1]), flush=True)
    return results


def line_of(result: Mapping[str, Any]) -> str:
    """One row of the table."""
    told = {key: value for key, value in result.items() if key not in ("row", "ok", "why", "seconds")}
    figures = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in told.items()
    )
    state = "ok" if result["ok"] else f"FAILED: {result['why']}"
    return f"| {result['row']} | {state} | {figures} | {result.get('seconds', '')} |"


def describe_machine(settings: argparse.Namespace) -> dict[str, Any]:
    """What figures are to be quoted with."""
    name = torch.cuda.get_device_name() if settings.device == "cuda" else f"{os.cpu_count()} CPU cores"
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "tiny": settings.tiny}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="networks and images small enough for a CPU")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything")
    parser.add_argument("--row-limit", type=float, default=LONGEST_ROW, help="seconds for each row")
    parser.add_argument("--json", type=Path, help="file to write the results to as well")
    parser.add_argument("--only", nargs="+", help="rows, by the words they start with, such as train or 'speed mae'")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; use --device cpu --tiny")
    if settings.device == "cpu" and not settings.tiny:
        parser.error("the full rows are made for a GPU; add --tiny")
    if settings.row is not None:
        run_row(settings.row, settings)
        return
    names = [name for name in rows() if settings.only is None or name.startswith(tuple(settings.only))]
    if not names:
        parser.error(f"no row starts with {' or '.join(settings.only)}; there are {', '.join(rows())}")
    machine = describe_machine(settings)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print("| row | state | figures | seconds |\n|---|---|---|---|")
    content = {"machine": machine, "rows": run_rows(names, settings)}
    text = json.dumps(content, indent=2)
    print(text)
    if settings.json is not None:
        settings.json.write_text(text + "\n", encoding="utf-8")
    sys.exit(0 if all(row["ok"] for row in content["rows"]) else 1)


if __name__ == "__main__":
    main()
