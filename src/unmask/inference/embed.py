"""Features of any number of images, in files."""

import hashlib
import io
import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.backbones.base import MaskedBackbone
from unmask.data.files.splits import Split
from unmask.inference.base import Checkpoint, FindImages, Inference
from unmask.inference.images import SelectedImages
from unmask.inference.writing import write_atomically

Format = Literal["npz", "parquet"]

_log = logging.getLogger("unmask")
_RECORD = "embeddings.json"


class Embedded(NamedTuple):
    """Some images and their features."""

    images: list[str]
    labels: Int[Tensor, " n"]  # -1 where there is none
    features: Float[Tensor, "n d"]


class Embed(Inference):
    """Writes the pooled features of images, in parts of a fixed size, into a folder that can be completed later.

    A part `part-00000.npz` holds `image` (paths), `label` (a number in `classes` of `embeddings.json`; -1: none) and
    `features` (float32, one row an image); a part `part-00000.parquet` the same as columns. A part is whole or not
    there. Started again with the same settings, the command goes on behind the parts that are there; a folder of other
    settings is refused.

    Args:
        out: The folder; made if need be.
        image: An image file, a folder or a list; None takes the split of the data.
        split: Which split.
        format: "npz", or "parquet", which needs pyarrow.
        part_size: Images a part holds.
        crop_pct: See `ImageDataModule.crop_pct`; None: of the checkpoint's data, else 0.875.

    Raises:
        ValueError: `part_size` is not positive, the format is unknown or its library missing, the folder holds
            something else, or an image cannot be read.
    """

    def __init__(
        self,
        *,
        out: str,
        image: str | None,
        split: Split = "test",
        format: Format = "npz",  # noqa: A002  (as the key is called)
        part_size: int = 10_000,
        crop_pct: float | None = None,
    ) -> None:
        if part_size < 1:
            raise ValueError(f"eval.part_size must be at least 1, got {part_size}")
        if format not in get_args(Format):
            raise ValueError(f"eval.format must be npz or parquet, got {format!r}")
        if format == "parquet":
            _require_pyarrow()
        self.out = Path(out).expanduser()
        self.image, self.split, self.crop_pct = image, split, crop_pct
        self.format, self.part_size = format, part_size

    def load(self, checkpoint: Checkpoint) -> tuple[MaskedBackbone, MaskedBackbone]:
        backbone = checkpoint.load_backbone()
        return backbone, backbone

    def run(self, model: MaskedBackbone, find: FindImages, *, run_dir: Path, device: torch.device) -> None:
        shown = find(self.image, self.split)
        self._claim(self._record(model, shown))
        num_parts = -(-len(shown) // self.part_size)
        num_there = 0
        for part in range(num_parts):
            path = self.out / f"part-{part:05d}.{self.format}"
            if path.exists():
                num_there += 1
                continue
            indices = range(part * self.part_size, min((part + 1) * self.part_size, len(shown)))
            embedded = embed(model, shown.part(indices), device)
            named = embedded._replace(images=[shown.name(index) for index in indices])
            write_atomically(path, self._encode(named))
            _log.info(f"part {part + 1} of {num_parts}: {path}")
        kept = f", {num_there} of them written before" if num_there else ""
        _log.info(f"{len(shown)} image(s), {model.embed_dim} features each, in {num_parts} part(s){kept}: {self.out}")

    def _claim(self, record: dict[str, Any]) -> None:
        """Takes the folder, or makes sure that what is in it was begun with the same settings."""
        path = self.out / _RECORD
        if path.is_file():
            there = json.loads(path.read_text())
            different = sorted(name for name in record if there.get(name) != record[name])
            if different:
                raise ValueError(
                    f"eval.out={self.out} holds features of other {', '.join(different)}; name another folder"
                )
            return
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(f"eval.out={self.out} exists and contains something else; name a new folder")
        write_atomically(path, json.dumps(record, indent=2).encode() + b"\n")

    def _record(self, backbone: MaskedBackbone, shown: SelectedImages) -> dict[str, Any]:
        return {
            "weights": _hash_of(backbone),
            "images": shown.dataset.fingerprint,
            "num_images": len(shown),
            "classes": list(shown.dataset.class_names),
            "image_size": list(shown.data.image_size),
            "crop_pct": shown.data.crop_pct,
            "interpolation": shown.data.interpolation,
            "format": self.format,
            "part_size": self.part_size,
        }

    def _encode(self, embedded: Embedded) -> bytes:
        content = io.BytesIO()
        features = embedded.features.numpy()
        if self.format == "npz":
            np.savez(content, image=np.array(embedded.images), label=embedded.labels.numpy(), features=features)
        else:
            arrow, parquet = _require_pyarrow()
            rows = arrow.FixedSizeListArray.from_arrays(arrow.array(features.ravel()), features.shape[1])
            columns = {"image": embedded.images, "label": embedded.labels.numpy(), "features": rows}
            parquet.write_table(arrow.table(columns), content)
        return content.getvalue()


def embed(backbone: MaskedBackbone, shown: SelectedImages, device: torch.device) -> Embedded:
    """Computes pooled features in float32."""
    features, labels = [], []
    for batch in shown.batches(device):
        features.append(backbone.forward_pooled(batch.image).float().cpu())
        labels.append(batch.label.cpu())
    return Embedded(shown.names(), torch.cat(labels), torch.cat(features))


def _require_pyarrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError("eval.format=parquet needs pyarrow; pip install 'unmask[hub]', or use npz") from error


def _hash_of(backbone: MaskedBackbone) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in backbone.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
