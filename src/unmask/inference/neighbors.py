"""The images a backbone finds most alike."""

import csv
import io
import logging
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unmask.backbones.base import MaskedBackbone
from unmask.callbacks.panel import as_shown
from unmask.callbacks.pictures import save_figure
from unmask.data.files.splits import Split
from unmask.inference.base import Checkpoint, FindImages, Inference
from unmask.inference.contact_sheet import Cell, contact_sheet
from unmask.inference.embed import Embedded, embed
from unmask.inference.images import SelectedImages
from unmask.inference.reconstruct import evenly_spaced
from unmask.inference.writing import write_atomically

_log = logging.getLogger("unmask")


class Found(NamedTuple):
    """The gallery's nearest images to each query, the nearest first."""

    similarity: Float[Tensor, "q k"]  # cosine of pooled features
    position: Int[Tensor, "q k"]  # in the gallery


class NearestNeighbors(Inference):
    """Draws images beside those of a gallery that a backbone finds most alike, into `neighbors.png` and a table.

    Args:
        image: The queries: an image file, a folder or a list; None takes the split of the data.
        split: Which split.
        gallery: Where neighbors are looked for: a folder or a list; None takes `gallery_split` of the data.
        gallery_split: Which split.
        k: Neighbors of each query.
        num_queries: Rows of the picture at most; of more images they are spread evenly.
        crop_pct: See `ImageDataModule.crop_pct`; None: of the checkpoint's data, else 0.875.

    A query that is in the gallery too, by the same name, is no neighbor of itself.

    Raises:
        ValueError: A number is not positive, the gallery has fewer than `k` other images, or one cannot be read.
    """

    def __init__(
        self,
        *,
        image: str | None,
        split: Split = "test",
        gallery: str | None = None,
        gallery_split: Split = "train",
        k: int = 8,
        num_queries: int = 8,
        crop_pct: float | None = None,
    ) -> None:
        if min(k, num_queries) < 1:
            raise ValueError(f"eval.k and eval.num_queries must be at least 1, got {k} and {num_queries}")
        self.image, self.split, self.gallery, self.gallery_split = image, split, gallery, gallery_split
        self.k, self.num_queries, self.crop_pct = k, num_queries, crop_pct

    def load(self, checkpoint: Checkpoint) -> tuple[MaskedBackbone, MaskedBackbone]:
        backbone = checkpoint.load_backbone()
        return backbone, backbone

    def run(self, model: MaskedBackbone, find: FindImages, *, run_dir: Path, device: torch.device) -> None:
        everything, gallery = find(self.image, self.split), find(self.gallery, self.gallery_split)
        queries = everything.part(evenly_spaced(len(everything), self.num_queries))
        names = [everything.name(index) for index in evenly_spaced(len(everything), self.num_queries)]
        own, theirs = embed(model, queries, device)._replace(images=names), embed(model, gallery, device)
        found = nearest(own, theirs, self.k)
        _log.info(f"{len(names)} quer{'y' if len(names) == 1 else 'ies'}, {len(gallery)} images in the gallery")
        table = write_atomically(run_dir / "neighbors.csv", _as_csv(names, theirs.images, found))
        picture = run_dir / "neighbors.png"
        figure = contact_sheet(
            _cells((queries, own.images), (gallery, theirs.images), found, device),
            title=f"{self.k} nearest of {len(gallery)} images",
            subtitle="left: the query; cosine similarity of pooled features",
            is_first_apart=True,
        )
        save_figure(figure, picture)
        _log.info(f"picture in {picture}, table in {table}")


def nearest(queries: Embedded, gallery: Embedded, k: int) -> Found:
    """Finds the nearest images by cosine similarity, exactly; an image is no neighbor of its own name.

    Raises:
        ValueError: The gallery has fewer than `k` images beside a query.
    """
    similarity = F.normalize(queries.features, dim=1) @ F.normalize(gallery.features, dim=1).T
    places = {name: place for place, name in enumerate(gallery.images)}
    itself = [(row, places[name]) for row, name in enumerate(queries.images) if name in places]
    for row, place in itself:
        similarity[row, place] = -torch.inf
    if len(gallery.images) - bool(itself) < k:
        raise ValueError(
            f"eval.k={k}, but the gallery has {len(gallery.images)} image(s)"
            f"{', the query itself among them' if itself else ''}; use a larger gallery or a smaller k"
        )
    return Found(*similarity.topk(k, dim=1))


_Named = tuple[SelectedImages, list[str]]


def _cells(queries: _Named, gallery: _Named, found: Found, device: torch.device) -> list[list[Cell]]:
    (asked, asked_names), (shown, names) = queries, gallery
    drawn = sorted(set(found.position.flatten().tolist()))
    of_gallery = dict(zip(drawn, _pixels(shown.part(drawn), device), strict=True))
    rows = []
    for row, pixels in enumerate(_pixels(asked, device)):
        neighbors = zip(found.similarity[row].tolist(), found.position[row].tolist(), strict=True)
        cells = [Cell(of_gallery[place], f"{_short(names[place])} {similarity:.2f}") for similarity, place in neighbors]
        rows.append([Cell(pixels, _short(asked_names[row])), *cells])
    return rows


def _pixels(shown: SelectedImages, device: torch.device) -> Float[Tensor, "b 3 height width"]:
    images = torch.cat([batch.image for batch in shown.batches(device)])
    return as_shown(images, pixel_mean=shown.data.pixel_mean, pixel_std=shown.data.pixel_std)


def _short(name: str) -> str:
    """The folder, which is often the class, and the file."""
    return "/".join(Path(name).parts[-2:])


def _as_csv(queries: list[str], gallery: list[str], found: Found) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["query", "rank", "neighbor", "cosine"])
    for query, similarities, positions in zip(queries, found.similarity.tolist(), found.position.tolist(), strict=True):
        for rank, (similarity, place) in enumerate(zip(similarities, positions, strict=True), start=1):
            writer.writerow([query, rank, gallery[place], f"{similarity:.6f}"])
    return text.getvalue().encode()
