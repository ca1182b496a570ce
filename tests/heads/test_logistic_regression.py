"""Logistic regression against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Oracle
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unmask.heads import logistic_regression
from unmask.heads.logistic_regression import LogisticRegression


def draw(count, num_classes=4, width=6):
    """Overlapping classes with features of very different scales, one of them constant."""
    labels = torch.arange(count) % num_classes
    centers = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scales = torch.logspace(-3, 2, width, dtype=torch.float64)
    features = (centers[labels] + torch.randn(count, width, dtype=torch.float64)) * scales + 5.0
    features[:, 2] = 7.0
    return features, labels


def oracle(features, labels, inverse_strength):
    fitted = make_pipeline(StandardScaler(), Oracle(C=inverse_strength, tol=1e-10, max_iter=5000))
    return fitted.fit(features.numpy(), labels.numpy())


@pytest.mark.parametrize("inverse_strength", [1e-3, 1.0, 100.0])
def test_probabilities_and_weights_are_scikit_learns(inverse_strength, monkeypatch) -> None:
    monkeypatch.setattr(logistic_regression, "_ROWS_AT_ONCE", 7)  # parts that do not divide the images
    features, labels = draw(90)
    head = LogisticRegression(in_features=6, num_classes=4)
    assert head.fit(features, labels, inverse_strength=inverse_strength)
    expected = oracle(features, labels, inverse_strength)
    unseen, _ = draw(50)
    probabilities = head(unseen).softmax(dim=1)
    np.testing.assert_allclose(probabilities.numpy(), expected.predict_proba(unseen.numpy()), atol=1e-4)
    weights = head.weight - head.weight.mean(dim=1, keepdim=True)
    np.testing.assert_allclose(weights.T.numpy(), expected[1].coef_, atol=1e-3)


def test_single_precision_is_good_to_a_thousandth() -> None:
    features, labels = draw(90)
    head = LogisticRegression(in_features=6, num_classes=4)
    head.fit(features.float(), labels, inverse_strength=1.0)
    probabilities = head(features.float()).softmax(dim=1)
    expected = oracle(features, labels, 1.0).predict_proba(features.numpy())
    np.testing.assert_allclose(probabilities.numpy(), expected, atol=1e-3)


def test_the_strength_is_chosen_on_held_out_features_and_its_classifier_kept() -> None:
    features, labels = draw(60)
    labels[::3] = torch.randint(0, 4, (20,))  # noise, which a weak penalty learns by heart
    held_out, held_out_labels = draw(400)
    grid = [1e-6, 1e-2, 1e4]
    head = LogisticRegression(in_features=6, num_classes=4, inverse_strengths=grid)
    choice = head.fit_best(features, labels, held_out, held_out_labels)
    expected = [oracle(features, labels, c) for c in grid]
    top1 = [fitted.score(held_out.numpy(), held_out_labels.numpy()) for fitted in expected]
    assert choice.top1 == pytest.approx(top1, abs=1 / 400)
    best = top1.index(max(top1))
    assert choice.inverse_strength == grid[best]
    probabilities = head(held_out).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, expected[best].predict_proba(held_out.numpy()), atol=1e-3)


def test_of_equally_good_strengths_the_strongest_is_kept() -> None:
    features = torch.tensor([[-1.0], [1.0]]).repeat(10, 1)
    labels = torch.tensor([0, 1]).repeat(10)
    head = LogisticRegression(in_features=1, num_classes=2, inverse_strengths=[0.01, 1.0])
    choice = head.fit_best(features, labels, features, labels)
    assert choice == (0.01, [1.0, 1.0], True)
    kept = head.weight.clone()
    head.fit(features, labels, inverse_strength=0.01)
    torch.testing.assert_close(head.weight, kept, atol=1e-4, rtol=0.0)


def test_a_fit_cut_short_says_so() -> None:
    features, labels = draw(90)
    head = LogisticRegression(in_features=6, num_classes=4, max_iterations=2)
    assert not head.fit(features, labels, inverse_strength=1.0)


def test_it_is_refused_where_heads_learn_by_steps() -> None:
    head = LogisticRegression(in_features=6, num_classes=4)
    with pytest.raises(ValueError, match="does not learn by gradient steps; use it with eval=frozen"):
        head(torch.randn(2, 6))


@pytest.mark.parametrize("grid", [[], [1.0, 0.1], [0.0, 1.0]])
def test_impossible_grids_are_refused(grid) -> None:
    with pytest.raises(ValueError, match="inverse_strengths must be positive numbers in rising order"):
        LogisticRegression(in_features=6, num_classes=4, inverse_strengths=grid)
