"""How time and memory of a training step grow, beside the growth that its counted operations let expect.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py --out scaling --figure docs/images/scaling.png
    OMP_NUM_THREADS=1 python benchmarks/scaling.py --quick --out scaling      # proves each part in a minute
    python benchmarks/scaling.py --tables scaling.json --figure scaling.png   # what has been measured, once more

MAE on a small ViT and SimMIM on a small Swin, each along five axes: images of a batch, side of an image, visible
fraction, blocks, and processes of DDP (each with a batch of its own). All else stays as in `BASE`. What is measured:

    time      CPU time of the process, which does not count waiting; of several processes the sum. All points of an axis
              take turns, `--rounds` times, so that whatever else the machine does falls on all.
    memory    what steps add to the peak of a process of its own, behind a step of one image that loads the kernels.

A slope is the exponent p of `cost = constant * axis^p`, by least squares on logarithms: 1 where cost doubles with the
axis, 0 where it stays. Expected are those of the operations that torch counts on tensors without values
(`count_flops`), and, for memory, of the bytes that the backward pass keeps, the gradients and AdamW's two moments.
Shown is the median of the rounds with the least and the largest; that range holds the true median in all but 2 in
2^rounds cases.

Where it does not hold what was expected, two things say why. A line through the points, `time = fixed + operations /
speed`, tells what a step takes whatever its size from what grows. A profile of the axis's two ends tells products (the
operations that are counted) from other operations (norms, activations, softmax, copies) and from the update (those of
clipping and AdamW). It reads the clock of the thread before and after each operation of torch, so it counts no waiting
either; watching adds some microseconds to each, so its parts are to be compared with each other.
"""

import argparse
import contextlib
import csv
import ctypes
import dataclasses
import functools
import gc
import json
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from steps import Step, peak_memory, timed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from turns import spread, take_turns

from unmask.backbones.attention import prefer_fast_attention
from unmask.backbones.timm_swin import TimmSwin
from unmask.backbones.timm_vit import TimmViT
from unmask.callbacks.model_flops import count_flops
from unmask.heads.mae_decoder import MAEDecoder
from unmask.heads.pixel_shuffle import PixelShuffleHead
from unmask.masking.random import RandomMaskGenerator
from unmask.methods.base import Method
from unmask.methods.mae import MAE
from unmask.methods.simmim import SimMIM
from unmask.optim.param_groups import decay_groups

MASKED_PATCH = 8  # px
LIMIT = 600.0  # seconds that processes wait for each other
_BYTES_A_PARAMETER = 12  # a gradient and two moments in float32
PARTS = ("products", "others", "update")
_PROFILES = 3
_ROUNDING = 5e-3  # as slopes are printed
_IMPORTED_ONCE = [
    *("torch", "matplotlib.figure", "unmask.callbacks.model_flops", "unmask.methods.mae", "unmask.methods.simmim"),
    *("unmask.backbones.timm_swin", "unmask.backbones.timm_vit"),
]
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")


@dataclasses.dataclass(frozen=True)
class Point:
    """What a step is made of.

    Attributes:
        method: "mae" or "simmim".
        batch: Images of a process.
        image_size: Side, pixels.
        visible: Fraction of the patches that are not masked.
        depth: Blocks; of a Swin all but the two of its first stage are in its second.
        processes: Of DDP, each with a batch of its own.
    """

    method: str
    batch: int = 16
    image_size: int = 64
    visible: float = 0.25
    depth: int = 6
    processes: int = 1


METHODS = {"mae": "MAE, ViT", "simmim": "SimMIM, Swin"}
BASE = {"mae": Point("mae"), "simmim": Point("simmim", visible=0.375)}
AXES: Mapping[str, tuple[str, Sequence[float]]] = {
    "batch": ("images of a batch", (4, 8, 16, 32)),
    "image_size": ("side of an image, pixels", (32, 64, 96)),
    "visible": ("visible fraction", (0.125, 0.25, 0.5)),
    "depth": ("blocks", (4, 6, 10)),
    "processes": ("processes, a batch each", (1, 2, 4)),
}


