"""What a run tells its user at the start, and what libraries do not."""

import logging
import warnings

from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from unmask.callbacks.settings_card import describe_batch as batch_line
from unmask.runtime.started_processes import is_first_process

_EXPECTED_WARNINGS = (
    "You're resuming from a checkpoint that ended before the epoch ended",  # the sampler continues where it stopped
    "The '.*' does not have many workers",  # images in memory need none
    "The number of training batches",  # fewer than log_every_n_steps
    "Checkpoint directory .* exists and is not empty",  # several checkpoint callbacks share it
    r".*could not find the monitored key .'val/loss'",  # a run without validation keeps no best.ckpt
    r".*monitor='val/loss'.* could not find the monitored key",  # nor one that ends within its first epoch
    r"It is recommended to use `self.log\('(val|test)/",  # what is logged there is the mean over all devices already
    r"Found \d+ module\(s\) in eval mode",  # a teacher is in eval mode
    ".*isinstance.treespec, LeafSpec.. is deprecated",  # Lightning on torch 2.14
)


def describe_batch(config: DictConfig, trainer: Trainer) -> str:
    """Says how the global batch comes together, and what limited its parts."""
    return f"{batch_line(trainer, config.global_batch_size)}{describe_limit(config)}"


def describe_limit(config: DictConfig) -> str:
    """Says that `images_per_device` decided how the batch is accumulated; nothing where it did not."""
    is_derived = config.trainer.accumulate_grad_batches is None and config.images_per_device is not None
    return f" (images_per_device={config.images_per_device})" if is_derived else ""


def describe_learning_rate(config: DictConfig) -> str:
    """Says how the peak rate came about; to be asked before anything is built, which replaces rules by their values."""
    raw = OmegaConf.to_container(config.optimizer, resolve=False)
    if isinstance(raw, dict) and str(raw["lr"]).startswith("${scale_lr:"):
        rule = f"base_lr {config.base_lr:g} x {config.global_batch_size} / {config.base_batch_size}"
        return f"= {rule} (linear scaling)"
    return "as given"


def quiet_libraries() -> None:
    """Keeps what libraries say by default off the screen: hints, adverts, and every process but the first."""
    loggers = ["lightning.pytorch", "lightning.fabric", "lightning", "torch.distributed", "fsspec", "matplotlib"]
    for name in [*loggers, "timm", "httpx", "onnx_ir", "onnxscript"]:
        logging.getLogger(name).setLevel(logging.WARNING)
    if not is_first_process():
        logging.getLogger().setLevel(logging.WARNING)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
