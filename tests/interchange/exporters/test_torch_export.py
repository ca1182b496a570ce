import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.heads.classifier import BatchNormMLPClassifier
from unmask.interchange.exporters.folder import write_export
from unmask.interchange.exporters.torch_export import TorchExporter

STATISTICS: dict[str, Any] = {"pixel_mean": (0.1, 0.5, 0.8), "pixel_std": (0.2, 0.4, 0.7)}


@pytest.fixture
def small(make_swin, randomize) -> Any:
    """Two blocks, the second with shifted windows."""
    return randomize(make_swin(image_size=32, depths=(2,), num_heads=(3,), **STATISTICS))


@torch.no_grad()
def test_the_program_takes_pixels_of_any_batch_size(small: Any, make_source, randomize, tmp_path: Path) -> None:
    head = randomize(BatchNormMLPClassifier(in_features=24, num_classes=3, hidden_features=8))
    source = make_source(small, classifier=head, class_names=("a", "b", "c"))
    write_export(TorchExporter(), source, tmp_path / "export")

    extra = {"unmask.json": ""}
    program = torch.export.load(tmp_path / "export" / "model.pt2", extra_files=extra).module()
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS.values())
    for batch in (1, 5):
        pixels = torch.rand(batch, 3, 32, 32)
        expected = head(small.forward_pooled((pixels - mean) / std))
        torch.testing.assert_close(program(pixels), expected, rtol=0, atol=1e-5)
    assert json.loads(extra["unmask.json"])["class_names"] == ["a", "b", "c"]
