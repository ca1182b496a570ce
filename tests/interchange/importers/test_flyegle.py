import math
from functools import partial

import pytest
import timm
import torch
from torch import nn

from unmask.heads.transposed_decoder import TransposedConvDecoder

WIDTH = 128


@pytest.fixture
def encoder(randomize):
    """FlyEgle's ViT as timm computes it, at the one image size it has."""
    sizes = {"img_size": 224, "patch_size": 56, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "num_classes": 0}
    theirs = randomize(timm.create_model("vit_tiny_patch16_224", **sizes, norm_layer=partial(nn.LayerNorm, eps=1e-5)))
    for place in range(17):
        for pair in range(WIDTH // 2):
            angle = place / 10000 ** (2 * pair / WIDTH)
            theirs.pos_embed.data[0, place, 2 * pair] = math.sin(angle)
            theirs.pos_embed.data[0, place, 2 * pair + 1] = math.cos(angle)
    return theirs


def weights_of(encoder: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": weight for name, weight in encoder.state_dict().items() if name != "pos_embed"}


@pytest.mark.parametrize("prefix", ["Encoder.", "model."])
def test_positions_along_the_sequence_and_the_larger_epsilon_are_supplied(encoder, load, prefix) -> None:
    weights = weights_of(encoder, prefix)
    if prefix == "model.":
        weights["model.class_head.weight"] = torch.zeros(6, WIDTH)
    images = torch.randn(1, 3, 224, 224)
    backbone = load({"epoch": 9, "state_dict": weights})
    expected = encoder.forward_features(images)[:, 1:]
    features = backbone.forward_features(images)[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert backbone.settings["norm_eps"] == 1e-5


def test_its_decoder_has_a_head_of_its_own_here(encoder, converted, randomize) -> None:
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 3, "pixel_mean": [0.5] * 3, "pixel_std": [0.5] * 3}
    ours = TransposedConvDecoder(encoder_dim=WIDTH, num_prefix_tokens=1, grid=(4, 4), patch_size=8, **sizes)
    block = {name: weight for name, weight in ours.state_dict().items() if name.startswith("blocks.0.")}
    theirs = {f"Decoder.{name}": torch.randn_like(weight) for name, weight in block.items()}
    theirs |= {"proj.weight": torch.randn(24, WIDTH), "proj.bias": torch.randn(24)}
    theirs |= {"restruction.weight": torch.randn(192, 24), "restruction.bias": torch.randn(192)}
    theirs |= {"patch_norm.gamma": torch.randn(192), "patch_norm.beta": torch.randn(192)}
    theirs |= {"unconv.weight": torch.randn(192, 3, 8, 8), "unconv.bias": torch.randn(3)}
    theirs |= {"Decoder.unmask_embed.proj.weight": torch.randn(24, 3, 8, 8)}
    theirs |= {"Decoder.unmask_embed.proj.bias": torch.randn(24)}
    unread = {"Decoder.cls_token": torch.zeros(1, 1, 24), "norm.weight": torch.zeros(192)}
    conversion = converted({"state_dict": weights_of(encoder, "Encoder.") | theirs | unread})
    assert conversion.left_out == dict.fromkeys(unread, "read by no computation of FlyEgle's")
    heads = {name.removeprefix("decoder."): weight for name, weight in conversion.heads.items()}
    assert {name: weight.shape for name, weight in heads.items()} == {
        name: weight.shape for name, weight in ours.state_dict().items()
    }
    for ours_name, name in (("predict.1.weight", "patch_norm.gamma"), ("embed.bias", "proj.bias")):
        assert torch.equal(heads[ours_name], theirs[name])
    assert torch.equal(heads["pos_embed"], ours.pos_embed)
