# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

CPU = torch.device("cpu")


def embedded(names: list[str], features: torch.Tensor):
    from unmask.inference.embed import Embedded

    return Embedded(names, torch.full((len(names),), -1), features)


def test_neighbors_are_those_of_a_loop_over_cosines_and_never_the_query_itself() -> None:
    from unmask.inference.neighbors import nearest

    gallery = embedded([f"g{i}" for i in range(12)], torch.randn(12, 5))
    queries = embedded(["g3", "q"], torch.cat([gallery.features[3:4], torch.randn(1, 5)]))
    found = nearest(queries, gallery, k=4)
    for row, name in enumerate(queries.images):
        cosines = {
            i: torch.cosine_similarity(queries.features[row], gallery.features[i], dim=0).item()
            for i in range(12)
            if gallery.images[i] != name
        }
        expected = sorted(cosines, key=cosines.get, reverse=True)[:4]
        assert found.position[row].tolist() == expected
        assert found.similarity[row].tolist() == pytest.approx([cosines[i] for i in expected], abs=1e-6)


@pytest.mark.parametrize(("query", "k"), [("g0", 3), ("q", 4)])
def test_a_gallery_too_small_is_refused(query: str, k: int) -> None:
    from unmask.inference.neighbors import nearest

    gallery = embedded(["g0", "g1", "g2"], torch.randn(3, 2))
    with pytest.raises(ValueError, match=f"eval.k={k}, but the gallery has 3 image"):
        nearest(embedded([query], torch.randn(1, 2)), gallery, k=k)
    nearest(embedded([query], torch.randn(1, 2)), gallery, k=k - 1)


def test_the_sheet_shows_each_query_beside_its_neighbors(
    channel_means, pictures: Path, point_at, tmp_path, monkeypatch
) -> None:
    from unmask.inference import neighbors
    from unmask.inference.neighbors import NearestNeighbors

    drawn, written, draw = [], {}, neighbors.contact_sheet
    monkeypatch.setattr(
        neighbors,
        "contact_sheet",
        lambda rows, **text: drawn.extend(rows) or written.update(text) or draw(rows, **text),
    )

    def find(path, split):
        return point_at(pictures / "pink.png" if path == "queries" else pictures)

    inference = NearestNeighbors(image="queries", gallery="gallery", k=2)
    with torch.inference_mode():
        inference.run(channel_means, find, run_dir=tmp_path, device=CPU)
    rows = list(csv.DictReader((tmp_path / "neighbors.csv").read_text().splitlines()))
    # By hand: the cosines of 2 c / 255 - 1 are 0.52 for yellow and 0.32 for red.
    assert [(row["rank"], Path(row["neighbor"]).stem) for row in rows] == [("1", "yellow"), ("2", "red")]
    assert (written["title"], written["is_first_apart"]) == ("2 nearest of 5 images", True)
    assert written["subtitle"] == "left: the query; cosine similarity of pooled features"
    sheet = Image.open(tmp_path / "neighbors.png").convert("RGB")
    size = 128
    seen = [
        sheet.getpixel((20 + column * (size + 8) + (8 if column else 0) + size // 2, 56 + size // 2))
        for column in (0, 1, 2)
    ]
    assert seen == [(250, 150, 160), (240, 240, 20), (250, 10, 10)]
    assert [cell.caption for cell in drawn[0]] == ["pictures/pink.png", "deep/yellow.png 0.52", "a/red.png 0.32"]


def test_of_many_queries_those_evenly_apart_are_drawn_under_their_own_names(
    channel_means, pictures: Path, point_at, tmp_path
) -> None:
    from unmask.inference.neighbors import NearestNeighbors

    inference = NearestNeighbors(image="queries", gallery="gallery", k=1, num_queries=2)
    with torch.inference_mode():
        inference.run(channel_means, lambda path, split: point_at(pictures), run_dir=tmp_path, device=CPU)
    text = (tmp_path / "neighbors.csv").read_bytes()
    assert b"\r" not in text
    rows = list(csv.DictReader(text.decode().splitlines()))
    shown = point_at(pictures)
    assert [row["query"] for row in rows] == [shown.name(0), shown.name(2)]  # of five
    assert all(row["query"] != row["neighbor"] for row in rows)


def test_queries_in_memory_keep_their_numbers_and_are_no_neighbors_of_themselves(
    channel_means, in_memory, tmp_path
) -> None:
    from unmask.inference.images import SelectedImages
    from unmask.inference.neighbors import NearestNeighbors

    inference = NearestNeighbors(image=None, split="test", gallery_split="test", k=4, num_queries=2)
    with torch.inference_mode():
        inference.run(channel_means, lambda path, split: SelectedImages(in_memory, split), run_dir=tmp_path, device=CPU)
    rows = list(csv.DictReader((tmp_path / "neighbors.csv").read_text().splitlines()))
    found = {query: {row["neighbor"] for row in rows if row["query"] == query} for query in ("test/0", "test/2")}
    everything = {f"test/{number}" for number in range(5)}
    assert found == {query: everything - {query} for query in found}
