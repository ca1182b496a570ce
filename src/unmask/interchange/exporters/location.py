"""Where the files of an export lie, as the code of a model card names them."""

from typing import NamedTuple


class ExportLocation(NamedTuple):
    """A folder on this machine or a repository on the Hugging Face hub."""

    name: str  # a path, or USER/NAME
    is_on_hub: bool = False

    @property
    def timm_name(self) -> str:
        """What `timm.create_model` is called with."""
        return f"{'hf-hub' if self.is_on_hub else 'local-dir'}:{self.name}"

    @property
    def imports(self) -> list[str]:
        """Lines of code that `file` needs."""
        return ["from huggingface_hub import hf_hub_download"] if self.is_on_hub else []

    def file(self, name: str) -> str:
        """An expression whose value is the path of a file."""
        return f'hf_hub_download("{self.name}", "{name}")' if self.is_on_hub else f'"{self.name}/{name}"'
