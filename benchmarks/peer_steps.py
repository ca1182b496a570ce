"""What a training step costs beside the peers': transformers' ViTMAE and Swin, and lightly's MAE.

    python benchmarks/peer_steps.py                       # every row, on the CPU or the GPU
    python benchmarks/peer_steps.py mae_vit_tiny --rounds 8
    python benchmarks/peer_steps.py mae_vit_tiny --profile    # milliseconds of a step by kind of operation instead

Needs the development extra (`pip install -e .[dev]`), which holds both. A row has one network, batch and AdamW on all
sides, its decoder and masked fraction the paper's; a side takes the images as its library's training takes them. Sides
take turns in one process, so that whatever else the machine does falls on all of them; peak memory is what three steps
add to a process of their own. Each peer runs as its documentation has it (float32) and at its best that we know (under
bfloat16 autocast, PyTorch's fused attention). A ratio is the peer's time, or memory, over Unmask's: above 1, Unmask
needs less.
"""

import argparse
import functools
import os
import platform
import statistics
import warnings
from collections.abc import Callable
from typing import NamedTuple

import timm
import torch
from steps import Step, peak_memory, timed
from torch import Tensor, nn
from turns import ratios, spread, take_turns

OURS = "unmask"


class Row(NamedTuple):
    """One comparison."""

    overrides: tuple[str, ...]  # of run.py
    image_size: int
    batch_size: int
    masked_fraction: float
    sides: tuple[str, ...]


_MAE_SIDES = (OURS, "transformers", "transformers bf16", "lightly", "lightly bf16")
_SWIN_SIDES = (OURS, "transformers", "transformers bf16")
_PAPERS_DECODER = ("method.decoder.embed_dim=512", "method.decoder.depth=8", "method.decoder.num_heads=16")
ROWS = {
    "mae_vit_tiny": Row(("method=mae", "model=vit_tiny", *_PAPERS_DECODER), 224, 16, 0.75, _MAE_SIDES),
    "mae_vit_base": Row(("method=mae", "model=vit_base", *_PAPERS_DECODER), 224, 8, 0.75, _MAE_SIDES),
    "simmim_swin_tiny": Row(("method=simmim", "model=swin_tiny"), 224, 8, 0.6, _SWIN_SIDES),
    "simmim_swin_base": Row(("method=simmim", "model=swin_base", "model.window_size=6"), 192, 4, 0.6, _SWIN_SIDES),
}


KINDS = {  # of torch's operators, by what their names hold; the first that fits
    "AdamW": ("adamw", "Optimizer"),
    "matrix products": ("mm", "linear", "convolution", "matmul"),
    "fused attention": ("attention",),
    "softmax": ("softmax",),
    "norms": ("norm",),
    "GELU": ("gelu",),
    "casts, copies and gathers": ("copy_", "_to_copy", "cat", "gather", "scatter", "index", "clone", "repeat", "fill_"),
    "sums and products of tensors": ("add", "mul", "sub", "div", "sum", "mean", "pow", "rsqrt", "where"),
}
REST = "all else"
_PROFILED_STEPS = 3


