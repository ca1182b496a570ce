"""Few labels on frozen features: what is learned from and what is averaged."""

import pytest

from unmask.evaluation.fewshot import FewShot
from unmask.heads.logistic_regression import LogisticRegression


@pytest.fixture
def data(make_data, draw_splits):
    return make_data(draw_splits((60, 6, 30), num_classes=3, spread=60.0), num_classes=3)


def test_means_and_deviations_are_those_of_fits_to_the_written_lists(make_backbone, data, make_trainer, tmp_path):
    backbone = make_backbone().eval()
    evaluator = FewShot(
        label_fractions=(), per_class=(1, 4), seeds=(0, 7), directory=tmp_path / "lists", inverse_strength=0.5
    )
    report = evaluator.evaluate(backbone, data, make_trainer)
    train, test = (
        backbone.forward_pooled(data.dataset(split).images.float() / 255.0).detach() for split in ("train", "test")
    )
    labels, expected = data.dataset("train").labels, data.dataset("test").labels
    for shots in (1, 4):
        top1 = []
        for seed in (0, 7):
            lines = (tmp_path / "lists" / f"train_{shots}shot_seed{seed}.txt").read_text().splitlines()[1:]
            positions = [int(line.split(",")[0]) for line in lines]
            assert len(positions) == 3 * shots
            head = LogisticRegression(in_features=8, num_classes=3)
            head.fit(train[positions], labels[positions], inverse_strength=0.5)
            top1.append(100.0 * (head(test).argmax(dim=1) == expected).float().mean().item())
        assert report.metrics[f"top1_{shots}shot"] == pytest.approx(sum(top1) / 2)
        assert report.metrics[f"top1_{shots}shot_std"] == pytest.approx(abs(top1[0] - top1[1]) / 2**0.5)
    assert (report.num_train_images, report.num_test_images) == (12, 30)


def test_more_labels_help_and_the_protocol_counts_them(make_backbone, data, make_trainer, tmp_path):
    evaluator = FewShot(label_fractions=(0.1, 1.0), seeds=(0, 1, 2), directory=tmp_path)
    report = evaluator.evaluate(make_backbone(), data, make_trainer)
    assert report.metrics["top1_100pct"] > report.metrics["top1_10pct"] > 40.0
    assert report.metrics["top1_100pct_std"] == 0.0  # the same images in every list
    assert report.protocol == (
        "fewshot: L-BFGS logistic regression on standardized features, inverse strength 1, at most 500 iterations, "
        "10pct (6), 100pct (60) of train (60), seeds 0, 1, 2, test (30), Pixels stage 1, mean, 4x4 px, center crop 1"
    )


def test_more_images_than_a_class_has_are_refused_before_any_file_is_written(
    make_backbone, data, make_trainer, tmp_path
):
    evaluator = FewShot(label_fractions=(), per_class=(21,), directory=tmp_path / "lists")
    with pytest.raises(ValueError, match="eval=fewshot asks for 21 training"):
        evaluator.evaluate(make_backbone(), data, make_trainer)
    assert not (tmp_path / "lists").exists()


def test_a_strength_out_of_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"eval.inverse_strength must be positive, got 0"):
        FewShot(directory=tmp_path, inverse_strength=0.0)
