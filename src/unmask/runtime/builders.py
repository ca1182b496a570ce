"""Turns parts of a configuration into objects; the only place that calls Hydra's `instantiate`."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry, CUDAAccelerator
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from unmask.callbacks.durable_checkpoint import DurableCheckpointIO
from unmask.callbacks.step_options import StepOptions
from unmask.data.datamodule import ImageDataModule
from unmask.methods.backbone_module import BackboneModule
from unmask.optim.accumulation import accumulated_batches
from unmask.runtime.secrets import redacted_for_its_owner
from unmask.runtime.started_processes import require_all_processes

STEP_OPTIONS = ("compile", "activation_checkpointing", "channels_last")  # keys of trainer that Lightning does not have
_GPUS = ("cuda", "mps")  # what Lightning takes for accelerator=gpu
_OF_FSDP = ("auto", "gpu", "cuda")


def build(config: Mapping[str, Any] | DictConfig, **arguments: Any) -> Any:
    """Instantiates a node; plain containers reach the constructor, never a configuration."""
    return instantiate(config, _convert_="all", **arguments)


def build_data(config: DictConfig) -> ImageDataModule:
    """Builds `config.data`.

    Raises:
        ValueError: The data are told another batch or seed than the run.
    """
    for name in ("global_batch_size", "seed"):
        if config.data[name] != config[name]:
            raise ValueError(f"data.{name}={config.data[name]} contradicts {name}={config[name]}; set {name} alone")
    data: ImageDataModule = build(config.data)
    return data


def write_statistics(config: DictConfig, data: ImageDataModule) -> None:
    """Writes the statistics that the data measure into the configuration, where models read them."""
    if data.statistics.are_measured:
        config.data.pixel_mean, config.data.pixel_std = list(data.pixel_mean), list(data.pixel_std)


def build_module(config: DictConfig, data: ImageDataModule) -> BackboneModule:
    """Builds a method; one that its file leaves to be completed (`_partial_`) is given the number of classes."""
    built = build(config)
    method: BackboneModule = built(num_classes=data.num_classes) if config.get("_partial_") else built
    return method


def build_trainer(config: DictConfig, **arguments: Any) -> Trainer:
    """Builds the Trainer with its callbacks and loggers; keyword arguments replace configured ones.

    Where `trainer.accumulate_grad_batches` is null it is derived from the global batch, the devices and
    `images_per_device`, once the Trainer knows how many devices there are.

    Raises:
        ValueError: The global batch does not divide among the devices, the machine has none such, fewer processes are
            used than were started, or the Trainer was given callbacks or loggers of its own, which are groups.
    """
    for group in ("callbacks", "logger"):
        if config.trainer.get(group) is not None:
            raise ValueError(
                f"trainer.{group} has no effect; {group} is a group: {group}=CHOICE, or {group}.NAME.KEY=VALUE"
            )
    if "callbacks" not in arguments:
        arguments["callbacks"] = build_entries(config.callbacks)
    if "logger" not in arguments:
        arguments["logger"] = build_loggers(config) or False
    options = {name: config.trainer[name] for name in STEP_OPTIONS}
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ValueError(f"trainer.{name} must be true or false, got {value!r}")
    if any(options.values()):
        arguments["callbacks"] = [*arguments["callbacks"], StepOptions(**options)]  # FLOPs are counted before
    require_device(config.trainer)
    given = config.trainer.accumulate_grad_batches
    plugins = [*(config.trainer.get("plugins") or []), DurableCheckpointIO()]
    trainer: Trainer = build(
        {name: value for name, value in resolve_config(config.trainer).items() if name not in STEP_OPTIONS},
        accumulate_grad_batches=1 if given is None else given,
        plugins=plugins,
        **arguments,
    )
    require_all_processes(trainer)
    if given is None:
        trainer.accumulate_grad_batches = accumulated_batches(
            config.global_batch_size, num_devices=trainer.world_size, images_per_device=config.images_per_device
        )
    return trainer


def require_device(trainer: DictConfig) -> None:
    """Refuses what Lightning could not compute on here, before it says so in its own words.

    Raises:
        ValueError: The machine lacks the accelerator, or FSDP has no GPU to shard over.
    """
    accelerator, strategy = str(trainer.accelerator), str(trainer.get("strategy"))
    if strategy.startswith("fsdp") and not (accelerator in _OF_FSDP and CUDAAccelerator.is_available()):
        raise ValueError(
            "Lightning shards a network (strategy=fsdp) over GPUs of CUDA alone, and "
            f"trainer.accelerator={accelerator} has none here; write strategy=ddp, which keeps it whole on each device"
        )
    kinds = _GPUS if accelerator == "gpu" else (accelerator,)
    known = [AcceleratorRegistry.get(kind) for kind in kinds if kind in AcceleratorRegistry]
    if known and not any(kind.is_available() for kind in known):
        raise ValueError(
            f"trainer.accelerator={accelerator} is not on this machine; write trainer.accelerator=auto, which takes "
            "what there is"
        )


def build_loggers(config: DictConfig) -> list[Logger]:
    """Builds the loggers of `config.logger`, in their order.

    Raises:
        ValueError: One needs a package that is not installed.
    """
    try:
        return build_entries(_logger_settings(config))
    except InstantiationException as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise ValueError(f"a logger needs a package that is missing: {_missing(error.__cause__)}") from error
        raise


def _missing(error: ModuleNotFoundError) -> str:
    return "mlflow; pip install 'unmask[mlflow]'" if "mlflow" in str(error) else str(error).partition("\n")[0]


def _logger_settings(config: DictConfig) -> Any:
    """Those of the loggers, without secrets that would be logged."""
    if not config.logger:
        return config.logger
    given = OmegaConf.to_container(config.logger, resolve=True)
    kept = redacted_for_its_owner("logger", resolve_config(config))
    return config.logger if kept == given else OmegaConf.create(kept)


def idle_settings(config: DictConfig) -> dict[str, str]:
    """Paths of settings that `build_trainer` makes no use of, each with the reason."""
    parts = config.trainer.accumulate_grad_batches
    if parts is None:
        return {}
    return {"images_per_device": f"trainer.accumulate_grad_batches={parts} says in how many parts a batch is computed"}


def build_entries(entries: DictConfig | None, **arguments: Any) -> list[Any]:
    """Builds the named entries of a group in their order; an entry set to null is left out."""
    return [build(entry, **arguments) for entry in (entries or {}).values() if entry is not None]


def resolve_config(config: DictConfig) -> dict[str, Any]:
    """Resolves a configuration to plain containers, fit for a checkpoint."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def backbone_changes(config: DictConfig) -> dict[str, Any]:
    """Settings of the backbone that an evaluation is given in place of its own."""
    return {name: value for name, value in resolve_config(config.backbone).items() if value is not None}
