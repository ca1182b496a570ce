"""The splits of a data set and the names folders, shards and tables give them."""

from typing import Literal

Split = Literal["train", "val", "test"]

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What each is called, in lower case; those of one split are alternatives."""
