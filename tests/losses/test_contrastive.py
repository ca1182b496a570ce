import math

import pytest
import torch

from unmask.losses.contrastive import gather_keys, info_nce

OWN = torch.arange(5)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.mark.parametrize("phantom", [False, True])
def test_it_equals_a_loop_over_the_pairs(phantom: bool) -> None:
    queries, keys, positives = torch.randn(5, 8), 3 * torch.randn(7, 8), torch.tensor([2, 3, 4, 5, 6])
    expected = []
    for a in range(5):
        scores = [math.exp(cosine(queries[a], key) / 0.2) for key in keys]
        expected.append(-math.log(scores[positives[a]] / (sum(scores) + phantom)))
    found = info_nce(queries, keys, positives, temperature=0.2, extra_zero_logit=phantom)
    assert found.loss.item() == pytest.approx(sum(expected) / 5, rel=1e-5)


def test_gradients_flow_to_queries_and_not_to_keys() -> None:
    queries, keys = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    info_nce(queries, keys, OWN, temperature=0.1).loss.backward()
    assert queries.grad is not None
    assert queries.grad.abs().sum() > 0
    assert keys.grad is None


def test_equal_pairs_far_apart_cost_nothing_and_are_all_found() -> None:
    found = info_nce(torch.eye(5), torch.eye(5), OWN, temperature=0.05)
    assert found.loss.item() == pytest.approx(math.log1p(4 * math.exp(-20)), abs=1e-7)
    assert found.accuracy == 1.0


def test_equal_keys_leave_chance() -> None:
    found = info_nce(torch.randn(5, 8), torch.ones(5, 8), OWN, temperature=0.05)
    assert found.loss.item() == pytest.approx(math.log(5), rel=1e-5)


def test_accuracy_counts_the_queries_nearest_to_their_own_key() -> None:
    keys = torch.eye(5)
    queries = keys[[0, 1, 2, 4, 3]]
    assert info_nce(queries, keys, OWN, temperature=0.05).accuracy.item() == pytest.approx(3 / 5)


def test_half_precision_inputs_are_compared_in_single() -> None:
    queries, keys = torch.randn(5, 64), torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(queries.bfloat16(), keys.bfloat16(), OWN, temperature=0.05).loss
    exact = info_nce(queries.bfloat16().float(), keys.bfloat16().float(), OWN, temperature=0.05).loss
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        info_nce(torch.randn(5, 8), torch.randn(5, 8), OWN, temperature=0.0)


def test_one_process_keeps_its_keys() -> None:
    keys = torch.randn(3, 4, requires_grad=True)
    gathered, positives = gather_keys(keys)
    assert torch.equal(gathered, keys)
    assert not gathered.requires_grad
    assert positives.tolist() == [0, 1, 2]
