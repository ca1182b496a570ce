"""Values a configuration computes: `${name:arguments}`."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from omegaconf import ListConfig, OmegaConf

from unmask.optim.scaling import scale_lr
from unmask.small_sets import (
    USUAL_SIDE,
    batch_size_for,
    epochs_for,
    image_size_for,
    is_small,
    peak_lr_for,
    steps_of,
    time_constant_for,
    warmup_steps_for,
)

if TYPE_CHECKING:
    from unmask.runtime.backbone_shape import BackboneShape

GROUP_OF_BASES = "base"  # what files of other groups start from; no choice of a user's
_PROBE = "probe/"
_BEST_WHEN_LARGE = ("top1", "top5", "accuracy", "effective_rank", "rank_fraction")  # what names of readings end in

_PATCHES_ACROSS = 8  # along the side of an image too small for the usual patches
_UNITS_ACROSS = 4  # of masking, along the side of an image too small for the usual ones
_TOKENS_OF_A_UNIT = 4  # along a unit of masking in stages: as large as a cell of the third, so that masks nest
_STRIDES_OF_SWIN = (4, 8, 16, 32)
_SMALL_FOR_UNITS = USUAL_SIDE  # below, 16 px patches would leave fewer than 10 to a side
_SMALL_FOR_SWIN = 128  # px: below, 4 px tokens would leave less than 4x4 in the last of four stages


def register_resolvers(*, is_completing: bool = False) -> None:
    """Makes the resolvers known to OmegaConf; safe to call again.

    Args:
        is_completing: For shell completion, which reads names and values alike and waits for nothing: what torch or a
            backbone would have to be asked for is left blank.
    """
    resolvers: dict[str, Callable[..., object]] = {
        "scale_lr": peak_lr,
        "fraction": fraction,
        "times": times,
        "fit_image_size": fit_image_size,
        "fit_patch": fit_patch,
        "fit_mask_patch": fit_mask_patch,
        "fit_stage_mask_patch": fit_stage_mask_patch,
        "one_a_stage": one_a_stage,
        "visible_unit": visible_unit,
        "if_visible_by_cell": if_visible_by_cell,
        "if_hierarchical": if_hierarchical,
        "fit_swin_patch": fit_swin_patch,
        "fit_window": fit_window,
        "fit_normalize_window": fit_normalize_window,
        "if_small": if_small,
        "fit_zero_init": fit_zero_init,
        "fit_batch": fit_batch,
        "fit_epochs": fit_epochs,
        "fit_base_lr": fit_base_lr,
        "fit_warmup": fit_warmup,
        "fit_time_constant": fit_time_constant,
        "auto_precision": auto_precision,
        "auto_workers": auto_workers,
        "config_groups": config_groups,
        "run_folder": run_folder,
        "wandb_run": wandb_run,
        "best_by": best_by,
        "best_mode": best_mode,
        "only_probes": only_probes,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    if is_completing:
        for name in ("auto_precision", "visible_unit", "if_visible_by_cell", "if_hierarchical"):
            OmegaConf.register_new_resolver(name, _blank, replace=True)


def peak_lr(base_lr: Any, base_batch_size: Any, global_batch_size: Any) -> float:
    """Scales the rate of a batch of `base_batch_size` images to the batch of the run, see `scale_lr`.

    Raises:
        ValueError: One of them is no number.
    """
    given = {"base_lr": base_lr, "base_batch_size": base_batch_size, "global_batch_size": global_batch_size}
    for name, value in given.items():
        if not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
    return scale_lr(base_lr, base_batch_size, global_batch_size)


def best_by(monitor: str | None, probes: Any) -> str:
    """Names the reading that `best.ckpt` follows: the one given, that of the first probe, or the validation loss.

    Raises:
        ValueError: The reading is one of a probe that there is not.
    """
    names = [str(name) for name in probes or {} if probes[name] is not None]
    if monitor is None:
        return f"{_PROBE}{names[0]}/logistic_top1" if names else "val/loss"
    if not isinstance(monitor, str):
        raise ValueError(f"monitor must be the name of a reading, such as val/loss, got {monitor!r}")
    readings = [f"{_PROBE}{name}/{kind}_top1" for name in names for kind in ("knn", "logistic")]
    if monitor.startswith(_PROBE) and monitor not in readings:
        known = f"there are {', '.join(readings)}" if readings else "there is no probe; add probes.NAME.data=own"
        raise ValueError(f"monitor={monitor} is the reading of no probe; {known}")
    return monitor


def best_mode(monitor: str) -> str:
    """Whether a reading is best when large or when small."""
    return "max" if str(monitor).endswith(_BEST_WHEN_LARGE) else "min"


def only_probes(monitor: str) -> bool | None:
    """True for a reading of a probe, which an epoch's validation comes before; null leaves the moment to Lightning."""
    return True if str(monitor).startswith(_PROBE) else None


