"""Exact neighbors, weighted votes."""

import math
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from unmask.evaluation import knn
from unmask.evaluation.knn import KNN, count_votes, nearest_neighbors


@pytest.fixture
def blobs(make_backbone, make_data, draw_splits):
    """Six overlapping classes, so that many votes are close."""
    backbone = make_backbone()
    data = make_data(draw_splits((60, 6, 40), num_classes=6, spread=90.0), num_classes=6)

    def features(split):
        images, labels = data.splits[split]
        return backbone.linear((images.float() / 255).flatten(1)).detach(), labels

    return backbone, data, features("train"), features("test")


def vote_by_hand(query, bank, labels, k, temperature):
    """Classes by falling vote; those without one are left out."""
    similarities = []
    for row, label in zip(bank.tolist(), labels.tolist(), strict=True):
        norms = math.hypot(*row) * math.hypot(*query)
        similarities.append((sum(a * b for a, b in zip(row, query, strict=True)) / norms, label))
    votes = defaultdict(float)
    for similarity, label in sorted(similarities, reverse=True)[:k]:
        votes[label] += math.exp(similarity / temperature)
    return sorted(votes, key=votes.__getitem__, reverse=True)


def test_every_count_equals_a_vote_by_hand(blobs, make_trainer):
    backbone, data, (bank, bank_labels), (queries, labels) = blobs
    metrics = KNN(k=7, also_k=(2, 30)).evaluate(backbone, data, make_trainer).metrics
    for k in (2, 7, 30):
        ranked = [vote_by_hand(query, bank, bank_labels, k, 0.07) for query in queries.tolist()]
        hits = {n: sum(int(y) in best[:n] for best, y in zip(ranked, labels, strict=True)) for n in (1, 5)}
        assert metrics[f"top1_k{k}"] == pytest.approx(100 * hits[1] / 40)
        assert 0 < hits[1] < 40
        if k == 7:
            assert metrics["top1"] == pytest.approx(100 * hits[1] / 40)
            assert metrics["top5"] == pytest.approx(100 * hits[5] / 40)


@pytest.mark.parametrize("temperature", [0.001, 0.5])
def test_the_temperature_counts_and_cannot_overflow(blobs, make_trainer, temperature):
    backbone, data, (bank, bank_labels), (queries, labels) = blobs
    report = KNN(k=60, also_k=(), temperature=temperature).evaluate(backbone, data, make_trainer)
    nearest_decides = temperature < 0.01  # where the sum by hand would overflow
    k, gentle = (1, 1.0) if nearest_decides else (60, temperature)
    voted = [vote_by_hand(query, bank, bank_labels, k, gentle)[0] for query in queries.tolist()]
    assert report.metrics["top1"] == pytest.approx(100 * (torch.tensor(voted) == labels).float().mean().item())
    assert f"temperature {temperature}" in report.protocol


def test_uniform_votes_equal_scikit_learn(blobs, make_trainer):
    backbone, data, (bank, bank_labels), (queries, labels) = blobs
    oracle = KNeighborsClassifier(metric="cosine").fit(bank.numpy(), bank_labels.numpy())
    metrics = KNN(k=7, also_k=()).evaluate(backbone, data, make_trainer).metrics
    assert metrics["top1_uniform_k5"] == pytest.approx(100 * oracle.score(queries.numpy(), labels.numpy()))


def test_separate_blobs_are_told_apart(make_backbone, make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((50, 6, 30), num_classes=2, spread=3.0), num_classes=2)
    metrics = KNN().evaluate(make_backbone(), data, make_trainer).metrics
    assert metrics["top1"] == 100.0
    assert metrics["top1_ci95_high"] == 100.0
    assert "top5" not in metrics


