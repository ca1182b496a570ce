"""What a training step of MAE on a backbone in stages saves by computing the visible mask units alone.

    python benchmarks/skipped_units.py --model hiera_tiny --image-size 224 --batch 16
    python benchmarks/skipped_units.py --model swin_tiny --image-size 224 --batch 8

Beside it stands the dense path at the same batch and precision: for a Hiera the same method with all units encoded,
masked tokens being replaced by a mask token behind the first convolution, and SimMIM on the Swin of `--swin`; for a
Swin SimMIM on the same one. Ratios are the defaults of either method (0.6; of MAE on a Swin 0.75) unless `--ratio` is
given. The sides take turns in one process, so that whatever else the machine does falls on all; on a CPU the time is
the process's own, which does not count waiting (set OMP_NUM_THREADS=1). Peak memory is that of a process of its own for
each. Prints all and the ratios.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from steps import peak_memory, timed
from torch import Tensor, nn
from turns import ratios, spread, take_turns

from unmask.backbones.attention import prefer_fast_attention
from unmask.methods.base import Method
from unmask.methods.mae import MAE
from unmask.optim.param_groups import decay_groups
from unmask.patches import PatchMask
from unmask.runtime.builders import build
from unmask.runtime.config import compose_config
from unmask.types import Images

VISIBLE, DENSE, SIMMIM = "visible units", "all units", "SimMIM"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hiera_mini")
    parser.add_argument("--swin", default="swin_mini", help="of SimMIM beside a Hiera")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--ratio", type=float, help="masked fraction of all sides")
    parser.add_argument("--rounds", type=int, default=8, help="timed turns of each side")
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("overrides", nargs="*", help="of MAE, such as method.decoder.depth=2")
    settings = parser.parse_args()

    is_hiera = settings.model.startswith("hiera")
    settings.swin = settings.swin if is_hiera else settings.model
    sides = (VISIBLE, DENSE, SIMMIM) if is_hiera else (VISIBLE, SIMMIM)
    dense = DENSE if is_hiera else SIMMIM

    memory = {name: peak_memory(functools.partial(make_step, name, settings), settings) for name in sides}
    steps = {name: make_step(name, settings) for name in sides}
    clock = time.perf_counter if settings.device.startswith("cuda") else time.process_time
    measure = functools.partial(timed, settings=settings, clock=clock)
    milliseconds = take_turns(steps, measure, rounds=settings.rounds)

    described = f"{settings.image_size} px, batch {settings.batch}, {settings.device}"
    print(f"MAE on {settings.model}, SimMIM on {settings.swin}, {described}, bfloat16 autocast")
    print("| step | ms (median) | fastest | times the visible one | peak memory, MiB | over the dense one's |")
    print("|---|---|---|---|---|---|")
    for name in sides:
        times = milliseconds[name]
        slower = spread(ratios(times, milliseconds[VISIBLE]))
        print(
            f"| {name} | {statistics.median(times):.1f} | {min(times):.1f} | {slower} | {memory[name]:.0f} | "
            f"{memory[name] / memory[dense]:.2f} |"
        )


class DenseMAE(nn.Module):
    """The loss of a MAE whose encoder is given all units, with a mask token in the place of masked tokens."""

    def __init__(self, method: MAE) -> None:
        super().__init__()
        self.method = method
        hiera: Any = method.backbone.hiera
        self.mask_token = nn.Parameter(0.02 * torch.randn(hiera.blocks[0].dim))
        self.masked: Tensor | None = None
        hiera.patch_embed.register_forward_hook(self._replace_masked)

    def forward(self, images: Images) -> Float[Tensor, ""]:
        method, backbone = self.method, self.method.backbone
        mask = method.mask_generator(images)
        self.masked = mask.at_stride(backbone.stages[0].stride).flatten(1)
        nothing = PatchMask(torch.zeros_like(mask.masked), mask.patch_size, num_masked=0)
        method.predict_patches = lambda shown, _, predicted=None: MAE.predict_patches(method, shown, nothing, predicted)  # type: ignore[method-assign]
        loss: Tensor = method.training_output(images * ~mask.at_pixels(), mask).loss
        return loss

    def _replace_masked(self, _: nn.Module, __: Any, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        assert self.masked is not None
        return torch.where(self.masked[..., None], self.mask_token.to(tokens.dtype), tokens)


def make_step(name: str, settings: argparse.Namespace) -> Callable[[], None]:
    """A training step on one fixed batch, as the Trainer takes it."""
    torch.manual_seed(0)
    device = torch.device(settings.device)
    chosen = (
        ["method=simmim", f"model={settings.swin}"] if name == SIMMIM else ["method=mae", f"model={settings.model}"]
    )
    changes = [] if name == SIMMIM else settings.overrides
    if settings.ratio is not None:
        changes = [*changes, f"method.mask_generator.ratio={settings.ratio}"]
    config = compose_config("run", [*chosen, f"image_size={settings.image_size}", *changes])
    method: Method = build(config.method)
    trained: nn.Module = DenseMAE(method) if name == DENSE and isinstance(method, MAE) else method
    trained = trained.to(device).train()
    prefer_fast_attention(trained, device=device, is_bfloat16=True)
    optimizer = torch.optim.AdamW(decay_groups(trained), lr=1e-4)
    images = torch.randn(settings.batch, 3, settings.image_size, settings.image_size, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = trained(images) if name == DENSE else method.training_output(images).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 5.0)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
