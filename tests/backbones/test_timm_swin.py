import re

import pytest
import timm
import torch

from unmask.backbones.timm_swin import TimmSwin


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
@pytest.mark.parametrize("image_size", [64, (64, 128)])
def test_feature_maps_equal_timms_own_bitwise(make_swin, randomize, name, image_size) -> None:
    backbone = randomize(make_swin(name=name, image_size=image_size))
    images = torch.randn(2, 3, *backbone.image_size)
    expected = backbone.swin.forward_intermediates(images, norm=True, intermediates_only=True)
    computed = backbone.forward_features(images)
    # timm's `norm=True` normalizes the last map alone: the others have another width.
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(computed, expected, strict=True))
    assert torch.equal(computed[-1], backbone.swin.forward_features(images).permute(0, 3, 1, 2))


def test_pooled_features_are_the_mean_of_the_normalized_last_map(make_swin, randomize) -> None:
    backbone = randomize(make_swin())
    images = torch.randn(2, 3, 64, 64)
    tokens = backbone.swin.forward_features(images)  # b h w c
    torch.testing.assert_close(backbone.forward_pooled(images), tokens.flatten(1, 2).mean(dim=1))


def test_edit_sees_the_tokens_entering_each_stage_after_merging(make_swin, randomize) -> None:
    backbone = randomize(make_swin())
    images = torch.randn(1, 3, 64, 64)
    entering = {}

    def record(stage, tokens):
        entering[stage] = tokens
        return tokens

    maps = backbone.forward_features(images, record)
    assert list(entering) == [0, 1, 2, 3]
    assert torch.equal(entering[0], backbone.swin.patch_embed(images))
    for stage in (1, 2):
        before = maps[stage - 1].permute(0, 2, 3, 1)
        assert torch.equal(entering[stage], backbone.swin.layers[stage].downsample(before))
    assert torch.equal(maps[2].permute(0, 2, 3, 1), backbone.swin.norm(entering[3]))  # the last is not yet normalized


@pytest.mark.parametrize("edited", [0, 1, 2])
def test_what_an_edit_returns_is_what_enters_the_stage(make_swin, randomize, edited) -> None:
    backbone = randomize(make_swin())
    images = torch.randn(1, 3, 64, 64)
    plain = backbone.forward_features(images)
    changed = backbone.forward_features(images, lambda stage, tokens: tokens * 0 if stage == edited else tokens)
    blank = backbone.forward_features(images + 1, lambda stage, tokens: tokens * 0 if stage == edited else tokens)
    for stage in range(3):
        assert torch.equal(changed[stage], plain[stage]) == (stage < edited)
        assert torch.equal(changed[stage], blank[stage]) == (stage >= edited)


