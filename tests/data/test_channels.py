"""Images of other channels than RGB, from their files to the weights of every method."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Trainer

TINY = {
    "mae": [
        "model=vit_mini",
        "model.embed_dim=24",
        "model.depth=2",
        "method.decoder.embed_dim=24",
        "method.decoder.depth=1",
        "method.decoder.num_heads=3",
    ],
    "simmim": ["model=swin_mini", "model.embed_dim=24", "model.depths=[1,1]", "model.num_heads=[1,2]"],
    "ddmim": [
        "model=swin_mini",
        "model.embed_dim=24",
        "model.depths=[1,1]",
        "model.num_heads=[1,2]",
        "method.mask_generator.ratios=[0.5,0.5]",
        "method.mask_generator.patch_size=8",
        "method.features.weights=[1,0.1]",
    ],
}


def write_arrays(folder: Path, channels: int, count: int = 8) -> list[np.ndarray]:
    """Arrays of 16-bit numbers, each channel about a level of its own."""
    draw = np.random.default_rng(0)
    levels = 1000 * (1 + np.arange(channels))[:, None, None]
    arrays = [(levels + draw.integers(0, 900, (channels, 36, 32))).astype(np.uint16) for _ in range(count)]
    for number, array in enumerate(arrays):
        np.save(folder / f"{number}.npy", array)
    return arrays


@pytest.mark.parametrize("channels", [1, 4, 7])
@pytest.mark.parametrize("method", TINY)
def test_every_method_trains_on_any_number_of_channels(method: str, channels: int, tmp_path: Path) -> None:
    from unmask.runtime.builders import build, build_module
    from unmask.runtime.checkpoint import build_backbone
    from unmask.runtime.config import compose_config

    write_arrays(tmp_path, channels)
    numbers = [0.1 * (1 + channel) for channel in range(channels)]
    overrides = ["data=folder", f"data.root={tmp_path}", f"data.channels={channels}", "image_size=32"]
    overrides += [f"data.pixel_mean={numbers}", f"data.pixel_std={numbers}", "data.pixel_scale=10000"]
    overrides += ["data.val_fraction=0.2", "data.test_fraction=0.2", "data.num_workers=0", "global_batch_size=2"]
    config = compose_config("run", [f"method={method}", *TINY[method], *overrides])
    data = build(config.data)
    module = build_module(config.method, data)
    before = {name: weights.clone() for name, weights in module.backbone.named_parameters()}
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        **quiet,
    )

    trainer.fit(module, datamodule=data)

    (stem,) = [name for name in before if name.endswith("patch_embed.proj.weight")]
    weights = dict(module.backbone.named_parameters())[stem]
    assert weights.shape[1] == channels
    assert (weights != before[stem]).any(dim=(0, 2, 3)).all()  # every channel has been learned from
    assert module(next(iter(data.val_dataloader())).image.float()).prediction.shape[1] == channels
    assert build_backbone(module.exported_backbone.settings).in_channels == channels
