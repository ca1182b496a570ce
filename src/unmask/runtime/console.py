"""What a run tells its user at the start, and what libraries do not."""

import logging
import os
import warnings

from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from unmask.data.datamodule import ImageDataModule
from unmask.methods.backbone_module import BackboneModule

_log = logging.getLogger("unmask")
_EXPECTED_WARNINGS = (
    "You're resuming from a checkpoint that ended before the epoch ended",  # the sampler continues where it stopped
    "The '.*' does not have many workers",  # images in memory need none
    "The number of training batches",  # fewer than log_every_n_steps
    "Checkpoint directory .* exists and is not empty",  # several checkpoint callbacks share it
    r".*could not find the monitored key .'val/loss'",  # a run without validation keeps no best.ckpt
    r"Found \d+ module\(s\) in eval mode",  # a teacher is in eval mode
    ".*isinstance.treespec, LeafSpec.. is deprecated",  # Lightning on torch 2.14
)


def print_plan(
    config: DictConfig, learning_rate: str, method: BackboneModule, data: ImageDataModule, trainer: Trainer
) -> None:
    """States what is about to run, derived values included."""
    backbone = method.exported_backbone
    total = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    own = sum(parameter.numel() for parameter in backbone.parameters())
    height, width = backbone.image_size
    steps = len(data.dataset("train")) // config.global_batch_size
    lines = {
        "method": f"{type(method).__name__}, {total / 1e6:.2f} M trainable parameters, backbone {own / 1e6:.2f} M",
        "images": f"{len(data.dataset('train')):,} to train on, {len(data.dataset('val')):,} held out, "
        f"{height}x{width} px",
        **({"pixels": data.describe_statistics()} if data.statistics == "auto" else {}),
        "batch": f"{describe_batch(config, trainer)}; {steps:,} steps an epoch, {trainer.max_epochs} epochs",
        "learning rate": learning_rate,
        "device": f"{trainer.num_devices} x {type(trainer.accelerator).__name__.removesuffix('Accelerator')}, "
        f"precision {trainer.precision}, seed {config.seed}",
        "output": str(config.paths.run_dir),
    }
    for name, value in lines.items():
        _log.info(f"{name:>13}  {value}")


def describe_batch(config: DictConfig, trainer: Trainer) -> str:
    """Says how the global batch comes together."""
    accumulated = trainer.accumulate_grad_batches
    each = config.global_batch_size // (trainer.world_size * accumulated)
    is_derived = config.trainer.accumulate_grad_batches is None and config.images_per_device is not None
    limit = f" (images_per_device={config.images_per_device})" if is_derived else ""
    return f"{config.global_batch_size} = {each} x {trainer.world_size} device(s) x {accumulated} accumulated{limit}"


def describe_learning_rate(config: DictConfig) -> str:
    """Says how the peak rate came about; to be asked before anything is built, which replaces rules by their values."""
    peak = config.optimizer.lr
    raw = OmegaConf.to_container(config.optimizer, resolve=False)
    if isinstance(raw, dict) and str(raw["lr"]).startswith("${scale_lr:"):
        rule = f"base_lr {config.base_lr:g} x {config.global_batch_size} / {config.base_batch_size}"
        return f"{peak:.3g} at its peak = {rule} (linear scaling)"
    return f"{peak:.3g} at its peak, as given"


def calm_libraries() -> None:
    """Keeps what libraries say by default off the screen: hints, adverts, and every process but the first."""
    loggers = ["lightning.pytorch", "lightning.fabric", "lightning", "torch.distributed", "fsspec", "matplotlib"]
    for name in [*loggers, "timm", "httpx", "onnx_ir", "onnxscript"]:
        logging.getLogger(name).setLevel(logging.WARNING)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        logging.getLogger().setLevel(logging.WARNING)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
