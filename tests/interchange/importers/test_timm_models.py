import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from unmask.runtime.checkpoint import load_backbone


def test_a_vit_is_loaded_bitwise(timm_vit, images, load, tmp_path: Path) -> None:
    theirs = timm_vit()
    expected = theirs.forward_features(images)[:, 1:]
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    for backbone in (load(theirs.state_dict()), load_backbone(tmp_path / "model.safetensors")):
        assert torch.equal(backbone.forward_features(images)[-1].flatten(2).transpose(1, 2), expected)
        assert backbone.settings["positions"] == "learned"
        assert not backbone.training


def test_a_vit_that_pools_before_its_norm_does_so_here(timm_vit, images, load) -> None:
    theirs = timm_vit(global_pool="avg", class_token=True)
    assert "fc_norm.weight" in theirs.state_dict()
    torch.testing.assert_close(
        load(theirs.state_dict()).forward_pooled(images), theirs.forward_head(theirs.forward_features(images), True)
    )


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_a_swin_is_loaded_bitwise(timm_swin, images, load, name) -> None:
    theirs = timm_swin(name)
    sizes = {"image_size": 32, "window_size": 4} if name.startswith("swinv2") else {}
    backbone = load(theirs.state_dict(), **sizes)
    assert torch.equal(backbone.forward_features(images)[-1].permute(0, 2, 3, 1), theirs.forward_features(images))
    assert (backbone.settings["image_size"], backbone.settings["window_size"]) == (32, 4)


def test_swin_tells_its_image_by_a_stage_smaller_than_the_window(timm_swin, load) -> None:
    theirs = timm_swin(img_size=48, window_size=6, depths=(1, 1, 1), num_heads=(1, 2, 3))  # grids 12, 6, 3
    assert load(theirs.state_dict()).image_size == (48, 48)


def test_swin_v2_is_taken_as_published_where_its_weights_tell_nothing(timm_swin, converted) -> None:
    conversion = converted(timm_swin("swinv2_tiny_window8_256", img_size=256, window_size=8).state_dict())
    assert (conversion.settings["image_size"], conversion.settings["window_size"]) == (256, 8)
    assert conversion.assumed.keys() == {"image_size", "window_size"}


def test_a_fine_tuned_beit_is_loaded(timm_beit, images, load) -> None:
    theirs = timm_beit()
    backbone = load(theirs.state_dict())
    expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone.forward_pooled(images), expected, rtol=0, atol=1e-5)
    assert backbone.settings["relative_bias"] == "per_block"


def write_folder(folder: Path, model, architecture: str, arguments: dict, prefix: str = "") -> Path:
    folder.mkdir()
    save_file({f"{prefix}{name}": weight for name, weight in model.state_dict().items()}, folder / "model.safetensors")
    statistics = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    described = {"architecture": architecture, "model_args": arguments, "pretrained_cfg": statistics, "num_classes": 5}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("prefix", ["", "timm_model."])  # timm's own, transformers' wrapper
def test_a_folder_tells_heads_and_statistics(timm_vit, images, require_same_features, tmp_path, prefix) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 8}
    theirs = timm_vit(num_heads=8)
    folder = write_folder(tmp_path / "model", theirs, "vit_tiny_patch16_224", sizes, prefix)
    backbone = load_backbone(folder)
    require_same_features(backbone, theirs.forward_features(images)[:, 1:])
    assert (backbone.pixel_mean, backbone.pixel_std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def test_a_header_may_tell_what_a_folder_does(timm_vit, images, require_same_features, tmp_path) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 8}
    theirs = timm_vit(num_heads=8)
    described = json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": sizes})
    save_file(theirs.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt", "timm": described})
    require_same_features(load_backbone(tmp_path / "model.safetensors"), theirs.forward_features(images)[:, 1:])


def test_a_folder_tells_the_window_of_a_swin_v2(timm_swin, images, require_same_features, tmp_path) -> None:
    sizes = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 1), "num_heads": (2, 3)}
    theirs = timm_swin("swinv2_tiny_window8_256")
    backbone = load_backbone(write_folder(tmp_path / "model", theirs, "swinv2_tiny_window8_256", sizes))
    require_same_features(backbone, theirs.forward_features(images))


