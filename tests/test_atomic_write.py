from pathlib import Path

import pytest

from unmask.atomic_write import atomic_write


def test_a_file_appears_with_all_its_content(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.npz"
    with atomic_write(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.suffix == ".npz"  # which numpy would otherwise add
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interruption_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "report.json"
    path.write_text("before")

    def write_half() -> None:
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
