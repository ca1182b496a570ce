import pytest
import torch
from torch import nn

from unmask.positions import sincos_positions


@pytest.fixture
def encoder(timm_vit):
    theirs = timm_vit()
    theirs.pos_embed.data.copy_(sincos_positions(128, (4, 4)))
    return theirs


def weights_of(vit: nn.Module) -> dict:
    return {name: weight for name, weight in vit.state_dict().items() if not name.startswith("head.")}


def test_an_encoder_is_told_by_its_positions(encoder, images, converted, load, require_same_features) -> None:
    content = {"model": weights_of(encoder)}
    assert converted(content).source_format == "MAE, encoder"
    backbone = load(content)
    require_same_features(backbone, encoder.forward_features(images)[:, 1:])
    assert not backbone.vit.pos_embed.requires_grad


def decoder_weights() -> dict:
    """By the documented names."""
    block = {
        "norm1.weight": (64,), "norm1.bias": (64,), "attn.qkv.weight": (192, 64), "attn.qkv.bias": (192,),
        "attn.proj.weight": (64, 64), "attn.proj.bias": (64,), "norm2.weight": (64,), "norm2.bias": (64,),
        "mlp.fc1.weight": (256, 64), "mlp.fc1.bias": (256,), "mlp.fc2.weight": (64, 256), "mlp.fc2.bias": (64,),
    }  # fmt: skip
    shapes = {f"decoder_blocks.0.{name}": shape for name, shape in block.items()}
    shapes |= {"mask_token": (1, 1, 64), "decoder_embed.weight": (64, 128), "decoder_embed.bias": (64,)}
    shapes |= {"decoder_norm.weight": (64,), "decoder_norm.bias": (64,)}
    shapes |= {"decoder_pred.weight": (192, 64), "decoder_pred.bias": (192,)}
    weights = {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}
    return weights | {"decoder_pos_embed": sincos_positions(64, (4, 4))}


def test_the_decoder_goes_to_the_method(encoder, converted, load) -> None:
    content = {"model": weights_of(encoder) | decoder_weights(), "epoch": 3}
    conversion = converted(content)
    assert conversion.source_format == "MAE, encoder and decoder"
    assert len(conversion.heads) == len(decoder_weights())
    assert torch.equal(conversion.heads["decoder.predict.weight"], content["model"]["decoder_pred.weight"])
    assert torch.equal(load(content).vit.norm.weight, encoder.norm.weight)


def test_fine_tuned_weights_norm_behind_the_pooling(timm_vit, images, converted, load) -> None:
    theirs = timm_vit(global_pool="avg")
    conversion = converted({"model": theirs.state_dict()})
    assert conversion.source_format == "MAE, fine-tuned"
    assert conversion.left_out == dict.fromkeys(["head.weight", "head.bias"], "a classifier of 5 classes")
    expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(load({"model": theirs.state_dict()}).forward_pooled(images), expected)


@pytest.mark.parametrize(("width", "num_heads"), [(128, 2), (768, 12), (1024, 16), (1280, 16)])
def test_heads_are_those_of_the_published_widths(converted, width, num_heads) -> None:
    shapes = {"cls_token": (1, 1, width), "patch_embed.proj.weight": (width, 3, 8, 8)}
    shapes |= {"blocks.0.norm1.weight": (width,), "blocks.0.mlp.fc1.weight": (4 * width, width)}
    weights = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    conversion = converted({"model": weights | {"pos_embed": sincos_positions(width, (4, 4))}})
    assert conversion.settings["num_heads"] == num_heads
    assert "num_heads" in conversion.assumed


def test_heads_of_an_unusual_width_must_be_said(timm_vit, load, require_loads_as) -> None:
    theirs = timm_vit(embed_dim=24, num_heads=3)
    with pytest.raises(
        ValueError, match="a width of 24 not being a multiple of the default 64 channels a head; say num_heads"
    ):
        load(theirs.state_dict())
    require_loads_as(theirs.state_dict(), lambda images: theirs.forward_features(images)[:, 1:], num_heads=3)
