"""What ViT and BEiT have in common: a class token, then the patches."""

import pytest
import torch


@pytest.mark.parametrize("family", ["vit", "beit"])
@pytest.mark.parametrize("norm_after_pooling", [False, True])
def test_layers_are_pooled_after_every_block_and_the_last_is_what_evaluation_reads(
    request, randomize, family, norm_after_pooling
) -> None:
    make = request.getfixturevalue(f"make_{family}")
    backbone = randomize(make(norm_after_pooling=norm_after_pooling, num_stages=2))
    model = getattr(backbone, family)
    images = torch.randn(3, 3, *backbone.image_size)
    layers = list(backbone.forward_layers(images))
    every = model.forward_intermediates(images, norm=False, intermediates_only=True)
    assert backbone.layer_names == ("block 1", "block 2", "block 3", "block 4")
    for pooled, feature_map in list(zip(layers, every, strict=True))[:-1]:
        assert set(pooled) == set(backbone.poolings)
        torch.testing.assert_close(pooled["mean"], feature_map.flatten(2).mean(dim=2))
        torch.testing.assert_close(pooled["max"], feature_map.flatten(2).amax(dim=2))
    assert torch.equal(layers[-1]["mean"], backbone.forward_pooled(images))
    tokens = model.forward_features(images)
    torch.testing.assert_close(layers[-1]["cls"], tokens[:, 0])
    assert not torch.allclose(layers[-2]["cls"], layers[-2]["mean"])
