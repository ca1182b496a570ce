from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from unmask.interchange.exporters.folder import write_export
from unmask.interchange.exporters.location import ExportLocation
from unmask.interchange.exporters.timm import TimmExporter


@torch.no_grad()
def test_the_printed_call_builds_the_network(backbone: Any, make_source, images: Tensor, tmp_path: Path) -> None:
    source = make_source(backbone)
    write_export(TimmExporter(), source, tmp_path / "export")
    usage = TimmExporter().usage(source, ExportLocation(str(tmp_path / "export")))
    code = usage.split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {"images": images}
    exec(code, scope)
    torch.testing.assert_close(scope["logits"], source.classifier(backbone.forward_pooled(images)), rtol=0, atol=1e-5)


def test_weights_go_back_into_the_backbone_bitwise(make_swin, make_source, randomize, tmp_path: Path) -> None:
    backbone, other = randomize(make_swin()), make_swin()
    write_export(TimmExporter(), make_source(backbone, classifier=None), tmp_path / "export")
    other.swin.load_state_dict(load_file(tmp_path / "export" / "model.safetensors"))
    for (name, weight), expected in zip(other.state_dict().items(), backbone.state_dict().values(), strict=True):
        assert torch.equal(weight, expected), name
