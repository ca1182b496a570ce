"""Which images a command is about, and how they reach a backbone."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from typing import Any
from unittest.mock import Mock

import pytest
import torch

CPU = torch.device("cpu")


class AllAskedFor(Exception):  # noqa: N818  (no mistake)
    """Ends an inference once it has said which images it is about."""


@pytest.mark.parametrize("split", ["train", "val"])  # the default is test
@pytest.mark.parametrize("choice", ["Embed", "NearestNeighbors", "Predict", "Reconstruct"])
def test_an_inference_is_about_the_path_and_the_split_it_was_given(choice: str, split: Any, tmp_path: Any) -> None:
    from unmask.backbones.base import MaskedBackbone
    from unmask.inference.embed import Embed
    from unmask.inference.neighbors import NearestNeighbors
    from unmask.inference.predict import Classifier, Predict
    from unmask.inference.reconstruct import Reconstruct
    from unmask.methods.backbone_module import BackboneModule

    expected = [("mine", split), *([("theirs", "test")] if choice == "NearestNeighbors" else [])]
    inference, takes = {
        "Embed": (Embed(out=str(tmp_path / "f"), image="mine", split=split), MaskedBackbone),
        "NearestNeighbors": (
            NearestNeighbors(image="mine", split=split, gallery="theirs", gallery_split="test"),
            MaskedBackbone,
        ),
        "Predict": (Predict(image="mine", split=split), Classifier),
        "Reconstruct": (Reconstruct(image="mine", split=split), BackboneModule),
    }[choice]
    asked = []

    def find(path: str | None, of_split: str) -> None:
        asked.append((path, of_split))
        if len(asked) == len(expected):
            raise AllAskedFor

    with pytest.raises(AllAskedFor):
        inference.run(Mock(spec=takes), find, run_dir=tmp_path, device=CPU)
    assert asked == expected


def test_images_of_a_split_are_read_once_in_order_and_as_they_are(in_memory: Any) -> None:
    from unmask.inference.images import SelectedImages

    shown = SelectedImages(in_memory, "val")
    batches = list(shown.batches(CPU))
    images, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("image", "label"))
    dataset = in_memory.dataset("val")
    expected = dataset.images.float() / 255.0
    torch.testing.assert_close(images * 0.5 + 0.5, expected, rtol=0, atol=1e-5)
    assert torch.equal(labels, dataset.labels)
    assert shown.names() == [f"val/{number}" for number in range(4)]
    (part,) = shown.part([3, 1]).batches(CPU)
    assert torch.equal(part.image, images[[3, 1]])
    assert torch.equal(part.label, labels[[3, 1]])
