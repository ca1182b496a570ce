"""How jobs share a machine."""

from unmask.runtime.job_cores import CORES_SWITCH
from unmask.runtime.local_launcher import Machine, Share, visible_gpus


def taken(machine: Machine) -> list[Share]:
    shares = []
    while (found := machine.take()) is not None:
        shares.append(found[1])
    return shares


def test_every_job_gets_gpus_and_cores_of_its_own() -> None:
    machine = Machine(gpus="0123", cores=range(9), gpus_per_job=2, jobs_per_gpu=1, n_jobs=None)
    first, second = taken(machine)
    assert sorted(first.gpus + second.gpus) == ["0", "1", "2", "3"]
    assert sorted(first.cores + second.cores) == list(range(9))
    assert first.environment()["CUDA_VISIBLE_DEVICES"] == ",".join(first.gpus)


def test_a_share_that_is_given_back_is_handed_out_again() -> None:
    machine = Machine(gpus=["a", "b"], cores=range(2), gpus_per_job=1, jobs_per_gpu=1, n_jobs=2)
    places = dict(found for found in (machine.take(), machine.take()) if found is not None)
    assert machine.take() is None
    machine.give_back(1)
    assert machine.take() == (1, places[1])


def test_jobs_that_share_a_gpu_spread_over_all_first() -> None:
    shares = taken(Machine(gpus="01", cores=range(4), gpus_per_job=1, jobs_per_gpu=2, n_jobs=None))
    assert sorted(share.gpus[0] for share in shares[:2]) == ["0", "1"]
    assert sorted(share.gpus[0] for share in shares) == ["0", "0", "1", "1"]


def test_the_number_of_jobs_is_a_limit_and_cores_are_shared_where_they_are_fewer() -> None:
    assert len(taken(Machine(gpus="01234567", cores=(), gpus_per_job=1, jobs_per_gpu=1, n_jobs=3))) == 3
    shares = taken(Machine(gpus=(), cores=[5], gpus_per_job=0, jobs_per_gpu=1, n_jobs=2))
    assert [share.environment() for share in shares] == [{CORES_SWITCH: "5"}] * 2
    assert len(taken(Machine(gpus=(), cores=range(8), gpus_per_job=0, jobs_per_gpu=1, n_jobs=None))) == 1


def test_a_job_that_asks_for_more_gpus_than_there_are_gets_all_and_is_refused_by_lightning() -> None:
    (share,) = taken(Machine(gpus="01", cores=range(2), gpus_per_job=8, jobs_per_gpu=1, n_jobs=None))
    assert share.gpus == ("0", "1")


def test_gpus_hidden_from_the_sweep_are_hidden_from_its_jobs() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3,GPU-5"}) == ["3", "GPU-5"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert visible_gpus({}, count=lambda: 2) == ["0", "1"]
