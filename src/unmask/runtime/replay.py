"""Computes a step again that was kept because a number was not finite, or its gradient far larger than usual."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from unmask.callbacks.first_nonfinite import compute_gradient_norm, find_first_nonfinite
from unmask.callbacks.nonfinite_guard import BOX_KEY
from unmask.callbacks.step_seeding import StepSeeding
from unmask.interchange.files import read_weights, refusing_nonsense
from unmask.interchange.record import printable
from unmask.runtime.checkpoint import SavedRun, find_run, rebuild_method
from unmask.types import ImageBatch

_log = logging.getLogger("unmask")


def replay(path: str | Path) -> str | None:
    """Computes the loss of a black box on this machine's CPU and says where it stops being finite.

    Returns:
        The layer, or None where all of them are finite here.

    Raises:
        ValueError: The file is none that a run wrote for this.
    """
    file = read_weights(path)
    saved = find_run(file)
    if saved is None or BOX_KEY not in file.content:
        raise ValueError(f"{path} is not a step that a run kept; such steps are in the run's folder under nonfinite/")
    box = _checked(file.content[BOX_KEY], path)
    seed = (saved.record.get("training") or {}).get("seed")
    if type(seed) is not int:
        raise ValueError(f"{path} does not say which seed its run had; it is incomplete or was changed")
    with refusing_nonsense(path):
        return _compute(saved, box, seed, path)


def _compute(saved: SavedRun, box: Mapping[str, Any], seed: int, path: str | Path) -> str | None:
    module = rebuild_method(saved, path).train()
    trainer: Any = SimpleNamespace(
        current_epoch=box["epoch"],
        global_step=box["step"],
        world_size=1,
        accumulate_grad_batches=1,
        precision="32-true",
    )
    module.trainer = trainer
    batch = ImageBatch(box["images"], box["labels"], box["indices"])
    seeding = StepSeeding(seed=seed)
    seeding.reseed(epoch=box["epoch"], batch_idx=box["batch_idx"], device=module.device)
    layer, loss = find_first_nonfinite(module, batch, box["batch_idx"])
    _log.info(f"step {box['step']} (epoch {box['epoch'] + 1}), images {box['indices'].tolist()}")
    there = printable(box["first_layer"] or "no layer")
    _log.info(f"there: loss {box['loss']:g}, first not finite: {there} ({printable(box['precision'])})")
    _log.info(f" here: loss {loss:g}, first not finite: {layer or 'no layer'} (32-true on the CPU)")
    if box["bad_gradients"]:
        _log.info(f"gradients that were not finite: {printable(', '.join(box['bad_gradients']))}")
    if box["usual_norm"] is not None:
        seeding.reseed(epoch=box["epoch"], batch_idx=box["batch_idx"], device=module.device)
        norm = compute_gradient_norm(module, batch, box["batch_idx"])
        _log.info(
            f"norm of the gradient: there {box['gradient_norm']:.3g}, usual {box['usual_norm']:.3g}; here {norm:.3g}, "
            "of this batch alone"
        )
    return layer


def _checked(found: Any, path: str | Path) -> Mapping[str, Any]:
    """Refuses a black box that is not as `NonfiniteGuard` writes it: the file may come from anyone."""
    box: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    names = box.get("bad_gradients")
    number, text = (int, float), (str, type(None))
    is_whole = (
        all(type(box.get(name)) is int and 0 <= box[name] < 2**63 for name in ("step", "epoch", "batch_idx"))
        and all(isinstance(box.get(name), kind) for name, kind in (("loss", number), ("gradient_norm", number)))
        and isinstance(box.get("usual_norm"), float | None)
        and isinstance(box.get("first_layer"), text)
        and isinstance(box.get("precision"), str)
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and all(_is_stored(box.get(name)) for name in ("images", "labels", "indices"))
    )
    if not is_whole:
        raise ValueError(f"{path} does not hold a step as a run keeps it; it is incomplete or was changed")
    return box


def _is_stored(value: Any) -> bool:
    """Whether it is a tensor whose numbers the file holds, and not one that is repeated without end."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()
