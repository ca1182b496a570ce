"""ONNX, for runtimes without PyTorch."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from unmask.interchange.exporters.base import Comparison, ExportSource, compare_batches
from unmask.interchange.exporters.graph import INPUT_NAME, PixelsToOutputs, description, input_sentence
from unmask.interchange.exporters.location import ExportLocation
from unmask.types import Images

GRAPH_NAME = "model.onnx"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST_FILE = 2**31  # bytes a protobuf message may have; larger weights go into a file beside it


class OnnxExporter:
    """Writes `model.onnx`, from pixels in 0..1 to logits or features, at any batch size.

    Weights above 2 GB, which ONNX's container does not take, lie in `model.onnx.data` beside it. The graph's metadata
    say, under `unmask`, what goes in and comes out.
    """

    name = "onnx"
    library = "onnx"

    def write(self, source: ExportSource, folder: Path) -> None:
        _require_packages()
        network = PixelsToOutputs(source).eval()
        num_bytes = sum(weight.numel() * weight.element_size() for weight in network.state_dict().values())
        program = torch.onnx.export(
            network,
            (source.trial_pixels(2),),
            dynamo=True,
            verbose=False,
            input_names=[INPUT_NAME],
            output_names=[source.output_name],
            dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch")}},
        )
        assert program is not None
        program.model.metadata_props["unmask"] = description(source)
        program.save(folder / GRAPH_NAME, external_data=num_bytes > 0.9 * _LARGEST_FILE)

    def compare(self, source: ExportSource, folder: Path) -> list[Comparison]:
        import onnx  # noqa: PLC0415 (an extra)
        import onnxruntime  # noqa: PLC0415

        onnx.checker.check_model(str(folder / GRAPH_NAME))
        session = onnxruntime.InferenceSession(folder / GRAPH_NAME, providers=["CPUExecutionProvider"])

        def compute(pixels: Images) -> Tensor:
            (computed,) = session.run([source.output_name], {INPUT_NAME: pixels.numpy()})
            return torch.from_numpy(computed)

        return compare_batches(compute, source, library="onnxruntime")

    def usage(self, source: ExportSource, location: ExportLocation) -> str:
        code = [
            "```python",
            "import onnxruntime",
            *location.imports,
            "",
            f"session = onnxruntime.InferenceSession({location.file(GRAPH_NAME)})",
            f'({source.output_name},) = session.run(["{source.output_name}"], {{"{INPUT_NAME}": images}})',
            "```",
        ]
        return "\n".join([*code, "", input_sentence(source)])


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"format=onnx needs {', '.join(missing)}; install the extra: pip install 'unmask[onnx]', or choose "
            "format=torch_export, which needs torch alone"
        )