def make_step(name: str, side: str, device: torch.device) -> Step:
    """A training step on one fixed batch."""
    torch.manual_seed(0)
    row = ROWS[name]
    images = torch.randn(row.batch_size, 3, row.image_size, row.image_size, device=device)
    library, _, precision = side.partition(" ")
    module, loss_of = {OURS: _ours, "transformers": _transformers, "lightly": _lightly}[library](row, device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    is_bfloat16 = library == OURS or precision == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bfloat16):
            loss = loss_of(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _ours(row: Row, device: torch.device) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    from unmask.backbones.attention import prefer_fast_attention  # noqa: PLC0415
    from unmask.runtime.builders import build  # noqa: PLC0415
    from unmask.runtime.config import compose_config  # noqa: PLC0415

    sizes = (f"image_size={row.image_size}", f"method.mask_generator.ratio={row.masked_fraction}")
    method = build(compose_config("run", [*row.overrides, *sizes]).method).to(device).train()
    prefer_fast_attention(method, device=device, is_bfloat16=True)
    return method, lambda images: method.training_output(images).loss


def _transformers(row: Row, device: torch.device) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    import transformers  # noqa: PLC0415

    if row.overrides[0] == "method=mae":
        reference = timm.create_model(_timm_name(row))
        width, depth = reference.embed_dim, len(reference.blocks)
        config = transformers.ViTMAEConfig(
            image_size=row.image_size,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=reference.blocks[0].attn.num_heads,
            intermediate_size=4 * width,
            norm_pix_loss=True,
            mask_ratio=row.masked_fraction,
        )
        model = transformers.ViTMAEForPreTraining(config).to(device).train()
        return model, lambda images: model(pixel_values=images).loss
    reference = timm.create_model(_timm_name(row))
    config = transformers.SwinConfig(
        image_size=row.image_size,
        embed_dim=reference.embed_dim,
        depths=[len(layer.blocks) for layer in reference.layers],
        num_heads=[layer.blocks[0].attn.num_heads for layer in reference.layers],
        window_size=6 if row.image_size == 192 else 7,
        encoder_stride=32,
    )
    model = transformers.SwinForMaskedImageModeling(config).to(device).train()
    units = row.image_size // 32
    tokens = units * 8  # a side, of 4 px

    def loss_of(images: Tensor) -> Tensor:
        order = torch.rand(len(images), units * units, device=device).argsort(1)
        masked = order < round(row.masked_fraction * units * units)
        by_token = masked.view(-1, units, 1, units, 1).expand(-1, units, 8, units, 8).reshape(-1, tokens * tokens)
        loss: Tensor = model(pixel_values=images, bool_masked_pos=by_token).loss
        return loss

    return model, loss_of


def _lightly(row: Row, device: torch.device) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightly.models import utils  # noqa: PLC0415
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM  # noqa: PLC0415

        vit = timm.create_model(_timm_name(row))
        backbone = MaskedVisionTransformerTIMM(vit=vit)
        patch = vit.patch_embed.patch_size[0]
        decoder = MAEDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            patch_size=patch,
            embed_dim=vit.embed_dim,
            decoder_embed_dim=512,
            decoder_depth=8,
            decoder_num_heads=16,
        )
    module = nn.ModuleList([backbone, decoder]).to(device).train()
    length = backbone.sequence_length

    def loss_of(images: Tensor) -> Tensor:
        kept, masked = utils.random_token_mask((len(images), length), mask_ratio=row.masked_fraction, device=device)
        encoded = decoder.embed(backbone.encode(images=images, idx_keep=kept))
        tokens = utils.repeat_token(decoder.mask_token, (len(images), length))
        tokens = utils.set_at_index(tokens, kept, encoded.type_as(tokens))
        predicted = decoder.predict(utils.get_at_index(decoder.decode(tokens), masked))
        target = utils.get_at_index(utils.patchify(images, patch), masked - 1)
        return nn.functional.mse_loss(predicted, utils.normalize_mean_var(target, dim=-1))

    return module, loss_of


def _timm_name(row: Row) -> str:
    size = row.overrides[1].rpartition("_")[2]
    return f"vit_{size}_patch16_224" if row.overrides[0] == "method=mae" else f"swin_{size}_patch4_window7_224"


def report(name: str, settings: argparse.Namespace) -> None:
    """Measures a row and prints its table."""
    row, device = ROWS[name], torch.device(settings.device)
    memory = {side: peak_memory(functools.partial(make_step, name, side, device), settings) for side in row.sides}
    steps = {side: make_step(name, side, device) for side in row.sides}
    times = take_turns(steps, functools.partial(timed, settings=settings), rounds=settings.rounds)
    print(f"\n{name}: {' '.join(row.overrides)}, {row.image_size} px, batch {row.batch_size}, {settings.rounds} rounds")
    print("| side | ms a step | time over Unmask's | peak memory, MiB | memory over Unmask's |\n|---|---|---|---|---|")
    for side in row.sides:
        against = spread(ratios(times[side], times[OURS]))
        fraction = memory[side] / memory[OURS]
        print(f"| {side} | {statistics.median(times[side]):.0f} | {against} | {memory[side]:.0f} | {fraction:.2f} |")


def profile(name: str, settings: argparse.Namespace) -> None:
    """Prints where the step of each side of a row spends its time on the CPU, by kind of operation."""
    row, device = ROWS[name], torch.device(settings.device)
    found = {side: _milliseconds_by_kind(make_step(name, side, device)) for side in row.sides}
    print(f"\n{name}: ms of a step, {row.image_size} px, batch {row.batch_size}, profiler on")
    print(f"| kind of operation | {' | '.join(row.sides)} |\n|---|{'---|' * len(row.sides)}")
    for kind in (*KINDS, REST):
        print(f"| {kind} | {' | '.join(f'{found[side][kind]:.0f}' for side in row.sides)} |")
    print(f"| together | {' | '.join(f'{sum(found[side].values()):.0f}' for side in row.sides)} |")


def _milliseconds_by_kind(step: Step) -> dict[str, float]:
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(_PROFILED_STEPS):
            step()
    milliseconds = dict.fromkeys((*KINDS, REST), 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), REST)
        milliseconds[kind] += event.self_cpu_time_total / 1e3 / _PROFILED_STEPS
    return milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; by default all")
    parser.add_argument("--rounds", type=int, default=6, help="timed turns of each side")
    parser.add_argument("--steps", type=int, default=1, help="steps a turn")
    parser.add_argument("--profile", action="store_true", help="print what a step of each side spends its time on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    settings = parser.parse_args()
    if unknown := set(settings.rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; choose from {', '.join(ROWS)}")
    import transformers  # noqa: PLC0415

    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; "
        f"torch {torch.__version__}, timm {timm.__version__}, transformers {transformers.__version__}"
    )
    for name in settings.rows or ROWS:
        (profile if settings.profile else report)(name, settings)


if __name__ == "__main__":
    main()
