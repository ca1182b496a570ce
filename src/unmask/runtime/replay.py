"""Computes a step again that was kept because a number was not finite, or its gradient far larger than usual."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from unmask.callbacks.first_nonfinite import compute_gradient_norm, find_first_nonfinite
from unmask.callbacks.nonfinite_guard import BOX_KEY
from unmask.callbacks.step_seeding import StepSeeding
from unmask.interchange.files import read_weights
from unmask.runtime.checkpoint import find_run, rebuild_method
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
    box: dict[str, Any] = file.content[BOX_KEY]
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
    seeding = StepSeeding(seed=int(saved.record["training"]["seed"]))
    seeding.reseed(epoch=box["epoch"], batch_idx=box["batch_idx"], device=module.device)
    layer, loss = find_first_nonfinite(module, batch, box["batch_idx"])
    _log.info(f"step {box['step']} (epoch {box['epoch'] + 1}), images {box['indices'].tolist()}")
    _log.info(f"there: loss {box['loss']:g}, first not finite: {box['first_layer'] or 'no layer'} ({box['precision']})")
    _log.info(f" here: loss {loss:g}, first not finite: {layer or 'no layer'} (32-true on the CPU)")
    if box["bad_gradients"]:
        _log.info(f"gradients that were not finite: {', '.join(box['bad_gradients'])}")
    if box["usual_norm"] is not None:
        seeding.reseed(epoch=box["epoch"], batch_idx=box["batch_idx"], device=module.device)
        norm = compute_gradient_norm(module, batch, box["batch_idx"])
        _log.info(
            f"norm of the gradient: there {box['gradient_norm']:.3g}, usual {box['usual_norm']:.3g}; here {norm:.3g}, "
            "of this batch alone"
        )
    return layer
