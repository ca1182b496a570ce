"""What every protocol reads: full images, once each, from a backbone in eval mode."""

from pathlib import Path

import pytest
import torch

from unmask.data.augmentation.transforms import Augmentation
from unmask.evaluation import features
from unmask.evaluation.features import FrozenFeatures, PooledLayer, final_mean, read_features, require_labels
from unmask.evaluation.knn import KNN
from unmask.evaluation.linear import LinearProbe

CPU = torch.device("cpu")


def test_every_image_is_read_once_in_order_with_a_short_last_batch(make_backbone, make_data, draw_splits):
    splits = draw_splits((16, 9, 10), num_classes=3, spread=30.0)
    backbone = make_backbone().train()
    found, labels = read_features(backbone, make_data(splits, num_classes=3), "train", device=CPU)
    images = torch.cat([images for images, _, _ in backbone.calls])
    assert [len(images) for images, _, _ in backbone.calls] == [7, 7, 2]
    torch.testing.assert_close(images, splits["train"][0].float() / 255)
    assert torch.equal(labels, splits["train"][1])
    torch.testing.assert_close(found, backbone.linear(images.flatten(1)).detach())


def test_the_backbone_rests_while_it_is_read_and_every_module_gets_its_mode_back(make_backbone, make_data, draw_splits):
    backbone = make_backbone().train()
    backbone.linear.eval()
    data = make_data(draw_splits((16, 9, 10), num_classes=3, spread=30.0), num_classes=3)
    read_features(backbone, data, "test", device=CPU)
    assert all((is_training, is_inference) == (False, True) for _, is_training, is_inference in backbone.calls)
    assert (backbone.training, backbone.dropout.training, backbone.linear.training) == (True, True, False)


def test_modes_come_back_after_an_error(make_backbone, make_data, draw_splits, monkeypatch):
    backbone = make_backbone().train()
    data = make_data(draw_splits((16, 9, 10), num_classes=3, spread=30.0), num_classes=3)
    monkeypatch.setattr(backbone, "forward_pooled", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read_features(backbone, data, "test", device=CPU)
    assert backbone.training


def test_features_are_float32_and_fit_to_train_on(make_backbone, make_data, draw_splits, monkeypatch):
    data = make_data(draw_splits((16, 9, 10), num_classes=3, spread=30.0), num_classes=3)
    backbone = make_backbone()
    monkeypatch.setattr(backbone, "forward_pooled", lambda images: backbone.linear(images.flatten(1)).bfloat16())
    found = read_features(backbone, data, "train", device=CPU).features
    assert found.dtype == torch.float32
    assert not found.is_inference()


def test_a_sample_served_twice_is_counted_once_and_one_left_out_is_noticed(
    make_backbone, make_data, draw_splits, make_trainer, monkeypatch
):
    data = make_data(draw_splits((16, 9, 10), num_classes=3, spread=30.0), num_classes=3)
    backbone = make_backbone()
    expected = FrozenFeatures(backbone, data, make_trainer).read("train")
    batches = list(data.evaluation_part("train", part=0, num_parts=1))
    monkeypatch.setattr(data, "evaluation_part", lambda split, **parts: [*batches[::-1], batches[0]])
    served = FrozenFeatures(backbone, data, make_trainer).read("train")
    assert torch.equal(served.features, expected.features)
    assert torch.equal(served.labels, expected.labels)
    monkeypatch.setattr(data, "evaluation_part", lambda split, **parts: batches[1:])
    with pytest.raises(AssertionError, match="a sample was skipped"):
        FrozenFeatures(backbone, data, make_trainer).read("train")


def test_several_protocols_and_layers_share_one_pass_a_split(make_vit, make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((16, 9, 10), num_classes=3, spread=30.0, side=32), num_classes=3, image_size=32)
    backbone = make_vit()
    batch_sizes = []
    backbone.vit.patch_embed.register_forward_hook(lambda module, images, tokens: batch_sizes.append(len(tokens)))
    wanted = (PooledLayer(1, "cls"), PooledLayer(1, "mean"), PooledLayer(3, "max"))
    shared = FrozenFeatures(backbone, data, make_trainer, wanted)
    read = {(split, layer): shared.read(split, layer) for split in ("train", "test") for layer in shared.pooled_layers}
    KNN(k=3).measure(shared)
    assert batch_sizes == [7, 7, 2, 7, 3]
    for split in ("train", "test"):
        images = data.splits[split][0].float() / 255
        with torch.inference_mode():
            computed = list(backbone.eval().forward_layers(images))
        for layer in (*wanted, final_mean(backbone)):
            torch.testing.assert_close(read[split, layer].features, computed[layer.number][layer.pool].clone())


def test_features_that_do_not_fit_in_memory_lie_in_a_file_that_leaves_nothing_behind(
    make_backbone, make_data, draw_splits, make_trainer, monkeypatch
):
    data = make_data(draw_splits((16, 9, 10), num_classes=3, spread=30.0), num_classes=3)
    backbone = make_backbone()
    in_memory = FrozenFeatures(backbone, data, make_trainer).read("train").features
    folder = Path(make_trainer().default_root_dir)
    asked = []
    from_file = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda path, **kind: asked.append(path) or from_file(path, **kind))
    monkeypatch.setattr(features, "_BYTES_IN_MEMORY", 4 * 16 * 8 - 1)
    on_disk = FrozenFeatures(backbone, data, make_trainer).read("train").features
    assert [Path(path).is_relative_to(folder) for path in asked] == [True]
    assert list(folder.iterdir()) == []
    assert torch.equal(on_disk, in_memory)
    monkeypatch.setattr(features, "_BYTES_IN_MEMORY", 4 * 16 * 8)
    FrozenFeatures(backbone, data, make_trainer).read("train")
    assert len(asked) == 1


