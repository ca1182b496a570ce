import re

import pytest
import torch
from torch import nn


def swin_names(name: str) -> str:
    """timm's name of a Swin's weight as mmpretrain's."""
    name = name.replace("patch_embed.proj.", "patch_embed.projection.")
    name = re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"stages.{int(found[1]) - 1}.downsample", name)
    name = re.sub(r"^layers\.", "stages.", name)
    name = name.replace(".attn.", ".attn.w_msa.").replace(".mlp.fc1.", ".ffn.layers.0.0.")
    return re.sub(r"^norm\.", "norm3.", name.replace(".mlp.fc2.", ".ffn.layers.1."))


def unfolded(weight: torch.Tensor) -> torch.Tensor:
    """Moves each input channel of a merging from Microsoft's place to where `nn.Unfold` puts it."""
    places = torch.empty(weight.shape[-1], dtype=torch.int64)
    num_channels = weight.shape[-1] // 4
    for row in range(2):
        for col in range(2):
            for channel in range(num_channels):
                places[channel * 4 + row * 2 + col] = (row + 2 * col) * num_channels + channel
    return weight[..., places]


def swin_weights(swin: nn.Module) -> dict[str, torch.Tensor]:
    weights = {}
    for name, weight in swin.state_dict().items():
        if not name.startswith("head."):
            weights[f"backbone.{swin_names(name)}"] = unfolded(weight) if ".downsample." in name else weight
    return weights


def test_unfolding_gathers_as_the_permutation_says() -> None:
    image = torch.arange(2 * 2 * 3.0).view(1, 2, 2, 3)  # b h w c
    by_unfold = nn.functional.unfold(image.permute(0, 3, 1, 2), kernel_size=2, stride=2).flatten()
    by_token = torch.cat([image[0, 0, 0], image[0, 1, 0], image[0, 0, 1], image[0, 1, 1]])
    assert torch.equal(by_unfold, unfolded(by_token))


def test_a_pretrained_simmim(timm_swin, converted, require_loads_as) -> None:
    theirs, token = timm_swin(depths=(2, 1, 1), num_heads=(2, 3, 4), window_size=4), torch.randn(1, 1, 24)
    head = {"neck.decoder.0.weight": torch.randn(192, 96, 1, 1), "neck.decoder.0.bias": torch.randn(192)}
    content = {"state_dict": swin_weights(theirs) | {"backbone.mask_token": token} | head, "meta": {}}
    conversion = converted(content)
    assert torch.equal(conversion.heads["mask_token"], token.flatten())
    assert torch.equal(conversion.heads["head.project.weight"], head["neck.decoder.0.weight"])
    require_loads_as(content, theirs.forward_features, image_size=32)


def test_its_configuration_tells_the_image_that_padded_windows_hide(timm_swin, converted, load) -> None:
    weights = swin_weights(timm_swin())
    table = "backbone.stages.1.blocks.0.attn.w_msa.relative_position_bias_table"
    weights[table] = torch.randn(49, 3)
    content = {"state_dict": weights, "meta": {"cfg": "backbone=dict(\n        arch='B',\n        img_size=16,\n"}}
    assert converted(content).settings["image_size"] == 16
    backbone = load(content)
    assert backbone.swin.layers[1].blocks[0].attn.relative_position_bias_table.shape == (9, 3)  # a grid of 2


def test_a_classifier_is_left_out(timm_swin, converted) -> None:
    head = {"head.fc.weight": torch.zeros(9, 48), "head.fc.bias": torch.zeros(9)}
    left_out = converted({"state_dict": swin_weights(timm_swin()) | head}).left_out
    assert left_out["head.fc.weight"] == "a classifier of 9 classes"


def vit_names(name: str) -> str:
    name = name.replace("patch_embed.proj.", "patch_embed.projection.").replace("blocks.", "layers.")
    name = re.sub(r"\.norm([12])\.", r".ln\1.", name)
    name = name.replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")
    return re.sub(r"^fc_norm\.", "ln2.", re.sub(r"^norm\.", "ln1.", name))


def vit_weights(vit: nn.Module) -> dict[str, torch.Tensor]:
    return {f"backbone.{vit_names(name)}": w for name, w in vit.state_dict().items() if not name.startswith("head.")}


def test_a_pretrained_mae(timm_vit, converted, require_loads_as) -> None:
    theirs = timm_vit()
    neck = {
        "mask_token": torch.randn(1, 1, 64),
        "decoder_blocks.0.ln1.weight": torch.randn(64),
        "decoder_blocks.0.ffn.layers.0.0.bias": torch.randn(256),
        "ln1.weight": torch.randn(64),
        "decoder_pred.bias": torch.randn(192),
    }
    content = {"state_dict": vit_weights(theirs) | {f"neck.{name}": weight for name, weight in neck.items()}}
    heads = converted(content).heads
    expected = {
        "decoder.mask_token": "mask_token",
        "decoder.blocks.0.norm1.weight": "decoder_blocks.0.ln1.weight",
        "decoder.blocks.0.mlp.fc1.bias": "decoder_blocks.0.ffn.layers.0.0.bias",
        "decoder.norm.weight": "ln1.weight",
        "decoder.predict.bias": "decoder_pred.bias",
    }
    assert heads.keys() == expected.keys()
    assert all(torch.equal(heads[ours], neck[named]) for ours, named in expected.items())
    require_loads_as(content, lambda images: theirs.forward_features(images)[:, 1:])


@pytest.mark.parametrize("is_pooled_first", [False, True])
def test_a_classifying_vit(timm_vit, images, load, is_pooled_first) -> None:
    theirs = timm_vit(global_pool="avg" if is_pooled_first else "token")
    backbone = load({"state_dict": vit_weights(theirs)})
    assert backbone.norm_after_pooling == is_pooled_first
    tokens = theirs.forward_features(images)[:, 1:]
    expected = theirs.fc_norm(tokens.mean(dim=1)) if is_pooled_first else tokens.mean(dim=1)
    torch.testing.assert_close(backbone.forward_pooled(images), expected)
