"""Methods with their heads, as the classes of transformers that pre-train."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unmask.interchange.exporters.base import Comparison, ExportSource
from unmask.interchange.exporters.location import ExportLocation
from unmask.interchange.exporters.quiet import quiet_transformers
from unmask.interchange.exporters.timm import WEIGHTS_NAME
from unmask.interchange.exporters.transformers_names import (
    compare_processor,
    require_square,
    require_transformers,
    write_json,
    write_processor,
)
from unmask.types import Images


class PretrainingExporter(ABC):
    """Writes a method with its heads for the class of transformers that trains it.

    The names are those of transformers 4, which transformers 5 reads too.
    """

    name: str
    library: str = "transformers"
    class_name: str  # of transformers

    def write(self, source: ExportSource, folder: Path) -> None:
        require_transformers(self.name)
        method = self.require_method(source)
        configuration = self.configuration(method, require_square(source, self.name))
        save_file(self.weights(method), folder / WEIGHTS_NAME, metadata={"format": "pt"})
        write_json({"architectures": [self.class_name], **configuration}, folder / "config.json")
        write_processor(source, folder)

    def compare(self, source: ExportSource, folder: Path) -> list[Comparison]:
        import transformers  # noqa: PLC0415 (an extra)

        method, images = self.require_method(source), source.normalize(source.trial_pixels(2))
        with quiet_transformers(), torch.no_grad():
            theirs = getattr(transformers, self.class_name).from_pretrained(folder).eval()
            compared = self.compare_networks(method, theirs, images)
        return [*compared, compare_processor(source, folder)]

    def usage(self, source: ExportSource, location: ExportLocation) -> str:
        imports, last_lines = self.usage_lines(source)
        return "\n".join(
            [
                "```python",
                *imports,
                "from PIL import Image",
                f"from transformers import AutoImageProcessor, {self.class_name}",
                "",
                f'processor = AutoImageProcessor.from_pretrained("{location.name}")',
                f'model = {self.class_name}.from_pretrained("{location.name}").eval()',
                'inputs = processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")',
                *last_lines,
                "```",
            ]
        )

    @abstractmethod
    def require_method(self, source: ExportSource) -> Any:
        """Reads the module that the format is for.

        Raises:
            ValueError: The source holds none.
        """

    @abstractmethod
    def configuration(self, method: Any, side: int) -> Mapping[str, Any]:
        """What `config.json` says beside the name of the class, of images of `side` pixels.

        Raises:
            ValueError: The class of transformers cannot be told to be like this module.
        """

    @abstractmethod
    def weights(self, method: Any) -> dict[str, Tensor]:
        """All weights under the names of transformers."""

    @abstractmethod
    def compare_networks(self, method: Any, theirs: Any, images: Images) -> Sequence[Comparison]:
        """Compares what both compute of the same images under the same masks."""

    @abstractmethod
    def usage_lines(self, source: ExportSource) -> tuple[Sequence[str], Sequence[str]]:
        """Lines of Python: further imports, and what is done with `model` and `inputs`."""