@pytest.mark.parametrize("evaluator", [KNN(k=3, also_k=()), LinearProbe(epochs=1)])
def test_bank_probe_and_query_read_the_same_images_in_the_same_way(
    make_backbone, make_data, draw_splits, make_trainer, evaluator
):
    splits = draw_splits((16, 9, 10), num_classes=3, spread=30.0)
    backbone = make_backbone().train()
    evaluator.evaluate(backbone, make_data(splits, num_classes=3), make_trainer)
    read = torch.cat([images for images, _, _ in backbone.calls])
    needed = [name for name in splits if name != "val" or isinstance(evaluator, LinearProbe)]
    torch.testing.assert_close(read, torch.cat([splits[name][0] for name in needed]).float() / 255)
    assert all((is_training, is_inference) == (False, True) for _, is_training, is_inference in backbone.calls)


@pytest.mark.parametrize(("num_unlabeled", "lack"), [(10, "has none;"), (2, "has none for 2 of 10 images;")])
def test_unlabeled_images_are_refused_before_any_is_read(make_backbone, make_data, draw_splits, num_unlabeled, lack):
    splits = draw_splits((16, 9, 10), num_classes=3, spread=30.0)
    splits["test"][1][:num_unlabeled] = -1
    backbone = make_backbone()
    with pytest.raises(ValueError, match=f"eval=knn needs labels, but the test split of InMemory {lack} use labeled"):
        KNN(k=3).evaluate(backbone, make_data(splits, num_classes=3), lambda: None)
    assert backbone.calls == []


def test_one_class_is_refused(make_data, draw_splits):
    data = make_data(draw_splits((16, 9, 10), num_classes=1, spread=30.0), num_classes=1)
    with pytest.raises(ValueError, match="eval=linear needs at least two classes, but InMemory has 1"):
        require_labels(data, ("train",), evaluation="linear")


def test_images_are_read_without_the_augmentation_of_training(make_backbone, make_data, draw_splits):
    splits = draw_splits((16, 9, 10), num_classes=3, spread=30.0)
    backbone = make_backbone()
    strong = Augmentation(scale=(0.1, 0.2), hflip_prob=1.0, random_erasing_prob=1.0)
    plain, augmented = (
        read_features(backbone, make_data(splits, num_classes=3, **changes), "train", device=CPU).features
        for changes in ({}, {"augmentation": strong})
    )
    assert torch.equal(plain, augmented)
