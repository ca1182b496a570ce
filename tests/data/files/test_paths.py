import pickle

import torch

from unmask.data.files.paths import PathList

NAMES = ["a/b.png", "", "ß 図/é'\".tiff", "a\nb.png", "bad-\udcff.png", "a/b.png"]  # the last but one is no UTF-8


def test_paths_come_back_as_they_were() -> None:
    paths = PathList(iter(NAMES))
    assert list(paths) == NAMES
    assert [paths[number] for number in range(len(paths))] == NAMES
    assert paths[-2] == NAMES[-2]
    assert list(PathList([])) == []


def test_taken_paths_share_the_block() -> None:
    paths = PathList(NAMES)
    taken = paths.take(torch.tensor([4, 0, 4])).take(torch.tensor([1, 2]))
    assert list(taken) == [NAMES[0], NAMES[4]]
    assert taken.block.data_ptr() == paths.block.data_ptr()


def test_paths_survive_a_process_that_is_started_anew() -> None:
    paths = PathList(NAMES).take(torch.tensor([5, 2]))
    assert list(pickle.loads(pickle.dumps(paths))) == [NAMES[5], NAMES[2]]
