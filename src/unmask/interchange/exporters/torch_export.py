"""PyTorch's own exported program."""

from pathlib import Path

import torch

from unmask.interchange.exporters.base import Comparison, ExportSource, compare_batches
from unmask.interchange.exporters.graph import INPUT_NAME, PixelsToOutputs, description, input_sentence
from unmask.interchange.exporters.location import ExportLocation

PROGRAM_NAME = "model.pt2"


class TorchExporter:
    """Writes `model.pt2`: runs on torch alone, from pixels in 0..1, at any batch size.

    The file also holds `unmask.json`, which says what goes in and comes out.
    """

    name = "torch_export"
    library = "pytorch"

    def write(self, source: ExportSource, folder: Path) -> None:
        program = torch.export.export(
            PixelsToOutputs(source).eval(),
            (source.trial_pixels(2),),
            dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch")}},
        )
        torch.export.save(program, folder / PROGRAM_NAME, extra_files={"unmask.json": description(source)})

    def compare(self, source: ExportSource, folder: Path) -> list[Comparison]:
        network = torch.export.load(folder / PROGRAM_NAME).module()
        with torch.no_grad():
            return compare_batches(network, source, library="torch.export")

    def usage(self, source: ExportSource, location: ExportLocation) -> str:
        code = [
            "```python",
            "import torch",
            *location.imports,
            "",
            f"network = torch.export.load({location.file(PROGRAM_NAME)}).module()",
            f"{source.output_name} = network(images)",
            "```",
        ]
        return "\n".join([*code, "", input_sentence(source)])
