"""Statistical bounds are at least five standard deviations wide; every seed is fixed."""

import pytest
import torch
from torch import Tensor

from unmask.randomness import keyed_permutation, keyed_uniform, sample_keys, stream_key

_WORD = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The published generator's step on unbounded Python integers."""
    bits = (state + 0x9E3779B97F4A7C15) & _WORD
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _WORD
    return bits ^ (bits >> 31)


def bits_of(keys: Tensor) -> Tensor:
    return (keys[..., None] >> torch.arange(64)) & 1


def correlation(first: Tensor, second: Tensor) -> float:
    return torch.corrcoef(torch.stack([first.flatten(), second.flatten()]).double())[0, 1].item()


def test_uniform_numbers_are_the_top_bits_of_splitmix64() -> None:
    keys = sample_keys(3, "any", 1, torch.arange(8))
    drawn = keyed_uniform(keys, 5)
    for row, key in enumerate(keys.tolist()):
        for col in range(5):
            bits = splitmix64(key + (col + 1) * 0x9E3779B97F4A7C15)
            assert drawn[row, col].item() == (bits >> 40) / 2**24


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    drawn = keyed_uniform(sample_keys(0, "any", 0, torch.arange(4096)), 64)
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    counts = torch.histc(drawn, bins=128, min=0.0, max=1.0)
    expected = drawn.numel() / 128
    chi_squared = ((counts - expected).square() / expected).sum().item()
    assert abs(chi_squared - 127) < 6 * (2 * 127) ** 0.5  # mean and variance of a chi-squared of 127 degrees
    worst_place = (drawn.mean(dim=0) - 0.5).abs().max()
    assert worst_place < 6 * (1 / 12 / 4096) ** 0.5


@pytest.mark.parametrize("varied", ["seed", "epoch", "index"])
def test_each_bit_of_the_input_flips_each_bit_of_the_key_half_of_the_time(varied: str) -> None:
    samples = 1024
    index = torch.arange(samples)
    base = bits_of(sample_keys(5, "any", 7, index))
    for bit in range(0, 63, 3):
        flip = 1 << bit
        keys = {
            "seed": lambda flip=flip: sample_keys(5 ^ flip, "any", 7, index),
            "epoch": lambda flip=flip: sample_keys(5, "any", 7 ^ flip, index),
            "index": lambda flip=flip: sample_keys(5, "any", 7, index ^ flip),
        }[varied]()
        flipped = (bits_of(keys) != base).double().mean(dim=0)
        assert (flipped - 0.5).abs().max() < 6 * (0.25 / samples) ** 0.5


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda index: sample_keys(0, "any", 0, index + 1), id="next sample"),
        pytest.param(lambda index: sample_keys(0, "any", 1, index), id="next epoch"),
        pytest.param(lambda index: sample_keys(1, "any", 0, index), id="next seed"),
        pytest.param(lambda index: sample_keys(0, "other", 0, index), id="other stream"),
        pytest.param(lambda index: sample_keys(0, "any", 0, index) ^ 1, id="neighboring key"),
    ],
)
def test_draws_of_different_keys_are_uncorrelated(other) -> None:
    index = torch.arange(1000)
    first = keyed_uniform(sample_keys(0, "any", 0, index), 32)
    second = keyed_uniform(other(index), 32)
    bound = 5 / first.numel() ** 0.5
    assert abs(correlation(first, second)) < bound
    assert abs(correlation(first[:, 1:], second[:, :-1])) < bound
    assert abs(correlation(first[:, :-1], second[:, 1:])) < bound


def test_successive_draws_of_one_key_are_uncorrelated() -> None:
    drawn = keyed_uniform(sample_keys(0, "any", 0, torch.arange(1000)), 32)
    for lag in (1, 2, 3):
        assert abs(correlation(drawn[:, lag:], drawn[:, :-lag])) < 5 / drawn[:, lag:].numel() ** 0.5


def test_no_two_of_many_samples_epochs_streams_and_seeds_share_a_key() -> None:
    index = torch.arange(500)
    keys = torch.cat(
        [
            sample_keys(seed, stream, epoch, index)
            for seed in range(5)
            for stream in ("augmentation", "train-mask", "held-out-mask")
            for epoch in range(20)
        ]
    )
    assert keys.unique().numel() == keys.numel()


def test_key_is_a_function_of_its_own_sample_alone() -> None:
    index = torch.tensor([7, 3, 900_000])
    epochs = torch.tensor([2, 0, 5])
    together = sample_keys(11, "any", epochs, index)
    alone = [sample_keys(11, "any", int(epoch), one[None]) for epoch, one in zip(epochs, index, strict=True)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(sample_keys(11, "any", epochs.int(), index.int()), together)


def test_more_draws_begin_with_the_same_numbers() -> None:
    keys = sample_keys(0, "any", 0, torch.arange(4))
    assert torch.equal(keyed_uniform(keys, 9)[:, :4], keyed_uniform(keys, 4))


def test_permutation_depends_on_its_key_and_leaves_torchs_stream_alone() -> None:
    state = torch.get_rng_state()
    first = keyed_permutation(-12345, 100)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(first, keyed_permutation(-12345, 100))
    assert torch.equal(first.sort().values, torch.arange(100))
    assert not torch.equal(first, keyed_permutation(-12346, 100))


def test_stream_keys_tell_seed_stream_and_the_order_of_counters_apart() -> None:
    keys = [
        stream_key(0, "order", 1, 2),
        stream_key(0, "order", 2, 1),
        stream_key(0, "order", 1),
        stream_key(0, "order"),
        stream_key(1, "order", 1, 2),
        stream_key(0, "hold-out", 1, 2),
        stream_key(1, "order", 0, 2),
    ]
    assert len(set(keys)) == len(keys)
    assert stream_key(0, "order", 1, 2) == keys[0]
