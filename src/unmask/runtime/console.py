"""What a run tells its user: the plan at the start, one sentence for a mistake."""

import difflib
import logging
import os
import re
import warnings
from collections.abc import Sequence

from hydra.errors import InstantiationException
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from unmask.data.datamodule import ImageDataModule
from unmask.methods.backbone_module import BackboneModule

_log = logging.getLogger("unmask")
_KEYS_ELSEWHERE = {  # what other programs of this kind call it, by the last part of the key
    "batch_size": "global_batch_size",
    "train_batch_size": "global_batch_size",
    "lr": "base_lr",
    "learning_rate": "base_lr",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "max_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
    "devices": "trainer.devices",
    "gpus": "trainer.devices",
    "num_gpus": "trainer.devices",
    "mask_ratio": "method.mask_generator.ratio",
}
_PARTS_ELSEWHERE = {"datamodule": "data", "module": "model"}
_COMPUTING_FAILED = re.compile(r"\w+ raised while resolving interpolation: ")
_MAX_OPTIONS = 20  # shown in one sentence
_OMEGACONF_DETAILS = ("full_key:", "object_type=", "reference_type=")
_FROM_WORKER = re.compile(r"Caught \w+ in DataLoader worker process")
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


def one_sentence(error: BaseException, known_keys: Sequence[str], groups: Sequence[str]) -> str:
    """Says what a user got wrong, with the nearest valid names where a name is unknown."""
    text = _innermost(error)
    other_command = re.search(r"In '(experiment|base)/([^']+)': Could not override '(\w+)'", text)
    if other_command:
        name = f"experiment={other_command[2]}" if other_command[1] == "experiment" else "this experiment"
        command = "eval.py" if other_command[3] == "eval" else "run.py"
        return f"{name} is for the other command; use python {command} experiment=NAME"
    unknown_key = re.search(r"Could not override '([^']+)'", text)
    if unknown_key:
        return _unknown_key(unknown_key[1], known_keys, groups)
    unknown_choice = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if unknown_choice:
        return _unknown_choice(unknown_choice[1], unknown_choice[2], text)
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing[1]} must be given; add {missing[1]}=VALUE to the command"
    lines = (line.strip() for line in _COMPUTING_FAILED.sub("", text).splitlines())
    return " ".join(line for line in lines if line and not line.startswith(_OMEGACONF_DETAILS))


def _innermost(error: BaseException) -> str:
    """The text of the error, unpacked where Hydra wrapped a constructor's into its own."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    text = str(error) or type(error).__name__
    if not _FROM_WORKER.match(text):
        return text
    last = text.strip().rpartition("\n")[2]  # torch puts the traceback of the worker before its error
    return last.partition(": ")[2] or last


def _unknown_key(key: str, known_keys: Sequence[str], groups: Sequence[str]) -> str:
    known = list(dict.fromkeys([*known_keys, *groups]))
    renamed = ".".join(_PARTS_ELSEWHERE.get(part, part) for part in key.split("."))
    renamed = _KEYS_ELSEWHERE.get(key.rpartition(".")[2], renamed)
    if key in known:
        return f"{key} is not a key of the chosen configuration; add it by +{key}=..., all keys are listed by --cfg job"
    near = [renamed] if renamed in known else difflib.get_close_matches(renamed, known, n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    return f"unknown key {key!r}{hint}. A new key is added by +{key}=..., all keys are listed by --cfg job"


def _unknown_choice(group: str, choice: str, text: str) -> str:
    available = re.search(r"Available options in '[^']*':\s*(.*)", text, flags=re.DOTALL)
    options = re.findall(r"[\w.-]+", available[1].split("Config search path")[0]) if available else []
    near = difflib.get_close_matches(choice, options, n=3, cutoff=0.4) or options
    if len(options) > _MAX_OPTIONS:
        return f"{group}={choice} does not exist; nearest: {', '.join(near[:3])} (all {len(options)} by --help)"
    return f"{group}={choice} does not exist; nearest: {', '.join(near)} (of {', '.join(options)})"


def calm_libraries() -> None:
    """Keeps what libraries say by default off the screen: hints, adverts, and every process but the first."""
    loggers = ["lightning.pytorch", "lightning.fabric", "lightning", "torch.distributed", "fsspec", "matplotlib"]
    for name in [*loggers, "timm", "httpx", "onnx_ir", "onnxscript"]:
        logging.getLogger(name).setLevel(logging.WARNING)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        logging.getLogger().setLevel(logging.WARNING)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
