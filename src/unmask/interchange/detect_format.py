"""Finds out whose file it is."""

from dataclasses import replace
from typing import Protocol

from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.importers import (
    ddmim,
    flyegle,
    huggingface,
    lightly,
    mae,
    mmpretrain,
    simmim,
    solo_learn,
    timm_models,
    unmask,
)
from unmask.interchange.renaming import computed_buffers

_NUM_NAMES_SHOWN = 3
_COMPUTED = "computed from the sizes of the network"
_AVERAGED = "the averaged teacher; use_ema_weights=true takes it in place of the trained weights"
_TRAINED = "the trained weights, in whose place the averaged teacher is taken"


class Importer(Protocol):
    """A module that knows the names of one program."""

    def matches(self, file: WeightFile) -> bool:
        """Tells by names alone whether the file is of that program."""

    def convert(self, file: WeightFile) -> Conversion:
        """Moves its weights to this package's names."""


# Those with a mark of their own come before those that share names with others.
_IMPORTERS: tuple[Importer, ...] = (
    unmask,
    huggingface,
    mmpretrain,
    flyegle,
    ddmim,
    lightly,
    solo_learn,
    simmim,
    mae,
    timm_models,
)


def convert(file: WeightFile, *, use_ema_weights: bool = False) -> Conversion:
    """Recognizes a file and moves its weights to this package's names.

    Args:
        file: As read.
        use_ema_weights: Take the moving average that a file holds beside the trained weights.

    Raises:
        ValueError: Nobody's names fit, or there is no teacher to take.
    """
    importer = next((each for each in _IMPORTERS if each.matches(file)), None)
    if importer is None:
        names = ", ".join(list(file.weights)[:_NUM_NAMES_SHOWN]) or "none"
        raise ValueError(
            f"{file.path} has an unknown format (its weights: {names}, ...); supported are checkpoints of "
            "Unmask, MAE, SimMIM, mmpretrain, FlyEgle, DDMIM, lightly, solo-learn, timm's ViT, Swin and Hiera, and "
            "Hugging Face's ViT and Swin"
        )
    conversion = importer.convert(file)
    left_out = {**dict.fromkeys(computed_buffers(file.weights), _COMPUTED), **conversion.left_out}
    if conversion.classifier is not None:
        left_out |= dict.fromkeys(
            conversion.classifier.names, f"a classifier of {conversion.classifier.num_outputs} classes"
        )
    if not use_ema_weights:
        left_out |= dict.fromkeys(conversion.averaged_names, _AVERAGED)
        return replace(conversion, source=str(file.path), left_out=left_out)
    if not conversion.averaged:
        raise ValueError(f"{file.path} ({conversion.source_format}) contains no averaged teacher beside its weights")
    return replace(
        conversion,
        source=str(file.path),
        source_format=f"{conversion.source_format}, teacher",
        backbone=conversion.averaged,
        averaged={},
        left_out=left_out | dict.fromkeys(conversion.trained_names, _TRAINED),
    )