def build_method(point: Point) -> Method:
    """The method with the weights of seed 0: a ViT 128 wide with patches of 8 px, or a Swin 64 wide of two stages."""
    torch.manual_seed(0)
    masks = RandomMaskGenerator(ratio=1 - point.visible, patch_size=MASKED_PATCH)
    shared: dict[str, Any] = {
        "mask_generator": masks,
        "optimizer": torch.optim.AdamW,
        "schedule": torch.optim.lr_scheduler.LambdaLR,
    }
    if point.method == "mae":
        vit = TimmViT(
            name="vit_tiny_patch16_224",
            image_size=point.image_size,
            patch_size=MASKED_PATCH,
            embed_dim=128,
            depth=point.depth,
            num_heads=4,
            num_stages=1,
        )
        return MAE(backbone=vit, decoder=MAEDecoder, **shared)
    swin = TimmSwin(
        name="swin_tiny_patch4_window7_224",
        image_size=point.image_size,
        window_size=4,
        embed_dim=64,
        depths=[2, point.depth - 2],
        num_heads=[2, 4],
    )
    return SimMIM(backbone=swin, head=PixelShuffleHead, **shared)


class TrainingStep:
    """A training step on a fixed batch in bfloat16, in the order in which Lightning takes its parts."""

    def __init__(self, point: Point, wrap: Callable[[nn.Module], nn.Module] = lambda method: method) -> None:
        self.method = build_method(point).train()
        prefer_fast_attention(self.method, device=torch.device("cpu"), is_bfloat16=True)
        self.optimizer = torch.optim.AdamW(decay_groups(self.method), lr=1e-4)
        self.images = torch.randn(point.batch, 3, point.image_size, point.image_size)
        self.trained = wrap(self.method)

    def __call__(self) -> None:
        self.compute()
        self.update()

    def compute(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.trained(self.images).loss
        self.optimizer.zero_grad()
        loss.backward()

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.method.parameters(), 5.0)
        self.optimizer.step()


def make_warm_step(point: Point) -> Step:
    """A step in a process that has loaded its kernels by one of one image, and forgotten how large that was."""
    TrainingStep(dataclasses.replace(point, batch=1))()
    step = TrainingStep(point)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew (Linux, man 5 proc)
    return step


