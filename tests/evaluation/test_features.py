"""What every protocol reads: full images, once each, from a backbone at rest."""

import pytest
import torch

from unmask.evaluation.features import extract_features, require_labels
from unmask.evaluation.knn import KNN
from unmask.evaluation.linear import LinearProbe

CPU = torch.device("cpu")


def test_every_image_is_read_once_in_order_with_a_short_last_batch(make_backbone, make_data, draw_splits):
    splits = draw_splits((16, 9, 10), num_classes=3, spread=30.0)
    backbone = make_backbone().train()
    features, labels = extract_features(backbone, make_data(splits, num_classes=3), "train", device=CPU)
    images = torch.cat([images for images, _, _ in backbone.calls])
    assert [len(images) for images, _, _ in backbone.calls] == [7, 7, 2]
    assert torch.equal(images, splits["train"][0].float() / 255)
    assert torch.equal(labels, splits["train"][1])
    torch.testing.assert_close(features, backbone.linear(images.flatten(1)).detach())


def test_the_backbone_rests_while_it_is_read_and_every_module_gets_its_mode_back(make_backbone, make_data, draw_splits):
    backbone = make_backbone().train()
    backbone.linear.eval()
    data = make_data(draw_splits((16, 9, 10), num_classes=3, spread=30.0), num_classes=3)
    extract_features(backbone, data, "test", device=CPU)
    assert all((is_training, is_inference) == (False, True) for _, is_training, is_inference in backbone.calls)
    assert (backbone.training, backbone.dropout.training, backbone.linear.training) == (True, True, False)


def test_modes_come_back_after_an_error(make_backbone, make_data, draw_splits, monkeypatch):
    backbone = make_backbone().train()
    data = make_data(draw_splits((16, 9, 10), num_classes=3, spread=30.0), num_classes=3)
    monkeypatch.setattr(backbone, "forward_pooled", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        extract_features(backbone, data, "test", device=CPU)
    assert backbone.training


def test_features_are_float32_and_fit_to_train_on(make_backbone, make_data, draw_splits, monkeypatch):
    data = make_data(draw_splits((16, 9, 10), num_classes=3, spread=30.0), num_classes=3)
    backbone = make_backbone()
    monkeypatch.setattr(backbone, "forward_pooled", lambda images: backbone.linear(images.flatten(1)).bfloat16())
    features = extract_features(backbone, data, "train", device=CPU).features
    assert features.dtype == torch.float32
    assert not features.is_inference()


def test_a_sample_read_twice_is_noticed(make_backbone, make_data, draw_splits, monkeypatch):
    data = make_data(draw_splits((16, 9, 10), num_classes=3, spread=30.0), num_classes=3)
    once = data.evaluation_loader("train")
    monkeypatch.setattr(data, "evaluation_loader", lambda split: [*once, *once])
    with pytest.raises(AssertionError, match="read twice"):
        extract_features(make_backbone(), data, "train", device=CPU)


@pytest.mark.parametrize("evaluator", [KNN(k=3, also_k=()), LinearProbe(epochs=1)])
def test_bank_probe_and_query_read_the_same_images_in_the_same_way(
    make_backbone, make_data, draw_splits, make_trainer, evaluator
):
    splits = draw_splits((16, 9, 10), num_classes=3, spread=30.0)
    backbone = make_backbone().train()
    evaluator.evaluate(backbone, make_data(splits, num_classes=3), make_trainer)
    read = torch.cat([images for images, _, _ in backbone.calls])
    needed = [name for name in splits if name != "val" or isinstance(evaluator, LinearProbe)]
    assert torch.equal(read, torch.cat([splits[name][0] for name in needed]).float() / 255)
    assert all((is_training, is_inference) == (False, True) for _, is_training, is_inference in backbone.calls)


@pytest.mark.parametrize(("num_unlabelled", "lack"), [(10, "has none;"), (2, "has none for 2 of 10 images;")])
def test_unlabelled_images_are_refused_before_any_is_read(make_backbone, make_data, draw_splits, num_unlabelled, lack):
    splits = draw_splits((16, 9, 10), num_classes=3, spread=30.0)
    splits["test"][1][:num_unlabelled] = -1
    backbone = make_backbone()
    with pytest.raises(ValueError, match=f"eval=knn needs labels, but the test split of InMemory {lack} use labelled"):
        KNN(k=3).evaluate(backbone, make_data(splits, num_classes=3), lambda: None)
    assert backbone.calls == []


def test_one_class_is_refused(make_data, draw_splits):
    data = make_data(draw_splits((16, 9, 10), num_classes=1, spread=30.0), num_classes=1)
    with pytest.raises(ValueError, match="eval=linear needs at least two classes, but InMemory has 1"):
        require_labels(data, ("train",), evaluation="linear")
