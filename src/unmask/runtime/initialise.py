"""Starts a run from weights that exist already."""

import logging

from unmask.interchange.files import read_weights
from unmask.interchange.fit import fit_backbone, fit_heads
from unmask.interchange.recognise import convert
from unmask.runtime.builders import AnyMethod

_log = logging.getLogger("unmask")


def initialise(method: AnyMethod, *, allow_partial: bool = False, take_teacher: bool = False) -> None:
    """Loads the file a method names in `init_from`, if any: its backbone, and its heads where the method has the same.

    Nothing but weights is taken: optimizer, schedule and counters start afresh.

    Args:
        method: Filled in place.
        allow_partial: Accept a file that lacks part of the backbone.
        take_teacher: Take the averaged teacher where the file holds one beside the trained weights.

    Raises:
        ValueError: The file cannot be read safely, is of no known program, or does not fit the backbone.
    """
    if method.init_from is None:
        return
    conversion = convert(read_weights(method.init_from), take_teacher=take_teacher)
    coverage = fit_backbone(method.backbone, conversion, allow_partial=allow_partial)
    coverage = fit_heads(method, conversion, coverage)
    method.on_weights_taken(coverage.heads)
    _log.info(f"{method.init_from}\n{coverage.describe()}")
