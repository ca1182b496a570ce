import gzip
import json
import logging
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import unmask
from unmask.runtime.checkpoint import load_module


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


WIDTHS, HEADS, WINDOW, SIDE = (8, 16, 32), (1, 2, 4), 8, 64  # grids 16, 8 and 4: two windows, one, half of one
PADDED = "backbone=dict(\n        arch=dict(),\n        img_size=64,\n        pad_small_map=True,\n"


@pytest.fixture
def padded_weights() -> dict[str, torch.Tensor]:
    """Of mmpretrain's Swin of two blocks a stage, whose tables are all of the whole window."""
    shapes = {"patch_embed.projection.weight": (WIDTHS[0], 3, 4, 4), "patch_embed.projection.bias": (WIDTHS[0],)}
    shapes |= {f"{norm}.{part}": (WIDTHS[0],) for norm in ("patch_embed.norm",) for part in ("weight", "bias")}
    shapes |= {"norm3.weight": (WIDTHS[-1],), "norm3.bias": (WIDTHS[-1],)}
    for stage, (width, heads) in enumerate(zip(WIDTHS, HEADS, strict=True)):
        for block in range(2):
            own = {
                "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
                "attn.w_msa.relative_position_bias_table": ((2 * WINDOW - 1) ** 2, heads),
                "attn.w_msa.qkv.weight": (3 * width, width), "attn.w_msa.qkv.bias": (3 * width,),
                "attn.w_msa.proj.weight": (width, width), "attn.w_msa.proj.bias": (width,),
                "ffn.layers.0.0.weight": (4 * width, width), "ffn.layers.0.0.bias": (4 * width,),
                "ffn.layers.1.weight": (width, 4 * width), "ffn.layers.1.bias": (width,),
            }  # fmt: skip
            shapes |= {f"stages.{stage}.blocks.{block}.{name}": shape for name, shape in own.items()}
        if stage < 2:
            shapes |= {f"stages.{stage}.downsample.norm.{part}": (4 * width,) for part in ("weight", "bias")}
            shapes[f"stages.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
    return {f"backbone.{name}": torch.randn(shape) / max(1, shape[-1]) ** 0.5 for name, shape in shapes.items()}


class PaddedSwin:
    """mmpretrain's Swin with `pad_small_map` in plain torch: every pair of tokens is looked at, none is moved."""

    def __init__(self, weights: dict[str, torch.Tensor], *, is_padded: bool = True) -> None:
        self.weights = {name.removeprefix("backbone."): weight for name, weight in weights.items()}
        self.is_padded = is_padded  # else stages of one window are not shifted

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        kernel, bias = (self.weights[f"patch_embed.projection.{part}"] for part in ("weight", "bias"))
        x = self.norm("patch_embed.norm", nn.functional.conv2d(images, kernel, bias, stride=4).permute(0, 2, 3, 1))
        for stage in range(3):
            for block in range(2):
                place = f"stages.{stage}.blocks.{block}"
                shift = WINDOW // 2 if block % 2 and (self.is_padded or x.shape[1] > WINDOW) else 0
                x = x + self.attend(f"{place}.attn.w_msa", self.norm(f"{place}.norm1", x), HEADS[stage], shift)
                hidden = nn.functional.gelu(self.linear(f"{place}.ffn.layers.0.0", self.norm(f"{place}.norm2", x)))
                x = x + self.linear(f"{place}.ffn.layers.1", hidden)
            if stage < 2:
                side = x.shape[1] // 2
                gathered = nn.functional.unfold(x.permute(0, 3, 1, 2), kernel_size=2, stride=2)
                gathered = self.norm(f"stages.{stage}.downsample.norm", gathered.transpose(1, 2))
                reduced = gathered @ self.weights[f"stages.{stage}.downsample.reduction.weight"].T
                x = reduced.unflatten(1, (side, side))
        return self.norm("norm3", x)

    def norm(self, place: str, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], *(self.weights[f"{place}.{p}"] for p in ("weight", "bias")))

    def linear(self, place: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights[f"{place}.weight"].T + self.weights[f"{place}.bias"]

    def attend(self, place: str, x: torch.Tensor, num_heads: int, shift: int) -> torch.Tensor:
        """Pads with zeros, then shifts, as mmpretrain does; a pair attends within a window and a region of the mask."""
        own_side = x.shape[1]
        side = math.ceil(own_side / WINDOW) * WINDOW
        x = nn.functional.pad(x, (0, 0, 0, side - own_side, 0, side - own_side)).flatten(1, 2)
        shifted = (torch.cartesian_prod(torch.arange(side), torch.arange(side)) - shift) % side
        region = torch.bucketize(shifted, torch.tensor([side - WINDOW, side - shift]), right=True) if shift else 0
        group = torch.cat([shifted // WINDOW, shifted * 0 + region], dim=1)
        is_seen = (group[:, None] == group[None]).all(-1)
        offset = (shifted[:, None] - shifted[None] + WINDOW - 1).clamp(0, 2 * WINDOW - 2)
        table = self.weights[f"{place}.relative_position_bias_table"]
        bias = table[offset[..., 0] * (2 * WINDOW - 1) + offset[..., 1]].permute(2, 0, 1)
        q, k, v = self.linear(f"{place}.qkv", x).unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + bias
        attended = scores.masked_fill(~is_seen, -torch.inf).softmax(-1) @ v
        out = self.linear(f"{place}.proj", attended.transpose(1, 2).flatten(2))
        return out.unflatten(1, (side, side))[:, :own_side, :own_side]


@pytest.mark.parametrize("text", [PADDED, PADDED.replace("        pad_small_map=True,\n", "")])
def test_a_padded_swin_computes_what_mmpretrain_does(padded_weights, load, text) -> None:
    """Where the configuration does not say it either, a window larger than the last stage does."""
    backbone = load({"state_dict": padded_weights, "meta": {"cfg": text}})
    assert backbone.image_size == (SIDE, SIDE)
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = PaddedSwin(padded_weights)(images).permute(0, 3, 1, 2)
        difference = (backbone.forward_features(images)[-1] - expected).abs().max()
        assert difference < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("is_padded", [True, False])
def test_a_classifier_reads_the_mean_behind_the_norm(padded_weights, is_padded, tmp_path) -> None:
    """GlobalAveragePooling and LinearClsHead, by the names of a real file; in float64, so that 1e-6 tells."""
    side = SIDE if is_padded else 2 * SIDE  # grids 32, 16 and 8: all of whole windows
    classes = [f"n{number:08}" for number in range(5)]
    head = {"head.fc.weight": torch.randn(5, WIDTHS[-1]), "head.fc.bias": torch.randn(5)}
    blocks = {name.rpartition(".attn.")[0] for name in padded_weights if ".attn." in name}
    indices = {f"{block}.attn.w_msa.relative_position_index": torch.randint(9, (64, 64)) for block in blocks}
    with gzip.open(Path(__file__).parents[2] / "checkpoint_names.json.gz") as opened:
        listed = json.load(opened)["mmpretrain-simmim-swin-base"]["tensors"]
    own = {re.sub(r"\d+", "#", name) for name in {**padded_weights, **indices}}
    assert own == {re.sub(r"\d+", "#", name) for name in listed if "neck" not in name} - {"backbone.mask_token"}

    text = f"backbone=dict(img_size={side}, pad_small_map={is_padded})"
    meta = {"cfg": text, "dataset_meta": {"classes": classes}}
    torch.save({"state_dict": padded_weights | indices | head, "meta": meta}, tmp_path / "classifier.pth")
    module, outputs, _ = load_module(tmp_path / "classifier.pth")
    assert (outputs.num, list(outputs.class_names)) == (5, classes)
    weights = {name: weight.double() for name, weight in (padded_weights | head).items()}
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        network = PaddedSwin(weights, is_padded=is_padded)
        expected = network.linear("head.fc", network(images).mean(dim=(1, 2)))
        torch.testing.assert_close(module.double()(images), expected.float(), rtol=0, atol=1e-6)


def test_an_unpadded_configuration_is_taken_at_its_word(timm_swin, converted) -> None:
    """A window as large as the last stage is shifted with `pad_small_map` alone, which no weight shows."""
    weights = swin_weights(timm_swin())
    padded = {"state_dict": weights, "meta": {"cfg": "backbone=dict(img_size=32, pad_small_map=True)"}}
    plain = {"state_dict": weights, "meta": {"cfg": "backbone=dict(img_size=32)"}}
    assert [converted(content).settings["always_partition"] for content in (padded, plain)] == [True, False]
    assert "always_partition" not in converted(plain).assumed
    without_size = {"state_dict": weights, "meta": {"cfg": "backbone=dict(pad_small_map=True)"}}
    assert converted(without_size).settings["always_partition"]
    assert converted(without_size).assumed == {"image_size": "the last stage being one window"}


def test_what_a_neck_holds_beside_a_known_head_is_listed(timm_swin, converted) -> None:
    content = {"state_dict": swin_weights(timm_swin()) | {"neck.bn.running_mean": torch.zeros(48)}}
    assert converted(content).left_out["neck.bn.running_mean"] == "not part of the backbone"


def test_a_file_without_configuration_says_that_padding_is_not_known(padded_weights, load, caplog) -> None:
    content = {"state_dict": padded_weights}
    with caplog.at_level(logging.INFO, logger="unmask"):
        load(content)
    assert "not stated in the file: always_partition; False is used, the default of mmpretrain's" in caplog.text
    images = torch.randn(1, 3, SIDE, SIDE)
    backbone = load(content, image_size=SIDE, always_partition=True)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.forward_features(images)[-1], PaddedSwin(padded_weights)(images).permute(0, 3, 1, 2)
        )


def test_a_padded_swin_is_not_loaded_into_a_clamped_one(padded_weights, tmp_path) -> None:
    torch.save({"state_dict": padded_weights, "meta": {"cfg": PADDED}}, tmp_path / "padded.pth")
    sizes = ["model=swin_mini", "model.embed_dim=8", "model.depths=[2,2,2]", "model.num_heads=[1,2,4]"]
    sizes += ["image_size=64", "model.window_size=8", "model.patch_size=4"]
    start = ["method=simmim", *sizes, f"method.init_from={tmp_path / 'padded.pth'}"]
    with pytest.raises(ValueError, match=r"pads small stages and keeps their shifts.*set model.always_partition=true"):
        unmask.build_method(start)
    unmask.build_method([*start, "model.always_partition=true"])


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
