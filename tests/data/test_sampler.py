import pytest

from unmask.data.dataset import FILLER_EPOCH, SampleKey
from unmask.data.sampler import KeyedBatchSampler, PartOfBatches


def make_sampler(
    *,
    num_samples: int = 50,
    device_batch_size: int = 4,
    rank: int = 0,
    world_size: int = 1,
    seed: int | None = 0,
    drop_last: bool = True,
    epoch: int = 0,
    done: int = 0,
    accumulated: int = 1,
) -> KeyedBatchSampler:
    return KeyedBatchSampler(
        num_samples=num_samples,
        device_batch_size=device_batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
        drop_last=drop_last,
        position=lambda: (epoch, done),
        accumulated=accumulated,
    )


def visited(sampler: KeyedBatchSampler) -> list[int]:
    return [key.index for batch in sampler for key in batch if key.epoch != FILLER_EPOCH]


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_devices_share_the_batches_of_a_single_process(seed, world_size, drop_last) -> None:
    settings = {"seed": seed, "drop_last": drop_last, "epoch": 3}
    alone = list(make_sampler(device_batch_size=12, **settings))
    shared = [
        list(make_sampler(device_batch_size=12 // world_size, rank=rank, world_size=world_size, **settings))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(alone):
        parts = [device[step] for device in shared if step < len(device)]
        assert sorted(key for part in parts for key in part if key.epoch != FILLER_EPOCH) == sorted(batch)
        assert max(map(len, parts)) <= 12 // world_size


def test_order_does_not_depend_on_the_batch_size() -> None:
    orders = [visited(make_sampler(device_batch_size=size, drop_last=False, epoch=2)) for size in (1, 4, 7, 50)]
    assert all(order == orders[0] for order in orders)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_visits_every_sample_once(world_size) -> None:
    indices = []
    for rank in range(world_size):
        indices += visited(make_sampler(drop_last=False, rank=rank, world_size=world_size))
    assert sorted(indices) == list(range(50))


def test_only_the_samples_that_do_not_fill_a_global_batch_are_dropped() -> None:
    whole = visited(make_sampler(num_samples=53, drop_last=False, epoch=1))
    kept = [batch for rank in range(3) for batch in make_sampler(num_samples=53, rank=rank, world_size=3, epoch=1)]
    assert all(len(batch) == 4 for batch in kept)
    assert sorted(key.index for batch in kept for key in batch) == sorted(whole[:48])


@pytest.mark.parametrize("num_samples", [24, 25, 29, 47])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_length_is_the_number_of_batches(num_samples, drop_last, rank) -> None:
    sampler = make_sampler(num_samples=num_samples, rank=rank, world_size=3, drop_last=drop_last)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    assert all(batches)  # none is empty


@pytest.mark.parametrize("num_samples", [1, 2, 12, 13, 14, 23])
def test_every_device_takes_equally_many_batches_and_counts_a_sample_once(num_samples) -> None:
    settings = {"num_samples": num_samples, "world_size": 3, "seed": None, "drop_last": False}
    devices = [list(make_sampler(rank=rank, **settings)) for rank in range(3)]
    assert {len(batches) for batches in devices} == {-(-num_samples // 12)}
    keys = [key for batches in devices for batch in batches for key in batch]
    assert sorted(key.index for key in keys if key.epoch != FILLER_EPOCH) == list(range(num_samples))
    assert all(0 <= key.index < num_samples for key in keys)
    fillers = [batch for batches in devices for batch in batches if batch[0].epoch == FILLER_EPOCH]
    assert all(len(batch) == 1 for batch in fillers)
    assert len(fillers) == max(0, 3 - (num_samples - 1) % 12 - 1)  # devices without an image of the last step


@pytest.mark.parametrize("done", [0, 1, 5, 11])
def test_an_interrupted_epoch_goes_on_where_it_stopped(done) -> None:
    uninterrupted = list(make_sampler(epoch=4))
    assert list(make_sampler(epoch=4, done=done)) == uninterrupted[done:]


def test_an_interruption_after_the_last_batch_begins_the_next_epoch() -> None:
    assert list(make_sampler(epoch=4, done=12)) == list(make_sampler(epoch=5))


def test_position_is_asked_for_as_each_epoch_begins() -> None:
    positions = iter([(0, 0), (1, 0), (1, 3)])
    sampler = make_sampler()
    sampler.position = lambda: next(positions)
    first, second, resumed = list(sampler), list(sampler), list(sampler)
    assert first == list(make_sampler(epoch=0))
    assert second == list(make_sampler(epoch=1))
    assert resumed == second[3:]


def test_keys_name_the_epoch_they_are_read_in() -> None:
    assert all(key == SampleKey(7, key.index) for batch in make_sampler(epoch=7) for key in batch)


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    orders = [visited(make_sampler(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6
    assert orders[0] == visited(make_sampler(seed=0, epoch=0))
    assert all(order != sorted(order) for order in orders)


def test_every_sample_comes_first_equally_often() -> None:
    epochs, num_samples = 600, 5
    counts = [0] * num_samples
    for epoch in range(epochs):
        counts[next(iter(make_sampler(num_samples=num_samples, device_batch_size=1, epoch=epoch)))[0].index] += 1
    deviation = (epochs * 0.2 * 0.8) ** 0.5  # of a binomial count
    assert all(abs(count - epochs / num_samples) < 5 * deviation for count in counts)


def test_without_a_seed_the_stored_order_is_kept() -> None:
    assert visited(make_sampler(seed=None, drop_last=False, epoch=3)) == list(range(50))


@pytest.mark.parametrize("num_samples", [1, 8, 50])
@pytest.mark.parametrize("num_parts", [1, 2, 3, 9])
def test_parts_hold_the_batches_of_one_device_and_equally_many(num_samples, num_parts) -> None:
    alone = list(PartOfBatches(num_samples, 8, part=0, num_parts=1))
    assert [key for batch in alone for key in batch] == [SampleKey(0, index) for index in range(num_samples)]
    parts = [PartOfBatches(num_samples, 8, part=part, num_parts=num_parts) for part in range(num_parts)]
    steps = [len(list(part)) for part in parts]
    assert steps == [len(part) for part in parts] == [-(-len(alone) // num_parts)] * num_parts
    dealt = [list(part)[step] for step in range(steps[0]) for part in parts]
    assert dealt[: len(alone)] == alone
    assert all(batch in alone for batch in dealt)


@pytest.mark.parametrize(
    ("device_batch_size", "world_size", "accumulated"), [(12, 1, 1), (4, 1, 3), (2, 2, 3), (3, 4, 1)]
)
def test_training_leaves_the_same_samples_out_however_a_step_is_computed(
    device_batch_size, world_size, accumulated
) -> None:
    settings = {"device_batch_size": device_batch_size, "world_size": world_size, "accumulated": accumulated}
    devices = [make_sampler(rank=rank, **settings) for rank in range(world_size)]
    assert {len(list(sampler)) for sampler in devices} == {len(devices[0])} == {4 * accumulated}
    seen = {index for sampler in devices for index in visited(sampler)}
    assert seen == set(visited(make_sampler(device_batch_size=12)))  # 4 steps of 12; two samples fill none
