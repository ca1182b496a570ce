import numpy as np
import pytest
import torch

from unmask.data.splits import hold_out, hold_out_per_class


def test_every_sample_is_on_exactly_one_side_in_rising_order() -> None:
    kept, held_out = hold_out(torch.randint(0, 4, (103,)), 20, seed=0)
    assert len(held_out) == 20
    assert sorted(kept.tolist() + held_out.tolist()) == list(range(103))
    assert kept.tolist() == sorted(kept.tolist())
    assert held_out.tolist() == sorted(held_out.tolist())


@pytest.mark.parametrize("count", [7, 40, 250, 399])
def test_each_class_gives_up_its_share_rounded(count: int) -> None:
    sizes = torch.tensor([200, 100, 60, 39, 1])
    labels = torch.repeat_interleave(torch.arange(5), sizes)[torch.randperm(400)]
    _, held_out = hold_out(labels, count, seed=3)
    taken = labels[held_out].bincount(minlength=5)
    assert taken.sum() == count
    assert (taken - sizes * count / 400).abs().max() < 1


def test_the_choice_follows_the_seed_and_nothing_else() -> None:
    labels = torch.randint(0, 3, (90,))
    _, first = hold_out(labels, 30, seed=1)
    torch.rand(5)
    _, again = hold_out(labels, 30, seed=1)
    _, other = hold_out(labels, 30, seed=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_sample_of_a_class_is_chosen_equally_often() -> None:
    labels = torch.tensor([0] * 12 + [1] * 8)
    seeds = 600
    chosen = torch.zeros(20)
    for seed in range(seeds):
        chosen[hold_out(labels, 5, seed=seed)[1]] += 1
    deviation = (seeds * 0.25 * 0.75) ** 0.5  # of a binomial count
    assert (chosen - seeds / 4).abs().max() < 5 * deviation


@pytest.mark.parametrize(("total", "count"), [(300_000, 297_000), (100_000, 99_999)])
def test_almost_all_of_a_large_set_can_be_held_out(total: int, count: int) -> None:
    kept, held_out = hold_out(torch.zeros(total, dtype=torch.long), count, seed=0)
    assert (len(kept), len(held_out)) == (total - count, count)


def test_two_samples_can_be_divided_and_one_cannot() -> None:
    kept, held_out = hold_out(torch.zeros(2, dtype=torch.long), 1, seed=0)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == [0, 1]
    with pytest.raises(ValueError, match=r"cannot hold out a part of 1 image.s.; at least 2 are needed"):
        hold_out(torch.zeros(1, dtype=torch.long), 1, seed=0)


@pytest.mark.parametrize("count", [0, 10, 11, -1])
def test_both_sides_keep_a_sample(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot hold out {count} of 10 images; choose between 1 and 9"):
        hold_out(torch.zeros(10, dtype=torch.long), count, seed=0)


def test_as_many_of_each_class_are_held_out_as_the_rule_of_lightning_bolts_finds_first() -> None:
    labels = torch.tensor([0, 4, 0, 2, 4, 0, 2, 2, 4, 4])  # classes 1 and 3 have no sample
    kept, held_out = hold_out_per_class(labels, 2, seed=7)
    order = list(range(10))
    np.random.RandomState(7).shuffle(order)
    first = [number for label in (0, 2, 4) for number in [place for place in order if labels[place] == label][:2]]
    assert held_out.tolist() == sorted(first)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(10))
    assert kept.tolist() == sorted(kept.tolist())


@pytest.mark.parametrize("count", [3, 4])
def test_a_class_does_not_lose_all_its_samples(count: int) -> None:
    sentence = f"a class has 3 image.s., of which {count} cannot be held out; set data.held_out_per_class=2 or less"
    with pytest.raises(ValueError, match=sentence):
        hold_out_per_class(torch.tensor([0, 4, 0, 2, 4, 0, 2, 2, 4, 4]), count)