def test_chunks_do_not_change_the_neighbors(monkeypatch):
    query, bank = torch.randn(23, 8), torch.randn(40, 8)
    whole = nearest_neighbors(query, bank, 9)
    monkeypatch.setattr(knn, "_QUERIES_AT_ONCE", 5)
    monkeypatch.setattr(knn, "_BANK_AT_ONCE", 7)
    chunked = nearest_neighbors(query, bank, 9)
    assert torch.equal(chunked.position, whole.position)
    torch.testing.assert_close(chunked.similarity, whole.similarity)


def test_a_class_without_a_vote_is_no_candidate():
    votes = count_votes(torch.tensor([[2, 0, 2]]), torch.tensor([[0.5, 1.0, 0.25]]), 4)
    assert votes.tolist() == [[1.0, -math.inf, 0.75, -math.inf]]


def test_counts_beyond_the_bank_are_left_out_and_named(blobs, make_trainer):
    backbone, data, *_ = blobs
    report = KNN().evaluate(backbone, data, make_trainer)
    assert "left_out" in report.settings
    assert report.settings["left_out"] == "k of [100, 200]: the bank has 60 images"
    assert {name for name in report.metrics if "_k" in name} == {"top1_k10", "top1_k20", "top1_uniform_k5"}


def test_a_headline_beyond_the_bank_is_refused(blobs, make_trainer):
    backbone, data, *_ = blobs
    with pytest.raises(ValueError, match=r"k=61 neighbors, but the train split has 60 images; set eval.k=60 or less"):
        KNN(k=61).evaluate(backbone, data, make_trainer)


def test_the_protocol_names_all_that_changes_the_number(blobs, make_trainer):
    backbone, data, *_ = blobs
    report = KNN(k=7, also_k=()).evaluate(backbone, data, make_trainer)
    assert report.protocol == (
        "knn: cosine, k=7, temperature 0.07, bank train (60), query test (40), "
        "Pixels pooled features (8), 4x4 px, center crop 1"
    )
    assert (report.num_train_images, report.num_test_images) == (60, 40)
    data.interpolation = "bilinear"
    assert KNN().evaluate(backbone, data, make_trainer).protocol.endswith("crop 1 of an image resized bilinear")


@pytest.mark.parametrize(
    "settings", [{"k": 0}, {"also_k": (0,)}, {"uniform_k": 0}, {"temperature": 0.0}, {"also_temperatures": (-1.0,)}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="eval"):
        KNN(**settings)


def test_the_grid_of_counts_and_temperatures_is_one_vote_each(blobs, make_trainer):
    backbone, data, *_ = blobs
    metrics = KNN(k=7, also_k=(2,), also_temperatures=(0.5, 0.07, 0.01)).evaluate(backbone, data, make_trainer).metrics
    assert {name for name in metrics if "_t" in name} == {
        "top1_k2_t0.01", "top1_k7_t0.01", "top1_k2_t0.5", "top1_k7_t0.5"
    }  # fmt: skip
    for k, temperature in ((2, 0.01), (7, 0.5)):
        alone = KNN(k=k, also_k=(), temperature=temperature).evaluate(backbone, data, make_trainer).metrics
        assert metrics[f"top1_k{k}_t{temperature:g}"] == alone["top1"]
    assert len({metrics[name] for name in ("top1_k7", "top1_k7_t0.01", "top1_k7_t0.5")}) > 1


@pytest.mark.filterwarnings("ignore")  # of what lightly imports
def test_votes_are_lightlys(blobs, make_trainer):
    lightly = pytest.importorskip("lightly.utils.benchmarking")
    backbone, data, (bank, bank_labels), (queries, labels) = blobs
    for k, temperature in ((20, 0.07), (5, 0.5)):
        normalized = F.normalize(queries, dim=1), F.normalize(bank, dim=1).T
        ranked = lightly.knn_predict(*normalized, bank_labels, 6, knn_k=k, knn_t=temperature)
        metrics = KNN(k=k, also_k=(), temperature=temperature).evaluate(backbone, data, make_trainer).metrics
        assert metrics["top1"] == pytest.approx(100 * (ranked[:, 0] == labels).float().mean().item())
