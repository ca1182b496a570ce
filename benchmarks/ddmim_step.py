"""What a training step of DDMIM costs, dense and sparse, beside one of SimMIM: same backbone, batch, optimizer.

    python benchmarks/ddmim_step.py --model swinv2_tiny --image-size 224 --batch 16

They take turns in one process, so that whatever else the machine does falls on all; peak memory is that of a process
of its own for each. Prints all and the ratios.
"""

import argparse
import functools
import statistics
from collections.abc import Callable

import torch
from steps import peak_memory, timed
from turns import ratios, spread, take_turns

from unmask.backbones.attention import prefer_fast_attention
from unmask.methods.base import Method
from unmask.methods.ddmim import DDMIM
from unmask.optim.param_groups import decay_groups
from unmask.runtime.builders import build
from unmask.runtime.config import compose_config

METHODS = ("simmim", "ddmim", "ddmim_sparse")
RATIOS = (("ddmim", "simmim"), ("ddmim_sparse", "simmim"), ("ddmim_sparse", "ddmim"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="swinv2_mini")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=8, help="timed turns of each method")
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("overrides", nargs="*", help="of the DDMIM run, such as method.contrast=null")
    settings = parser.parse_args()

    memory = {name: peak_memory(functools.partial(make_step, name, settings), settings) for name in METHODS}
    steps = {name: make_step(name, settings) for name in METHODS}
    milliseconds = take_turns(steps, functools.partial(timed, settings=settings), rounds=settings.rounds)

    print(f"{settings.model}, {settings.image_size} px, batch {settings.batch}, {settings.device}, bfloat16 autocast")
    print("| method | ms a step (median) | fastest | peak memory, MiB |\n|---|---|---|---|")
    for name in METHODS:
        times = milliseconds[name]
        print(f"| {name} | {statistics.median(times):.1f} | {min(times):.1f} | {memory[name]:.0f} |")
    print("| ratio | turn by turn | of the fastest | of peak memory |\n|---|---|---|---|")
    for name, other in RATIOS:
        times, others = milliseconds[name], milliseconds[other]
        print(
            f"| {name} / {other} | {spread(ratios(times, others))} | {min(times) / min(others):.2f} | "
            f"{memory[name] / memory[other]:.2f} |"
        )


def make_step(name: str, settings: argparse.Namespace) -> Callable[[], None]:
    """A training step on one fixed batch, as the Trainer takes it."""
    torch.manual_seed(0)
    device = torch.device(settings.device)
    overrides = [f"method={name}", f"model={settings.model}", f"image_size={settings.image_size}"]
    is_mini = settings.model.endswith("mini")
    if name != "ddmim_sparse":
        overrides += [f"method.mask_generator.patch_size={8 if is_mini else 16}"]
    if name == "ddmim":
        is_an_experiment = any(override.startswith("experiment=") for override in settings.overrides)
        if is_mini and not is_an_experiment:
            overrides += ["method.mask_generator.ratios=[0.5,0.5]"]
        overrides += settings.overrides
    config = compose_config("run", overrides)
    method: Method = build(config.method).to(device).train()
    prefer_fast_attention(method, device=device, is_bfloat16=True)
    optimizer = torch.optim.AdamW(decay_groups(method), lr=1e-4)
    images = torch.randn(settings.batch, 3, settings.image_size, settings.image_size, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = method.training_output(images).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 5.0)
        optimizer.step()
        if isinstance(method, DDMIM) and method.teacher is not None:
            method.teacher.update(method.student_networks(), num_images=settings.batch, step_of_epoch=1)

    return step


if __name__ == "__main__":
    main()