def counted_mib(point: Point) -> float:
    """What the backward pass keeps, the gradients of the step before and AdamW's moments."""
    method = build_method(point).train()
    prefer_fast_attention(method, device=torch.device("cpu"), is_bfloat16=True)
    weights = {parameter.untyped_storage().data_ptr() for parameter in method.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.randn(point.batch, 3, point.image_size, point.image_size)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        output = method.training_output(images)
    activations = sum(size for pointer, size in kept.items() if pointer not in weights)
    del output
    trained = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    return (activations + _BYTES_A_PARAMETER * trained) / 2**20


def slope(values: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent of a power law through positive numbers, by least squares on logarithms."""
    fit = statistics.linear_regression([math.log(value) for value in values], [math.log(cost) for cost in costs])
    return fit.slope


class Processes:
    """A group of DDP that takes steps when it is told to."""

    def __init__(self, point: Point, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        self.connections: list[Connection] = []
        self.members = []
        place = folder / f"{point.method}-{point.processes}"
        for rank in range(point.processes):
            own, other = context.Pipe()
            member = context.Process(target=_take_steps, args=(point, rank, place, other), daemon=True)
            member.start()
            self.connections.append(own)
            self.members.append(member)
        self._answers()

    def step(self, count: int = 1) -> tuple[float, float]:
        """Milliseconds a step: CPU time of all processes, and of the clock on the wall the longest of them."""
        for connection in self.connections:
            connection.send(count)
        cpu, wall = zip(*self._answers(), strict=True)
        return sum(cpu), max(wall)

    def end(self) -> None:
        for connection in self.connections:
            connection.send(0)
        for member in self.members:
            member.join(LIMIT)

    def _answers(self) -> list[tuple[float, float]]:
        for connection in self.connections:
            if not connection.poll(LIMIT):
                raise TimeoutError(f"a process of DDP did not answer within {LIMIT:.0f} s")
        return [connection.recv() for connection in self.connections]


def _take_steps(point: Point, rank: int, place: Path, connection: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=point.processes)
    step = TrainingStep(point, DistributedDataParallel)
    step()
    connection.send((0.0, 0.0))
    while count := connection.recv():
        settings = argparse.Namespace(steps=count, device="cpu")
        start = time.perf_counter()
        cpu = timed(step, settings, clock=time.process_time)
        connection.send((cpu, 1e3 * (time.perf_counter() - start) / count))
    dist.destroy_process_group()


class _Clock(TorchDispatchMode):
    """Adds up the CPU time of torch's operations: products and others."""

    def __init__(self) -> None:
        super().__init__()
        self.milliseconds = Counter({"products": 0.0, "others": 0.0})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.thread_time()
        result = func(*args, **(kwargs or {}))
        part = "products" if func.overloadpacket.__name__ in _PRODUCTS else "others"
        self.milliseconds[part] += 1e3 * (time.thread_time() - start)
        return result


def profiled(step: TrainingStep) -> Mapping[str, float]:
    """Milliseconds of a step by part, the median of some profiles."""
    step()
    found = [_profiled_once(step) for _ in range(_PROFILES)]
    return {part: statistics.median(one[part] for one in found) for part in PARTS}


def _profiled_once(step: TrainingStep) -> Mapping[str, float]:
    with _Clock() as computing:
        step.compute()
    with _Clock() as updating:
        step.update()
    return {**computing.milliseconds, "update": updating.milliseconds.total()}


def points_of(method: str, axis: str, values: Sequence[float]) -> list[Point]:
    return [dataclasses.replace(BASE[method], **{axis: value}) for value in values]


def measure(method: str, axis: str, values: Sequence[float], settings: argparse.Namespace) -> dict[str, Any]:
    """Rows of the points of an axis, its slopes and, where they differ from what was expected, the profile."""
    points = points_of(method, axis, values)
    flops = [one.processes * one.batch * _flops_of_an_image(one) for one in points]
    cpu, wall = measure_processes(points, settings) if axis == "processes" else measure_steps(points, settings)
    memory = measure_memory(points, settings) if axis != "processes" else None
    counted = [counted_mib(point) for point in points]
    rows = []
    for number, point in enumerate(points):
        row = {**dataclasses.asdict(point), "axis": axis, "value": values[number], "gflop": flops[number] / 1e9}
        times = [one[number] for one in cpu]
        row |= {"cpu_ms": statistics.median(times), "cpu_ms_least": min(times), "cpu_ms_most": max(times)}
        row["images_per_cpu_s"] = 1e3 * point.processes * point.batch / row["cpu_ms"]
        if wall is not None:
            row["images_per_s"] = 1e3 * point.processes * point.batch / statistics.median(one[number] for one in wall)
        if memory is not None:
            row |= {"peak_mib": statistics.median(one[number] for one in memory), "counted_mib": counted[number]}
        rows.append(row)
    slopes = {"time": _compared(values, flops, cpu)}
    if memory is not None:
        slopes["memory"] = _compared(values, counted, memory)
    result: dict[str, Any] = {"method": method, "axis": axis, "rows": rows, "slopes": slopes}
    if axis != "processes" and not agrees(slopes["time"]):
        result["profile"] = [profiled(TrainingStep(points[end])) for end in (0, -1)]
    return result


def _flops_of_an_image(point: Point) -> float:
    with torch.device("meta"):
        flops = count_flops(build_method(point))
    assert flops is not None
    return flops


def measure_steps(points: Sequence[Point], settings: argparse.Namespace) -> tuple[list[list[float]], None]:
    """CPU milliseconds of a step, by round and point."""
    steps = {str(number): TrainingStep(point) for number, point in enumerate(points)}
    taken = argparse.Namespace(steps=settings.steps, device="cpu")
    times = take_turns(steps, functools.partial(timed, settings=taken, clock=time.process_time), rounds=settings.rounds)
    return [list(turn) for turn in zip(*times.values(), strict=True)], None


def measure_processes(
    points: Sequence[Point], settings: argparse.Namespace
) -> tuple[list[list[float]], list[list[float]]]:
    """CPU and wall milliseconds of a step of groups of processes, by round and point."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        groups = {}
        for point in points:
            groups[str(point.processes)] = group = Processes(point, Path(folder))
            ends.callback(group.end)
        times = take_turns(groups, lambda group: group.step(settings.steps), rounds=settings.rounds)
    turns = list(zip(*times.values(), strict=True))
    return [[cpu for cpu, _ in turn] for turn in turns], [[wall for _, wall in turn] for turn in turns]


def measure_memory(points: Sequence[Point], settings: argparse.Namespace) -> list[list[float]]:
    """MiB that steps add to a process's peak, by round and point."""
    measure_one = functools.partial(peak_memory, settings=argparse.Namespace(device="cpu"), start_method="forkserver")
    sides = {str(number): functools.partial(make_warm_step, point) for number, point in enumerate(points)}
    found = take_turns(sides, measure_one, rounds=settings.memory_rounds, warm_up=0)
    return [list(turn) for turn in zip(*found.values(), strict=True)]


def _compared(
    values: Sequence[float], expected: Sequence[float], measured: Sequence[Sequence[float]]
) -> dict[str, Any]:
    wanted, found = slope(values, expected), [slope(values, one) for one in measured]
    return {
        "expected": wanted,
        "median": statistics.median(found),
        "least": min(found),
        "most": max(found),
    }


def agrees(slopes: Mapping[str, float]) -> bool:
    """Whether the rounds hold what was expected."""
    return slopes["least"] - _ROUNDING <= slopes["expected"] <= slopes["most"] + _ROUNDING


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of slopes, then the profiles."""
    lines = [
        "| method | axis | from, to | images a CPU second | time: expected | time: measured "
        "| MiB counted | MiB measured | memory: expected | memory: measured |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        rows, slopes = result["rows"], result["slopes"]
        ends = rows[0], rows[-1]
        cells = [METHODS[result["method"]], AXES[result["axis"]][0], _ends(ends, "value")]
        cells += [_ends(ends, "images_per_cpu_s"), *_slope_cells(slopes["time"])]
        if "memory" in slopes:
            cells += [_ends(ends, "counted_mib"), _ends(ends, "peak_mib"), *_slope_cells(slopes["memory"])]
        else:
            cells += ["not measured"] * 4
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| method | axis | fixed, ms | beyond it, GFLOP/s | profile at | products, ms | others, ms | update, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        rows = result["rows"]
        cells = [METHODS[result["method"]], AXES[result["axis"]][0], *_line_cells(rows)]
        if "profile" in result:
            cells.append(_ends((rows[0], rows[-1]), "value"))
            cells += [" to ".join(f"{profile[part]:.0f}" for profile in result["profile"]) for part in PARTS]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _line_cells(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a step takes whatever its size, and the speed of the rest; nothing where operations do not grow."""
    operations = [row["gflop"] for row in rows]
    if max(operations) < 1.01 * min(operations):
        return ["-", "-"]
    line = statistics.linear_regression(operations, [row["cpu_ms"] for row in rows])
    return [f"{line.intercept:.0f}", f"{1e3 / line.slope:.0f}"]


def _ends(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return " to ".join(f"{row[key]:.3g}" if row[key] < 1000 else f"{row[key]:.0f}" for row in rows)


def _slope_cells(found: Mapping[str, float]) -> list[str]:
    measured = spread([found["least"], found["median"], found["most"]])
    return [f"{found['expected']:.2f}", measured if agrees(found) else f"{measured}, differs"]


def draw(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Images a CPU second and peak memory along each axis: points with their range, and dashed what was expected."""
    axes = list(dict.fromkeys(result["axis"] for result in results))
    figure = Figure(figsize=(3.1 * len(axes), 6.2), layout="constrained", facecolor="white")
    panels = figure.subplots(2, len(axes), squeeze=False)
    for result in results:
        number, color = axes.index(result["axis"]), {"mae": "#0060a8", "simmim": "#c04000"}[result["method"]]
        rows = result["rows"]
        values = [row["value"] for row in rows]
        _draw_line(panels[0][number], values, rows, color, METHODS[result["method"]])
        if "memory" in result["slopes"]:
            memory = panels[1][number]
            memory.plot(values, [row["peak_mib"] for row in rows], "o-", color=color)
            memory.plot(values, [row["counted_mib"] for row in rows], "--", color=color, alpha=0.8)
    for number, axis in enumerate(axes):
        for panel, label in zip(panels[:, number], ("images / CPU second", "peak memory of a step, MiB"), strict=True):
            panel.set(xscale="log", yscale="log", xlabel=AXES[axis][0], ylabel=label if number == 0 else "")
            panel.set_xticks(
                sorted({row["value"] for result in results if result["axis"] == axis for row in result["rows"]})
            )
            panel.minorticks_off()
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            for side in (panel.xaxis, panel.yaxis):
                side.set_major_formatter(ScalarFormatter())
                side.set_minor_formatter(NullFormatter())
            panel.grid(visible=True, which="both", alpha=0.25)
        if axis == "processes":
            panels[1][number].set_axis_off()
    panels[0][0].legend(fontsize=8)
    figure.suptitle("solid: measured; dashed: from counted operations, or from counted bytes", fontsize=10)
    return figure


def _draw_line(panel: Any, values: Sequence[float], rows: Sequence[Mapping[str, Any]], color: str, label: str) -> None:
    images = [row["processes"] * row["batch"] for row in rows]
    rates = [row["images_per_cpu_s"] for row in rows]
    least = [rate - 1e3 * count / row["cpu_ms_most"] for rate, count, row in zip(rates, images, rows, strict=True)]
    most = [1e3 * count / row["cpu_ms_least"] - rate for rate, count, row in zip(rates, images, rows, strict=True)]
    panel.errorbar(values, rates, yerr=[least, most], fmt="o-", color=color, capsize=2, label=label)
    per_flop = [count / row["gflop"] for count, row in zip(images, rows, strict=True)]
    level = statistics.geometric_mean(rates) / statistics.geometric_mean(per_flop)
    panel.plot(values, [level * one for one in per_flop], "--", color=color, alpha=0.8)


def write(results: Sequence[Mapping[str, Any]], out: Path) -> None:
    """The points as `out.csv`, all of it as `out.json`."""
    rows = [row for result in results for row in result["rows"]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with out.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    machine = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    content = json.dumps({"machine": machine, "results": results}, indent=1)
    out.with_suffix(".json").write_text(content + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="timed turns of each point")
    parser.add_argument("--memory-rounds", type=int, default=2, help="processes whose peak is measured, of each point")
    parser.add_argument("--steps", type=int, default=1, help="steps a turn")
    parser.add_argument("--only", nargs="+", choices=list(AXES), default=list(AXES), help="axes")
    parser.add_argument("--quick", action="store_true", help="two points an axis and two rounds")
    parser.add_argument("--out", type=Path, default=Path("scaling"), help="of the CSV and JSON files, without ending")
    parser.add_argument("--figure", type=Path, help="PNG file of the plot")
    parser.add_argument("--tables", type=Path, help="a JSON file of this script: shows it and measures nothing")
    settings = parser.parse_args()
    results = json.loads(settings.tables.read_text(encoding="utf-8"))["results"] if settings.tables else run(settings)
    print(markdown(results))
    if settings.figure is not None:
        draw(results).savefig(settings.figure, dpi=110)


def run(settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures each axis and writes what there is after each."""
    torch.set_num_threads(1)
    multiprocessing.set_forkserver_preload(_IMPORTED_ONCE)
    if settings.quick:
        settings.rounds, settings.memory_rounds = 2, 1
    results = []
    for axis in settings.only:
        values = AXES[axis][1][:2] if settings.quick else AXES[axis][1]
        for method, title in METHODS.items():
            results.append(measure(method, axis, values, settings))
            print(f"{title}, {AXES[axis][0]}: measured", flush=True)
            write(results, settings.out)
    return results


if __name__ == "__main__":
    main()
