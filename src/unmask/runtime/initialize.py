"""Starts a run from weights that exist already."""

import logging

from unmask.interchange.detect_format import convert
from unmask.interchange.files import read_weights, refusing_nonsense
from unmask.interchange.load_weights import load_backbone_weights, load_head_weights
from unmask.methods.backbone_module import BackboneModule

_log = logging.getLogger("unmask")


def initialize(method: BackboneModule, *, allow_partial: bool = False, use_ema_weights: bool = False) -> None:
    """Loads the file a method names in `init_from`, if any: its backbone, and its heads where the method has the same.

    Nothing but weights is taken: optimizer, schedule and counters start afresh.

    Args:
        method: Filled in place.
        allow_partial: Accept a file that lacks part of the backbone.
        use_ema_weights: Take the averaged teacher where the file holds one beside the trained weights.

    Raises:
        ValueError: The file cannot be read safely, is of no known program, or does not fit the backbone.
    """
    if method.init_from is None:
        return
    file = read_weights(method.init_from)
    with refusing_nonsense(method.init_from):
        conversion = convert(file, use_ema_weights=use_ema_weights)
        report = load_backbone_weights(method.backbone, conversion, allow_partial=allow_partial)
        report = load_head_weights(method, conversion, report)
    notes = method.on_weights_loaded(report.heads)
    _log.info("\n".join([str(method.init_from), report.describe(), *notes]))
