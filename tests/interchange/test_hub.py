from pathlib import Path
from typing import Any

import pytest
from httpx import ConnectError
from huggingface_hub.errors import LocalTokenNotFoundError

from unmask.interchange.hub import HubUpload


class Hub:
    """A hub in memory: repositories and their files."""

    def __init__(self, **repositories: list[str]) -> None:
        self.repositories = {name.replace("__", "/"): files for name, files in repositories.items()}
        self.private: dict[str, bool] = {}
        self.login_error: Exception | None = None
        self.upload_error: Exception | None = None

    def whoami(self) -> dict[str, str]:
        if self.login_error is not None:
            raise self.login_error
        return {"name": "ada"}

    def repo_exists(self, repo_id: str) -> bool:
        return repo_id in self.repositories

    def list_repo_files(self, repo_id: str) -> list[str]:
        return self.repositories[repo_id]

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok or repo_id not in self.repositories
        self.repositories.setdefault(repo_id, [".gitattributes"])
        self.private[repo_id] = private
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.upload_error is not None:
            raise self.upload_error
        self.repositories[repo_id] += sorted(path.name for path in Path(folder_path).iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("README.md", "config.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize("before", [{}, {"ada__mae": [".gitattributes"]}], ids=["new", "left empty by a failure"])
def test_a_folder_is_sent_to_a_repository_of_its_own(folder: Path, before: Any) -> None:
    hub = Hub(**before)
    assert HubUpload("ada/mae", client=hub).send(folder) == "https://huggingface.co/ada/mae"
    assert hub.repositories == {"ada/mae": [".gitattributes", "README.md", "config.json"]}
    assert hub.private == {"ada/mae": True}
    HubUpload("ada/shown", private=False, client=hub).send(folder)
    assert hub.private["ada/shown"] is False


def test_a_repository_with_files_is_never_overwritten() -> None:
    with pytest.raises(ValueError, match="push_to=ada/mae holds files already, and nothing is overwritten"):
        HubUpload("ada/mae", client=Hub(ada__mae=[".gitattributes", "notes.md"]))


def test_who_is_not_logged_in_is_told_how() -> None:
    hub = Hub()
    hub.login_error = LocalTokenNotFoundError("Token is required, but no token found.\nSee the docs.")
    with pytest.raises(ValueError, match="needs you to be logged in to the Hugging Face hub: run `hf auth login` once"):
        HubUpload("ada/mae", client=hub)
    hub.login_error = ConnectError("Name or service not known")
    with pytest.raises(ValueError, match=r"denies access \(Name or service not known\)"):
        HubUpload("ada/mae", client=hub)


def test_a_broken_upload_says_where_the_export_lies(folder: Path) -> None:
    hub = Hub()
    hub.upload_error = ConnectError("connection reset")
    with pytest.raises(ValueError, match=rf"the export itself is complete in {folder}: connection reset"):
        HubUpload("ada/mae", client=hub).send(folder)


@pytest.mark.parametrize("name", ["mae", "ada/mae/one", "ada/", "ada mae/x", "https://huggingface.co/ada/mae"])
def test_a_name_that_is_none_is_refused_before_the_hub_is_asked(name: str) -> None:
    with pytest.raises(ValueError, match="must be USER/NAME, such as push_to="):
        HubUpload(name, client=object())
