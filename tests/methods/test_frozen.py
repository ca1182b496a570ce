"""What a head on a frozen backbone reads and trains."""

import functools

import pytest
import torch

from unmask.heads.probes import AttentiveClassifier, BatchNormLinearClassifier
from unmask.methods.frozen import FrozenBackbone
from unmask.optim.schedules import constant


def make_module(backbone, head=BatchNormLinearClassifier, **changes):
    return FrozenBackbone(
        backbone=backbone,
        num_classes=5,
        head=head,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        schedule=constant,
        **changes,
    )


def test_a_vit_is_read_at_its_class_token_behind_the_final_norm(make_vit, randomize) -> None:
    backbone, images = randomize(make_vit()), torch.randn(3, 3, 32, 32)
    tokens = backbone.vit.forward_features(images)
    torch.testing.assert_close(make_module(backbone, pool="auto").features(images), tokens[:, 0])
    torch.testing.assert_close(make_module(backbone).features(images), tokens[:, 1:].mean(dim=1))


def test_a_swin_is_read_at_the_mean(make_swin, randomize) -> None:
    backbone, images = randomize(make_swin()), torch.randn(2, 3, 64, 64)
    module = make_module(backbone, pool="auto")
    assert module.what_is_read == "mean"
    torch.testing.assert_close(module.features(images), backbone.forward_pooled(images))


def test_a_head_of_patches_gets_every_cell_without_the_class_token(make_vit, randomize) -> None:
    backbone, images = randomize(make_vit()), torch.randn(2, 3, 32, 32)
    module = make_module(backbone, head=AttentiveClassifier)
    torch.testing.assert_close(module.features(images), backbone.vit.forward_features(images)[:, 1:])
    assert module.what_is_read == "patches"


def test_the_optimizer_holds_the_head_alone(make_vit) -> None:
    module = make_module(make_vit(), head=AttentiveClassifier)
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trainable == {f"head.{name}" for name, _ in module.head.named_parameters()}


def test_stochastic_depth_stays_off_while_the_head_trains(make_vit, randomize) -> None:
    backbone = randomize(make_vit(drop_path_rate=0.9))
    module, images = make_module(backbone).train(), torch.randn(4, 3, 32, 32)
    assert module.head.training
    assert torch.equal(module.features(images), module.features(images))


def test_a_pooling_the_backbone_lacks_is_refused(make_swin) -> None:
    with pytest.raises(ValueError, match=r"TimmSwin cannot be pooled by pool='cls'; use one of auto, mean, max"):
        make_module(make_swin(), pool="cls")


def test_a_head_is_exported_where_it_reads_what_an_exported_backbone_gives(make_vit, randomize) -> None:
    backbone, images = randomize(make_vit()), torch.randn(2, 3, 32, 32)
    module = randomize(make_module(backbone, pool="mean"))
    torch.testing.assert_close(module.exported_classifier(backbone.forward_pooled(images)), module(images))
    for changes, read in (({"pool": "cls"}, "cls"), ({"head": AttentiveClassifier}, "patches")):
        with pytest.raises(ValueError, match=f"this classifier reads {read}, .* classifier=false"):
            _ = make_module(backbone, **changes).exported_classifier
