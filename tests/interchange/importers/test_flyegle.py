import math

import pytest
import torch
from torch import nn

WIDTH = 128


@pytest.fixture
def encoder(randomise):
    """FlyEgle's ViT as timm computes it, at the one image size it has."""
    import timm  # noqa: PLC0415

    sizes = {"img_size": 224, "patch_size": 56, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "num_classes": 0}
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", **sizes))
    for norm in (part for part in theirs.modules() if isinstance(part, nn.LayerNorm)):
        norm.eps = 1e-5
    for place in range(17):
        for pair in range(WIDTH // 2):
            angle = place / 10000 ** (2 * pair / WIDTH)
            theirs.pos_embed.data[0, place, 2 * pair] = math.sin(angle)
            theirs.pos_embed.data[0, place, 2 * pair + 1] = math.cos(angle)
    return theirs


def weights_of(encoder: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": weight for name, weight in encoder.state_dict().items() if name != "pos_embed"}


@pytest.mark.parametrize("prefix", ["Encoder.", "model."])
def test_positions_along_the_sequence_and_the_larger_epsilon_are_supplied(encoder, converted, load, prefix) -> None:
    weights = weights_of(encoder, prefix)
    weights |= {"Decoder.cls_token": torch.zeros(1, 1, 8)} if prefix == "Encoder." else {}
    weights |= {"model.class_head.weight": torch.zeros(6, WIDTH)} if prefix == "model." else {}
    content = {"epoch": 9, "state_dict": weights}
    images = torch.randn(1, 3, 224, 224)
    backbone = load(content)
    expected = encoder.forward_features(images)[:, 1:]
    features = backbone.forward_features(images)[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert backbone.settings["norm_eps"] == 1e-5
    reason = (
        "FlyEgle's decoder, which has another form than MAE's" if prefix == "Encoder." else "a classifier of 6 classes"
    )
    assert set(converted(content).left_out.values()) == {reason}