def test_a_model_this_timm_lacks_is_named(timm_vit, tmp_path) -> None:
    folder = write_folder(tmp_path / "model", timm_vit(), "vit_of_tomorrow", {})
    with pytest.raises(
        ValueError, match=r"config.json names 'vit_of_tomorrow', which this version of timm does not have"
    ):
        load_backbone(folder)


def test_weights_a_plain_vit_has_no_place_for_are_refused(timm_vit, load) -> None:
    theirs = timm_vit(init_values=0.1)  # DINOv2's layer scale, without which features would be others
    with pytest.raises(ValueError, match=r"holds 4 weights unknown to this backbone \(vit.blocks.0.ls1.gamma"):
        load(theirs.state_dict())


def test_other_tokens_than_one_class_token_are_refused(timm_vit, load) -> None:
    with pytest.raises(ValueError, match="18 positions are not those of one class token and a square of patches"):
        load(timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, reg_tokens=1).state_dict())


HIERA = {"img_size": 32, "stages": (1, 1, 1, 1), "embed_dim": 96}


def test_a_hiera_is_loaded_as_it_is_published(randomize, images, load, require_same_features) -> None:
    theirs = randomize(timm.create_model("hiera_tiny_224", num_classes=5, **HIERA))
    weights = theirs.state_dict()
    tokens = theirs.forward_features(images)
    backbone = load(weights)
    require_same_features(backbone, theirs.head.norm(tokens))
    torch.testing.assert_close(backbone.forward_pooled(images), theirs.forward_head(tokens, pre_logits=True))
    pretrained = {
        name.replace("head.norm.", "encoder_norm."): weights[name] for name in weights if "head.fc" not in name
    }
    require_same_features(load(pretrained), theirs.head.norm(tokens))  # Meta's name of it
    resized = load(weights, image_size=64).hiera.pos_embed
    expected = torch.nn.functional.interpolate(weights["pos_embed"].mT.unflatten(2, (8, 8)), (16, 16), mode="bicubic")
    torch.testing.assert_close(resized, expected.flatten(2).mT)


def test_a_hiera_with_positions_of_windows_is_loaded(randomize, load, require_same_features) -> None:
    sizes = {"img_size": 64, "embed_dim": 96, "stages": (1, 1, 1, 1)}
    theirs = randomize(timm.create_model("hiera_small_abswin_256", num_classes=0, **sizes))
    images = torch.randn(1, 3, 64, 64)
    backbone = load(theirs.state_dict(), image_size=64)
    torch.testing.assert_close(backbone.forward_pooled(images), theirs(images))


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"mask_unit_attn": [True, True, True, False]}, r"gives mask_unit_attn=.*such a Hiera has \[True, True"),
        ({"q_pool": 1}, "gives q_pool=1, and such a Hiera has 3 here"),
    ],
)
def test_a_hiera_that_is_computed_in_another_way_is_refused(changes, refusal, tmp_path) -> None:
    theirs = timm.create_model("hiera_tiny_224", num_classes=0, **HIERA | changes)
    described = {**HIERA, "stages": [1, 1, 1, 1], **changes}
    with pytest.raises(ValueError, match=refusal):
        load_backbone(write_folder(tmp_path / "model", theirs, "hiera_tiny_224", described))


def test_a_bare_hiera_of_other_stages_is_refused(load) -> None:
    theirs = timm.create_model("hiera_tiny_224", num_classes=0, img_size=32, stages=(1, 1, 1), q_pool=2)
    with pytest.raises(ValueError, match="a Hiera of 3 stages and does not tell in which of them attention stays"):
        load(theirs.state_dict())


def test_a_hiera_of_another_width_does_not_tell_its_heads(load) -> None:
    theirs = timm.create_model("hiera_tiny_224", num_classes=0, **HIERA | {"embed_dim": 32, "num_heads": 2})
    with pytest.raises(ValueError, match="does not tell its number of attention heads"):
        load(theirs.state_dict())
    load(theirs.state_dict(), num_heads=2)
