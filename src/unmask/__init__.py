"""Pre-trains image backbones without labels by masking, and measures what they learned."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.runtime.api import build_method as build_method
    from unmask.runtime.api import extract_features as extract_features
    from unmask.runtime.api import reconstruct as reconstruct
    from unmask.runtime.checkpoint import load_backbone as load_backbone
    from unmask.runtime.checkpoint import load_method as load_method
    from unmask.runtime.config import list_experiments as list_experiments
    from unmask.runtime.export import export_backbone as export_backbone

_HOMES = {
    "build_method": "unmask.runtime.api",
    "extract_features": "unmask.runtime.api",
    "reconstruct": "unmask.runtime.api",
    "export_backbone": "unmask.runtime.export",
    "load_backbone": "unmask.runtime.checkpoint",
    "load_method": "unmask.runtime.checkpoint",
    "list_experiments": "unmask.runtime.config",
}
__all__ = [
    "build_method",
    "export_backbone",
    "extract_features",
    "list_experiments",
    "load_backbone",
    "load_method",
    "reconstruct",
]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use: shell completion imports this package at every press of the tab key."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
