"""Lets what nobody states of a training follow the number of its images, see `unmask.small_sets`.

The rules stand in the configuration, as `${fit_...}`; here they are given what they ask for. A setting of the command
line or of an experiment replaces its rule, and with an experiment named the rules keep their published values.
"""

import logging
from collections.abc import Iterator

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from unmask.data.datamodule import ImageDataModule
from unmask.runtime.backbone_shape import backbone_shape
from unmask.runtime.follow_steps import steps_an_epoch
from unmask.small_sets import image_size_for, is_small, steps_of

FEW_STEPS = 500  # of a whole run; ours
_LONG_WARMUP = 1 / 3  # of a whole run; ours
_log = logging.getLogger("unmask")
SET_HERE = ("num_train_images", "backbone_width", "train_image_side")
_RULES = ("${fit_", "${if_small:")
# What is shown of it.
_OF_A_RUN = (
    "global_batch_size",
    "trainer.max_epochs",
    "base_lr",
    "schedule.warmup_epochs",
    "method.teacher.time_constant",
    "method.reconstruction.weight",
    "method.reconstruction.normalize_window",
    "method.mask_value",
    "method.zero_init_residual",
    "method.normalize_window",
)
_OF_AN_EVALUATION = ("global_batch_size", "eval.epochs", "base_lr")


def is_following(config: DictConfig, *, names_experiment: bool | None = None) -> bool:
    """Whether the rules are in force: as `follow_data` says, else where no experiment was named.

    Args:
        config: Of a run or an evaluation.
        names_experiment: Whether one was; None asks the job of Hydra's that is under way, if any.

    Raises:
        ValueError: The user set what is counted here.
    """
    for name in SET_HERE:
        if config[name] is not None:
            raise ValueError(f"{name} cannot be set: it is read off the data and the model; leave {name} out")
    if config.follow_data is not None:
        return bool(config.follow_data)
    if names_experiment is None:
        names_experiment = HydraConfig.initialized() and bool(HydraConfig.get().runtime.choices.get("experiment"))
    return not names_experiment


def follow_training_images(config: DictConfig, data: ImageDataModule, *, names_experiment: bool | None = None) -> None:
    """Measures and counts the training images of a run that follows them, and tells the data the size and the batch."""
    if is_following(config, names_experiment=names_experiment):
        follow_image_size(config, data)
        tell_rules(config, num_train_images=data.num_train_images, backbone_width=backbone_shape(config.model).width)
        data.global_batch_size = config.global_batch_size


def follow_image_size(config: DictConfig, data: ImageDataModule) -> None:
    """Lets images be served at a size near their own, where a rule decides it."""
    if _written(config, "image_size").startswith(_RULES):
        config.train_image_side = data.median_side()
        data.set_image_size(config.data.image_size)


def tell_rules(config: DictConfig, *, num_train_images: int, backbone_width: int) -> None:
    """Writes into a configuration what its rules ask for."""
    config.num_train_images = num_train_images
    config.backbone_width = backbone_width


def describe_followed(config: DictConfig) -> str | None:
    """Lists the values that follow the images; to be asked before anything is built, which replaces rules by values.

    Returns:
        None where none does.
    """
    side = config.get("train_image_side")
    has_own_size = image_size_for(side) is not None and _written(config, "image_size").startswith(_RULES)
    size = f"image_size={config.image_size} of images of {side} px" if has_own_size else None
    values = [
        f"{path}={_shown(OmegaConf.select(config, path))}"
        for path in (_OF_A_RUN if "method" in config else _OF_AN_EVALUATION)
        if is_small(config.num_train_images) and _written(config, path).startswith(_RULES)
    ]
    by_number = f"{', '.join(values)}, of {config.num_train_images:,} images" if values else None
    return "; ".join(filter(None, (size, by_number))) or None


def _shown(value: float | bool | str) -> str:
    """Writes a value as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:.4g}"


def announce_followed(config: DictConfig) -> None:
    """Prints what follows the images; the configuration is the one composed."""
    followed = describe_followed(config)
    if followed is not None:
        _log.info(f"{'by images':>13}  {followed}")


def announce_length(config: DictConfig, *, num_images: int) -> None:
    """Prints what follows the images and what makes a run too short; the configuration is the one composed."""
    announce_followed(config)
    for advice in advice_on_length(config, num_images=num_images):
        _log.warning(advice)


def advice_on_length(config: DictConfig, *, num_images: int) -> Iterator[str]:
    """Says what makes a run that is about to begin too short.

    A teacher that is too slow for the run is named by its method.
    """
    trainer, batch = config.trainer, config.global_batch_size
    if num_images < batch:
        return  # the data refuse it
    an_epoch = steps_an_epoch(config, num_train_images=num_images)
    steps = steps_of(an_epoch * batch, batch, max_epochs=trainer.max_epochs, max_steps=trainer.get("max_steps"))
    if steps is not None and steps < FEW_STEPS:
        advice = f"raise trainer.max_epochs (now {trainer.max_epochs}) or lower global_batch_size (now {batch})"
        if steps == trainer.get("max_steps"):
            advice = f"raise trainer.max_steps (now {steps})"
        yield f"{steps:,} optimizer steps are few to learn from; {advice}"
    warmup = config.schedule.get("warmup_epochs") or 0.0
    if steps is not None and warmup * an_epoch > _LONG_WARMUP * steps:
        yield f"the rate rises for {warmup:g} epochs of a run of {steps / an_epoch:.3g}; lower warmup_epochs"
    if trainer.get("max_time") is not None:
        yield (
            "trainer.max_time may end the run before its schedule has brought the rate down; "
            "set trainer.max_epochs to what the time is enough for"
        )


def _written(config: DictConfig, path: str) -> str:
    """What stands at a place, with its rule unresolved; empty where nothing does."""
    node, _, key = path.rpartition(".")
    parent = OmegaConf.select(config, node) if node else config
    if not isinstance(parent, DictConfig) or key not in parent:
        return ""
    plain = OmegaConf.to_container(parent, resolve=False)
    return str(plain[key]) if isinstance(plain, dict) else ""
