"""How other programs prepare images for their classifiers, as far as their files say it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from unmask.interchange.record import shown

LEAST_CROP = 0.1  # fraction of an image: what a smaller one is cut from would fill the memory
_COMPUTED = ("bicubic", "bilinear")
_OF_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # `resample`
_SQUASHED = "there an image is resized to a square whole, here its shorter side is and the middle is cut"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a file names, as it names it; checked where it is used, so that its backbone can be had in any case."""

    source: str = ""  # what says so; empty where nothing does
    crop_pct: Any = None  # side of the centered crop over the side of the resized image
    interpolation: Any = None
    note: str = ""  # what is not computed here

    def settings(self, *, chosen: Collection[str]) -> dict[str, Any]:
        """Checks what is named and not chosen by the user.

        Args:
            chosen: Names of settings that the user gave.

        Returns:
            `crop_pct` and `interpolation`, as far as the file names them.

        Raises:
            ValueError: A value is of another type, out of range or not computed here.
        """
        found: dict[str, Any] = {}
        if self.crop_pct is not None and "crop_pct" not in chosen:
            if type(self.crop_pct) not in (int, float) or not LEAST_CROP <= self.crop_pct <= 1.0:
                raise ValueError(
                    f"{self.source} gives crop_pct={shown(self.crop_pct)}, which must lie in [{LEAST_CROP}, 1]; choose "
                    "one yourself by crop_pct=0.875"
                )
            found["crop_pct"] = float(self.crop_pct)
        if self.interpolation is not None and "interpolation" not in chosen:
            if self.interpolation not in _COMPUTED:
                raise ValueError(
                    f"{self.source} gives interpolation={shown(self.interpolation)}, which is not computed here; "
                    "choose interpolation=bicubic or bilinear"
                )
            found["interpolation"] = self.interpolation
        return found


def timm_preprocessing(description: Mapping[str, Any], source: str) -> Preprocessing:
    """Reads what timm calls `pretrained_cfg`."""
    crop_mode = description.get("crop_mode") or "center"
    note = "" if crop_mode == "center" else f"crop_mode={shown(crop_mode)} is not computed here, the middle is cut"
    named = {name: description.get(name) for name in ("crop_pct", "interpolation")}
    is_named = any(value is not None for value in named.values())
    return Preprocessing(source=source, **named, note=note) if is_named else Preprocessing()


def huggingface_preprocessing(description: Mapping[str, Any], source: str) -> Preprocessing:
    """Reads `preprocessor_config.json` of a ViT's or another processor of transformers."""
    if not description or description.get("do_resize") is False:
        return Preprocessing()
    resample, size, note = description.get("resample"), description.get("size"), ""
    interpolation = _OF_PILLOW.get(resample, resample) if type(resample) is int else resample
    crop_pct = description.get("crop_pct")
    if description.get("do_center_crop"):
        cut, whole = _side(description.get("crop_size")), _side(size)
        if cut is not None and whole is not None:
            crop_pct = _ratio(cut, whole)
    elif crop_pct is None and size is not None and not (isinstance(size, Mapping) and "shortest_edge" in size):
        crop_pct, note = 1.0, _SQUASHED
    return Preprocessing(source=source, crop_pct=crop_pct, interpolation=interpolation, note=note)


def _side(size: Any) -> Any:
    return size.get("shortest_edge", size.get("height")) if isinstance(size, Mapping) else size


def _ratio(cut: Any, whole: Any) -> Any:
    """The part that is cut; in words, to be refused, where these are no sizes."""
    if all(type(side) is int and 0 < side < 2**31 for side in (cut, whole)):
        return cut / whole
    return f"{shown(cut)} of {shown(whole)}"
