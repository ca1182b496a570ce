import json
from pathlib import Path

import onnxruntime
import pytest
import torch

from unmask.interchange.exporters import onnx as exporter_module
from unmask.interchange.exporters.folder import write_export
from unmask.interchange.exporters.onnx import OnnxExporter


@torch.no_grad()
def test_the_graph_takes_pixels_of_any_batch_size(make_vit, make_source, randomize, tmp_path: Path) -> None:
    statistics = {"pixel_mean": (0.1, 0.5, 0.8), "pixel_std": (0.2, 0.4, 0.7)}
    backbone = randomize(make_vit(depth=1, **statistics))
    source = make_source(backbone)
    exported = write_export(OnnxExporter(), source, tmp_path / "export")

    assert [path.name for path in exported.paths] == ["README.md", "model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics.values())
    for batch in (1, 5):
        pixels = torch.rand(batch, 3, 32, 32)
        (logits,) = session.run(["logits"], {"images": pixels.numpy()})
        expected = source.classifier(backbone.forward_pooled((pixels - mean) / std))
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-5)
    said = json.loads(session.get_modelmeta().custom_metadata_map["unmask"])
    assert said["class_names"] == ["ant", "bee", "cat", "dog", "elk"]
    assert said["input"]["shape"] == ["batch", 3, 32, 32]


def test_a_missing_package_is_named(make_vit, make_source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_module, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(ValueError, match=r"format=onnx needs onnxruntime; .*unmask\[onnx\]"):
        write_export(OnnxExporter(), make_source(make_vit(depth=1)), tmp_path / "export")
    assert not list(tmp_path.iterdir())