def test_stages_tell_the_width_and_stride_of_the_maps(make_swin) -> None:
    backbone = make_swin(embed_dim=12, num_heads=(3, 6, 6))
    maps = backbone.forward_features(torch.randn(1, 3, 64, 64))
    assert [(m.shape[1], 64 // m.shape[2]) for m in maps] == [tuple(stage) for stage in backbone.stages]


def test_settings_rebuild_the_same_network(make_swin) -> None:
    backbone = make_swin(patch_size=2, image_size=32, drop_path_rate=0.2)
    settings = dict(backbone.settings)
    assert settings.pop("kind") == "TimmSwin"
    rebuilt = TimmSwin(**settings)
    rebuilt.load_state_dict(backbone.state_dict())
    assert str(rebuilt) == str(backbone)  # drop path included
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(rebuilt.eval().forward_pooled(images), backbone.eval().forward_pooled(images))


def test_layer_ids_count_a_merging_with_the_block_before_it(make_swin) -> None:
    backbone = make_swin(depths=(2, 1, 3))
    ids = {
        "swin.patch_embed.proj.weight": 0,
        "swin.patch_embed.norm.bias": 0,
        "swin.layers.0.blocks.0.attn.qkv.weight": 1,
        "swin.layers.0.blocks.1.attn.relative_position_bias_table": 2,
        "swin.layers.1.downsample.reduction.weight": 2,
        "swin.layers.1.downsample.norm.weight": 2,
        "swin.layers.1.blocks.0.norm1.weight": 3,
        "swin.layers.2.downsample.reduction.weight": 3,
        "swin.layers.2.blocks.0.mlp.fc1.weight": 4,
        "swin.layers.2.blocks.2.mlp.fc2.bias": 6,
        "swin.norm.weight": 7,
    }
    names = dict(backbone.named_parameters())
    assert ids.keys() <= names.keys()
    assert {name: backbone.layer_id(name) for name in ids} == ids
    assert {backbone.layer_id(name) for name in names} == set(range(backbone.num_blocks + 2))


@pytest.mark.parametrize(
    ("image_size", "patch_size", "window_size"),
    [(200, 4, 7), (192, 4, 7), ((224, 192), 4, 7), (96, 4, 5), (40, 4, 7), (36, 2, 8)],
)
def test_sizes_named_for_an_image_that_does_not_fit_can_be_built(image_size, patch_size, window_size) -> None:
    tiny = {"name": "swin_tiny_patch4_window7_224", "embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    with pytest.raises(ValueError, match="leaves a stage that is not whole windows") as error:
        TimmSwin(**tiny, image_size=image_size, patch_size=patch_size, window_size=window_size)
    advice = re.search(r"use image_size (\d+(?: or \d+)*)(?:; at \S+ window_size (.*) fits)?$", str(error.value))
    assert advice is not None, f"no size is named: {error.value}"
    for side in map(int, advice[1].split(" or ")):
        backbone = TimmSwin(**tiny, image_size=side, patch_size=patch_size, window_size=window_size)
        backbone.forward_features(torch.zeros(1, 3, side, side))
        assert not _is_padded(backbone)
    for window in map(int, advice[2].split(" or ") if advice[2] else ()):
        assert not _is_padded(TimmSwin(**tiny, image_size=image_size, patch_size=patch_size, window_size=window))


def _is_padded(backbone) -> bool:
    blocks = [block for stage in backbone.swin.layers for block in stage.blocks]
    return any(
        side % window
        for block in blocks
        for side, window in zip(block.input_resolution, block.window_size, strict=True)
    )


@pytest.mark.parametrize("changes", [{"image_size": 48}, {"name": "swinv2_tiny_window8_256"}])
def test_padding_is_refused_where_programs_differ(make_swin, changes) -> None:
    """Grids 24, 12 and 6 in windows of 12 pass; one of 3 would be shifted before the padding or behind it."""
    padded = {"image_size": 96, "window_size": 12, "always_partition": True}
    make_swin(**padded)
    with pytest.raises(ValueError, match="whole windows or half a window of 12 tokens a side, and this is"):
        make_swin(**padded | changes)


def test_timm_builds_a_padded_swin_from_what_it_is_told(make_swin, randomize) -> None:
    ours = randomize(make_swin(window_size=8, always_partition=True))
    told = ours.to_timm()
    theirs = timm.create_model(told.name, num_classes=0, **told.arguments)
    theirs.load_state_dict(told.state_dict)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(theirs.eval()(images), ours.forward_pooled(images), rtol=0, atol=1e-5)


def test_near_names_are_suggested_for_a_misspelled_one() -> None:
    with pytest.raises(ValueError, match=r"no model 'swin_tiny_window7'; nearest: .*swin_tiny_patch4_window7_224"):
        TimmSwin(name="swin_tiny_window7", image_size=224)


def test_offsets_count_in_the_windows_of_the_pretraining(make_swin) -> None:
    v2 = {"name": "swinv2_tiny_window8_256", "mlp_ratio": 2.0}
    pretrained = make_swin(**v2)
    wider = make_swin(**v2, image_size=128, window_size=8, pretrained_window_sizes=(4, 4, 4))
    settings = dict(wider.settings)
    del settings["kind"]
    for backbone in (wider, TimmSwin(**settings)):
        before, after = (each.swin.layers[0].blocks[0].attn.relative_coords_table for each in (pretrained, backbone))
        assert torch.equal(after[:, 4:-4, 4:-4], before)  # offsets up to 3 of up to 7
        assert backbone.swin.layers[0].blocks[0].mlp.fc1.out_features == 2 * 24


@pytest.mark.parametrize(
    "changes",
    [{"pretrained_window_sizes": (4, 4, 4)}, {"name": "swinv2_tiny_window8_256", "pretrained_window_sizes": [4]}],
)
def test_pretrained_windows_are_for_each_stage_of_a_swin_v2(make_swin, changes) -> None:
    with pytest.raises(ValueError, match="must be one window for each of 3 stages of a Swin V2"):
        make_swin(**changes)


def test_layers_are_the_stages_and_the_last_is_what_evaluation_reads(make_swin, randomize) -> None:
    backbone = randomize(make_swin())
    images = torch.randn(2, 3, 64, 64)
    layers = list(backbone.forward_layers(images))
    maps = backbone.forward_features(images)
    assert backbone.layer_names == ("stage 1", "stage 2", "stage 3")
    for pooled, feature_map in zip(layers, maps, strict=True):
        torch.testing.assert_close(pooled["mean"], feature_map.flatten(2).mean(dim=2))
        assert torch.equal(pooled["max"], feature_map.flatten(2).amax(dim=2))
    assert torch.equal(layers[-1]["mean"], backbone.forward_pooled(images))