def fraction(part: float, whole: Any) -> float:
    """Takes a part in 0..1 of a length; nothing of a length that is not set (None or -1 in Lightning).

    Raises:
        ValueError: The length is no number.
    """
    if whole is not None and not isinstance(whole, int | float):
        raise ValueError(f"the number of epochs must be a number, got {whole!r}; set trainer.max_epochs or eval.epochs")
    return part * whole if whole is not None and whole > 0 else 0.0


def times(factor: int, size: Any) -> Any:
    """Multiplies a size by a whole number; what is no size is left for its owner to refuse."""
    return factor * size if isinstance(size, int) else size


def fit_image_size(size: int, train_image_side: int | None) -> int:
    """The side that images are served at, near their own where they are small."""
    own = image_size_for(train_image_side)
    return size if own is None else min(size, own)


def fit_patch(size: int, image_size: Any) -> int:
    """Keeps the usual patch for usual images and takes an eighth of the side of smaller ones.

    There it is the nearest number that divides the sides; patches of a pixel alone do not count.
    """
    side = _shorter_side(image_size)
    if side >= _SMALL_FOR_UNITS:
        return size
    wanted = side / _PATCHES_ACROSS
    sides = [image_size] if isinstance(image_size, int) else list(image_size)
    smallest = max(1, side // _PATCHES_ACROSS)
    fitting = [
        patch for patch in range(min(2, smallest), side // 2 + 1) if all(length % patch == 0 for length in sides)
    ]
    return min(fitting, key=lambda patch: abs(patch - wanted), default=smallest)


def fit_mask_patch(size: int, image_size: Any, patch_size: Any) -> int:
    """Keeps the usual unit of masking for usual images and takes a quarter of the side of smaller ones.

    There it is a multiple of the backbone's patch that divides the sides, if one does.
    """
    side = _shorter_side(image_size)
    if side >= _SMALL_FOR_UNITS:
        return size
    if not isinstance(patch_size, int):
        return max(1, side // _UNITS_ACROSS)
    sides = [image_size] if isinstance(image_size, int) else list(image_size)
    fitting = [
        unit
        for unit in range(patch_size, max(patch_size, side // _UNITS_ACROSS) + 1, patch_size)
        if all(length % unit == 0 for length in sides)
    ]
    return max(fitting, default=patch_size)


def one_a_stage(each: float, last: float, model: Any) -> ListConfig:
    """Lists one number for each stage of a backbone, another one for the last; a single stage takes the first."""
    num_stages = len(_strides(model))
    return ListConfig([each] * max(1, num_stages - 1) + [last] * (num_stages > 1))


def fit_stage_mask_patch(model: Any, image_size: Any) -> Any:
    """Masks four tokens to a side in usual images and a quarter of the side of smaller ones.

    There it is whole cells of the last stage but one, the deepest that is masked, and divides the sides, if any does.
    """
    if not isinstance(model.patch_size, int) or _shorter_side(image_size) >= _SMALL_FOR_UNITS:
        return times(_TOKENS_OF_A_UNIT, model.patch_size)
    cell = [*_strides(model)][-2:][0]
    return fit_mask_patch(cell, image_size, cell)


def visible_unit(model: Any) -> Any:
    """What a backbone can leave out, in pixels; of one that cannot be built, which is refused later, its patch."""
    shape = _shape(model)
    if shape is None:
        return model.patch_size
    unit = shape.visible_unit_size
    return unit if isinstance(unit, int) else ListConfig(list(unit))


def if_visible_by_cell(then: Any, otherwise: Any, model: Any) -> Any:
    """Chooses a value where a backbone needs one visible unit in each of some squares, another one elsewhere."""
    shape = _shape(model)
    return then if shape is not None and shape.visible_cell > 1 else otherwise


def if_hierarchical(then: Any, otherwise: Any, model: Any) -> Any:
    """Chooses a value where the stages of a backbone have patches of several sizes, another one elsewhere."""
    shape = _shape(model)
    return then if shape is not None and len(set(shape.strides)) > 1 else otherwise


def fit_swin_patch(size: int, image_size: Any) -> int:
    """Keeps Swin's usual token for usual images and halves it for smaller ones."""
    return size if _shorter_side(image_size) >= _SMALL_FOR_SWIN else max(1, size // 2)


def fit_normalize_window(image_size: Any) -> int:
    """Half the shorter side and a pixel in the middle: what targets of a short run are normalized by."""
    return 2 * max(1, _shorter_side(image_size) // 4) + 1


def fit_window(window: int, patch_size: Any, image_size: int | Sequence[int], num_stages: int) -> int:
    """Finds the window nearest to the usual one that tiles every stage; the usual one where none does.

    A grid no larger than the window counts as one window. An image that fits no window is left for the backbone to
    refuse, which says what would fit, as it refuses a patch that is not one number.
    """
    if not isinstance(patch_size, int):
        return window
    sides = [image_size] if isinstance(image_size, int) else list(image_size)
    grids = [side // (patch_size * 2**stage) for side in sides for stage in range(num_stages)]
    largest = max(2 * window, min(grids))  # a window as large as the last grid always tiles the others
    fitting = [w for w in range(2, largest + 1) if all(grid % w == 0 or grid <= w for grid in grids)]
    return min(fitting, key=lambda w: abs(w - window), default=window)


def if_small(otherwise: Any, num_train_images: int | None, small: Any) -> Any:
    """Chooses another value where the training images are few, see `small_sets`."""
    return small if is_small(num_train_images) else otherwise


def fit_zero_init(otherwise: bool, num_train_images: int | None, mask_value: str) -> bool:
    """Whether residual branches start closed: on small sets they start open, but on masked tokens of 0."""
    return otherwise if mask_value == "zero" else bool(if_small(otherwise, num_train_images, small=False))


def fit_batch(otherwise: int, num_train_images: int | None) -> int:
    """The global batch of a small set."""
    return otherwise if num_train_images is None or not is_small(num_train_images) else batch_size_for(num_train_images)


def fit_epochs(
    otherwise: int,
    num_train_images: int | None,
    global_batch_size: Any,
    max_steps: Any,
    *limits: Any,
) -> int:
    """The length of a training on a small set; where the user counts in steps, as many epochs as those take.

    Where the user also limits the batches of an epoch, the steps alone end the run.
    """
    if num_train_images is None or not is_small(num_train_images) or not _is_count(global_batch_size):
        return otherwise
    if any(limits) and _is_count(max_steps):
        return -1
    return epochs_for(num_train_images, global_batch_size, num_steps=max_steps if _is_count(max_steps) else None)


def fit_base_lr(
    otherwise: float, num_train_images: int | None, width: int | None, global_batch_size: Any, base_batch_size: Any
) -> float:
    """The base rate that linear scaling turns into the peak of a small set, whatever the batch."""
    is_known = _is_count(global_batch_size) and _is_count(base_batch_size) and width is not None
    if not is_small(num_train_images) or not is_known:
        return otherwise
    assert width is not None
    return peak_lr_for(global_batch_size, width) * float(base_batch_size) / float(global_batch_size)


def fit_warmup(
    otherwise: float,
    num_train_images: int | None,
    global_batch_size: Any,
    max_epochs: Any,
    max_steps: Any,
    *limits: Any,
) -> float:
    """Epochs in which the rate of a training on a small set rises.

    Where the user limits the batches of an epoch, only the program knows how many of them the steps make, and puts that
    in the place of `max_epochs` (`follow_steps`).
    """
    steps = _steps_of_small(num_train_images, global_batch_size, max_epochs, max_steps)
    if num_train_images is None or steps is None:
        return otherwise
    if any(limits):
        return warmup_steps_for(1) * float(max_epochs) if max_epochs is not None and max_epochs > 0 else otherwise
    return warmup_steps_for(steps) / max(1, num_train_images // int(global_batch_size))


def fit_time_constant(otherwise: float, num_train_images: int | None, global_batch_size: Any) -> float:
    """Images over which a teacher averages on a small set."""
    if num_train_images is None or not is_small(num_train_images) or not _is_count(global_batch_size):
        return otherwise
    return time_constant_for(num_train_images, global_batch_size)


def _steps_of_small(num_images: int | None, batch_size: Any, max_epochs: Any, max_steps: Any) -> int | None:
    """Optimizer steps of a training on a small set; None for another set and for a run without a known end."""
    if num_images is None or not is_small(num_images) or not _is_count(batch_size):
        return None
    limits = {"max_epochs": max_epochs, "max_steps": max_steps}
    if not all(limit is None or isinstance(limit, int | float) for limit in limits.values()):
        return None  # left for Lightning to refuse
    return steps_of(num_images, batch_size, **limits)


def auto_precision(accelerator: str) -> str:
    """Chooses bf16-mixed where the device computes in bfloat16, else 32-true."""
    import torch  # noqa: PLC0415  (`--help` registers this rule and never asks it)

    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    has_bfloat16 = torch.cuda.is_bf16_supported() if on_gpu else _cpu_computes_in_bfloat16()
    return "bf16-mixed" if has_bfloat16 and accelerator != "mps" else "32-true"


def config_groups(chosen: Mapping[str, Any]) -> str:
    """Lists the groups that a command chooses from and the choices it takes, a line each, for `--help`.

    Args:
        chosen: What stands at each group in the command's configuration; a group that is not in it is another's.
    """
    loader = GlobalHydra.instance().config_loader()
    groups = [group for group in sorted(loader.list_groups("")) if group in chosen and group != "hydra"]
    from unmask.runtime.experiments import is_for_command  # noqa: PLC0415  (it imports this module)

    choices = {group: loader.get_group_options(group) for group in groups}
    if "experiment" in choices:
        choices["experiment"] = [name for name in choices["experiment"] if is_for_command(name, set(chosen))]
    return "\n".join(f"{group}: {', '.join(names)}" for group, names in choices.items())


def run_folder(resume: str, now: str, num_nodes: int) -> str:
    """Names a run's folder by the time, but always the same where a run is to be found again by its name.

    Raises:
        ValueError: Several processes begin the run, whose clocks differ.
    """
    if resume != "never":
        return "auto"
    from unmask.runtime.started_processes import shared_by_processes  # noqa: PLC0415  (Lightning: `--help` asks not)

    return shared_by_processes(now, num_nodes=num_nodes)


def wandb_run(run_dir: str, resumed_step: int | None) -> str | None:
    """Finds the id of the W&B run whose folder lies in that of a run which is continued; None for a new one."""
    if resumed_step is None:
        return None
    folders = sorted((Path(run_dir) / "wandb").glob("*run-*-*"), key=lambda folder: folder.name.partition("run-")[2])
    return folders[-1].name.rpartition("-")[2] if folders else None


def auto_workers() -> int:
    """One worker a core, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _blank(*_: object) -> str:
    return ""


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and number > 0


def _cpu_computes_in_bfloat16() -> bool:
    """Other processors emulate bfloat16 and get slower by it."""
    import torch  # noqa: PLC0415

    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _strides(model: Any) -> Sequence[Any]:
    """Strides of a backbone's stages, pixels; one that cannot be built, which is refused later, counts four stages."""
    shape = _shape(model)
    return _STRIDES_OF_SWIN if shape is None else shape.strides


def _shape(model: Any) -> "BackboneShape | None":
    """The shape of a backbone; None of one that cannot be built."""
    from unmask.runtime.backbone_shape import backbone_shape  # noqa: PLC0415  (`--help` registers the rules alone)

    try:
        return backbone_shape(model)
    except (ValueError, InstantiationException):
        return None


def _shorter_side(image_size: Any) -> int:
    sides = [image_size] if isinstance(image_size, int) else image_size
    if isinstance(sides, str) or not isinstance(sides, Sequence) or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"image_size must be a number of pixels or [height,width], got {image_size!r}")
    return min(sides)
