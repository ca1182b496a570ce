"""Sends an export to the Hugging Face hub."""

import re
from pathlib import Path
from typing import Any

from httpx import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

_UNREACHABLE = (HTTPError, OSError)  # the hub's refusals are HTTPErrors, a token that is missing an OSError
_MADE_BY_THE_HUB = {".gitattributes"}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class HubUpload:
    """A repository of models on the hub, to be filled once.

    Args:
        repository: USER/NAME.
        private: Whether others are kept from seeing it; its owner may change that on the hub.
        client: Speaks to the hub; tests put another one here.

    Raises:
        ValueError: The name is none, nobody is logged in, the hub cannot be reached, or the repository holds files.
    """

    def __init__(self, repository: str, *, private: bool = True, client: Any = None) -> None:
        if not _REPOSITORY.fullmatch(repository):
            raise ValueError(f"push_to={repository} must be USER/NAME, such as push_to=ada/mae-cifar10")
        self.repository = repository
        self.private = private
        self.client = HfApi() if client is None else client
        self._require_login()
        self._require_room()

    def send(self, folder: Path) -> str:
        """Uploads all files of a folder; returns the page they can be seen on."""
        try:
            url = self.client.create_repo(self.repository, private=self.private, exist_ok=True)
            self.client.upload_folder(repo_id=self.repository, folder_path=folder, commit_message="Export of unmask")
        except _UNREACHABLE as error:
            raise ValueError(
                f"push_to={self.repository} failed, the export itself is complete in {folder}: {_first_line(error)}"
            ) from error
        return str(url)

    def _require_login(self) -> None:
        try:
            self.client.whoami()
        except LocalTokenNotFoundError as error:
            raise ValueError(
                f"push_to={self.repository} needs you to be logged in to the Hugging Face hub: run `hf auth login` once"
            ) from error
        except _UNREACHABLE as error:
            raise ValueError(
                f"push_to={self.repository}: the Hugging Face hub denies access ({_first_line(error)}); "
                "run `hf auth login`, or leave push_to out"
            ) from error

    def _require_room(self) -> None:
        try:
            if not self.client.repo_exists(self.repository):
                return
            files = set(self.client.list_repo_files(self.repository)) - _MADE_BY_THE_HUB
        except _UNREACHABLE as error:
            raise ValueError(f"push_to={self.repository} cannot be looked up: {_first_line(error)}") from error
        if files:
            raise ValueError(
                f"push_to={self.repository} holds files already, and nothing is overwritten; name a new repository"
            )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
