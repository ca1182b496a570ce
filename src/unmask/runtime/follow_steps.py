"""A schedule that is a shape over the run, also where `trainer.max_steps` ends the run before its epochs do."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

_PLANNED = "${trainer.max_epochs}"  # what recipes state warm-up and milestones as fractions of


def follow_steps(config: DictConfig, *, num_train_images: int) -> None:
    """Lets warm-up and milestones that are fractions of the epochs be fractions of the steps that are really made.

    Lengths written as numbers stay as they are.

    Args:
        config: Of the run; `schedule` is changed where `trainer.max_steps` ends the run before `trainer.max_epochs`.
        num_train_images: Of the training split; what does not fill a batch is left to the next epoch.
    """
    max_steps, max_epochs = config.trainer.get("max_steps"), config.trainer.get("max_epochs")
    if not isinstance(max_steps, int) or max_steps <= 0:
        return
    epochs = max_steps / max(1, num_train_images // config.global_batch_size)
    if isinstance(max_epochs, int) and 0 <= max_epochs <= epochs:
        return
    raw: Any = OmegaConf.to_container(config.schedule, resolve=False)
    config.schedule = _with_length(raw, repr(epochs))


def _with_length(value: Any, epochs: str) -> Any:
    if isinstance(value, dict):
        return {key: _with_length(inner, epochs) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_length(inner, epochs) for inner in value]
    return value.replace(_PLANNED, epochs) if isinstance(value, str) else value
