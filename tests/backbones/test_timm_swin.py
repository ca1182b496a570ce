import re

import pytest
import timm
import torch
from torch import Tensor

from unmask.backbones.swin_blocks import take_second_grid
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


V2 = {"name": "swinv2_tiny_window8_256"}
GRIDS = {
    "": {},
    "v2": V2,
    "oblong": {"image_size": (64, 128)},
    "v2 oblong": V2 | {"image_size": (64, 128)},
    "a merging that rounds up": {"image_size": 48, "window_size": 3},
    "v2, a merging that rounds up": V2 | {"image_size": 48, "window_size": 3},
    "one stage": {"depths": (2,), "num_heads": (3,)},
}


def visible_units(backbone: TimmSwin, batch: int) -> Tensor:
    """One unit of each 2 x 2, in row-major order."""
    rows, cols = (side // backbone.visible_unit_size for side in backbone.image_size)
    found = []
    for _ in range(batch):
        places = [
            (2 * r + int(torch.randint(2, ()))) * cols + 2 * c + int(torch.randint(2, ()))
            for r in range(rows // 2)
            for c in range(cols // 2)
        ]
        found.append(sorted(places))
    return torch.tensor(found)


def moved_together(backbone: TimmSwin, images: Tensor, visible: Tensor) -> Tensor:
    """The small image, pasted unit by unit."""
    unit, cols = backbone.visible_unit_size, backbone.image_size[1] // backbone.visible_unit_size
    small = torch.full((len(images), 3, images.shape[2] // 2, images.shape[3] // 2), torch.nan)
    for image, units in enumerate(visible.tolist()):
        for row, col in (divmod(each, cols) for each in units):
            pasted = images[image, :, row * unit : (row + 1) * unit, col * unit : (col + 1) * unit]
            r, c = row // 2 * unit, col // 2 * unit
            small[image, :, r : r + unit, c : c + unit] = pasted
    assert not small.isnan().any()
    return small


def of_small_images(backbone: TimmSwin) -> torch.nn.Module:
    """timm's network for the small images with the same weights; tables of positions lose what no window reads."""
    settings = dict(backbone.settings)
    known = {key: settings[key] for key in ("patch_size", "window_size", "embed_dim", "depths", "num_heads")}
    if settings["name"].startswith("swinv2"):
        windows = tuple(stage.blocks[0].window_size[0] for stage in backbone.swin.layers)
        known["pretrained_window_sizes"] = windows
    size = tuple(side // 2 for side in backbone.image_size)
    theirs = timm.create_model(settings["name"], num_classes=0, img_size=size, **known)
    weights = dict(backbone.swin.state_dict())
    for key, weight in backbone.swin.state_dict().items():
        if key.endswith("relative_position_bias_table"):
            attn = key.rpartition(".")[0]
            whole, kept = (network.get_submodule(attn).window_size for network in (backbone.swin, theirs))
            table = weight.unflatten(0, (2 * whole[0] - 1, 2 * whole[1] - 1))
            top, left = whole[0] - kept[0], whole[1] - kept[1]
            weights[key] = table[top : top + 2 * kept[0] - 1, left : left + 2 * kept[1] - 1].flatten(0, 1)
    theirs.load_state_dict(weights)
    return theirs


@pytest.mark.parametrize("changes", GRIDS.values(), ids=GRIDS.keys())
def test_visible_units_are_encoded_as_the_image_that_they_make_together(make_swin, randomize, changes) -> None:
    backbone = randomize(make_swin(**changes)).eval()
    images = torch.randn(2, 3, *backbone.image_size)
    visible = visible_units(backbone, 2)
    seen: list[Tensor] = []

    def look(maps):
        seen.extend(maps)
        factor = backbone.stages[-1].stride // backbone.patch_size
        return maps[-1].repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    encoded = backbone.forward_visible(images, visible, look)
    expected = of_small_images(backbone).eval().forward_features(moved_together(backbone, images, visible))
    torch.testing.assert_close(seen[0][:, 0], expected, rtol=0, atol=1e-5)
    assert torch.equal(backbone.forward_visible(images, visible), encoded)
    cols, stride = backbone.image_size[1] // backbone.patch_size, backbone.stages[-1].stride // backbone.patch_size
    for image, units in enumerate(visible.tolist()):
        for place, (row, col) in enumerate(divmod(unit, cols) for unit in units):
            of_cell = expected[image, row // 2 // stride, col // 2 // stride]
            torch.testing.assert_close(encoded[image, place], of_cell, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, V2], ids=["v1", "v2"])
def test_tokens_of_visible_units_come_in_the_order_they_are_asked_for(make_swin, randomize, changes) -> None:
    backbone = randomize(make_swin(**changes))
    images, visible = torch.randn(1, 3, 64, 64), visible_units(backbone, 1)
    order = torch.randperm(visible.shape[1])
    shuffled = backbone.forward_visible(images, visible[:, order])
    assert torch.equal(shuffled, backbone.forward_visible(images, visible)[:, order])


@pytest.mark.parametrize("changes", [{}, V2], ids=["v1", "v2"])
def test_pixels_of_other_units_reach_neither_tokens_nor_gradients(make_swin, randomize, changes) -> None:
    backbone = randomize(make_swin(**changes))
    visible = visible_units(backbone, 1)
    is_seen = torch.zeros(1, 64, dtype=torch.bool).scatter_(1, visible, True).view(1, 1, 8, 8)
    is_seen = is_seen.repeat_interleave(8, 2).repeat_interleave(8, 3)
    images, found = torch.randn(1, 3, 64, 64), []
    for content in (images, torch.where(is_seen, images, torch.randn_like(images))):
        filled = content.clone().requires_grad_()
        encoded = backbone.forward_visible(filled, visible)
        backbone.zero_grad()
        encoded.square().sum().backward()
        found.append([encoded.detach(), filled.grad, *(p.grad for p in backbone.parameters())])
        assert torch.equal(filled.grad.abs().sum(dim=1, keepdim=True) > 0, is_seen)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("changes", [{}, V2], ids=["v1", "v2"])
def test_blocks_see_a_quarter_of_the_tokens(make_swin, changes) -> None:
    backbone, grids = make_swin(**changes), []
    for block in backbone.blocks:
        block.register_forward_pre_hook(lambda _, inputs: grids.append(tuple(inputs[0].shape[1:3])))
    backbone.forward_visible(torch.randn(2, 3, 64, 64), visible_units(backbone, 2))
    assert grids == [(8, 8), (8, 8), (4, 4), (2, 2)]


def attended_one_by_one(block, tokens: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Attention of timm's block of Swin, token by token: a window ends where the map, or what a shift moved, ends."""
    attn, (rows, cols) = block.attn, tokens.shape[1:3]
    query, key, value = attn.qkv(tokens).unflatten(3, (3, attn.num_heads, -1)).unbind(3)  # b h w heads d
    sides = [2 * side - 1 for side in block.window_size]
    table = attn.relative_position_bias_table.view(*sides, -1)
    padded = [side + -side % of for side, of in zip((rows, cols), window, strict=True)]

    def window_of(place, axis):
        moved = (place - shift[axis]) % padded[axis]
        return moved // window[axis], place < shift[axis], moved % window[axis]

    mixed = torch.zeros_like(tokens).unflatten(3, (attn.num_heads, -1))
    places = [(r, c) for r in range(rows) for c in range(cols)]
    for row, col in places:
        (wr, turned_r, ir), (wc, turned_c, ic) = window_of(row, 0), window_of(col, 1)
        scores, values = [], []
        for r, c in places:
            (vr, other_r, jr), (vc, other_c, jc) = window_of(r, 0), window_of(c, 1)
            if (vr, other_r, vc, other_c) != (wr, turned_r, wc, turned_c):
                continue
            bias = table[ir - jr + block.window_size[0] - 1, ic - jc + block.window_size[1] - 1]
            scores.append((query[:, row, col] * key[:, r, c]).sum(dim=2) * attn.scale + bias)
            values.append(value[:, r, c])
        weights = torch.stack(scores).softmax(dim=0)
        mixed[:, row, col] = (weights[..., None] * torch.stack(values)).sum(dim=0)
    return attn.proj(mixed.flatten(3))


@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [
        ((8, 8), (4, 4), (2, 2)),
        ((6, 10), (4, 4), (2, 2)),  # padded and shifted
        ((5, 5), (4, 4), (2, 2)),
        ((3, 3), (3, 3), (0, 0)),  # smaller than the window
        ((3, 8), (3, 4), (0, 2)),
        ((4, 4), (4, 4), (0, 0)),
    ],
)
def test_a_block_attends_in_windows_of_its_second_grid(make_swin, randomize, grid, window, shift) -> None:
    block = randomize(make_swin()).blocks[1]  # the shifted one
    take_second_grid(block, grid)
    tokens = torch.randn(2, *grid, 24)
    expected = attended_one_by_one(block, tokens, window, shift)
    torch.testing.assert_close(block._attn(tokens), expected, rtol=0, atol=1e-5)


def test_a_second_grid_changes_neither_weights_nor_what_the_first_computes(make_swin, randomize) -> None:
    backbone = randomize(make_swin())
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=0,
        img_size=64,
        window_size=4,
        embed_dim=24,
        depths=(2, 1, 1),
        num_heads=(3, 3, 3),
    )
    assert [*backbone.swin.state_dict()] == [*theirs.state_dict()]
    theirs.load_state_dict(backbone.swin.state_dict())
    images = torch.randn(1, 3, 64, 64)
    backbone.forward_visible(images, visible_units(backbone, 1))
    assert torch.equal(backbone.swin(images), theirs.eval()(images))


def test_branches_of_a_swin_v2_are_open_for_mae(make_swin) -> None:
    backbone = make_swin(**V2)
    assert not any(block.norm1.weight.any() for block in backbone.blocks)
    backbone.initialize_as_mae()
    assert all((block.norm1.weight == 1).all() and (block.norm2.weight == 1).all() for block in backbone.blocks)


@pytest.mark.parametrize("changes", [{}, V2], ids=["v1", "v2"])
def test_more_stages_than_timms_own_are_encoded(make_swin, randomize, changes) -> None:
    backbone = randomize(make_swin(**changes, depths=(1,) * 5, num_heads=(1,) * 5)).eval()
    images, visible = torch.randn(1, 3, 64, 64), visible_units(backbone, 1)
    assert backbone.forward_visible(images, visible).isfinite().all()
    told = backbone.to_timm()
    theirs = timm.create_model(told.name, num_classes=0, **told.arguments)
    theirs.load_state_dict(told.state_dict)
    torch.testing.assert_close(theirs.eval()(images), backbone.forward_pooled(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"depths": (), "num_heads": ()}, "model.depths must list the blocks of each stage"),
        ({"num_heads": (3, 3)}, r"model.num_heads=\[3, 3\] must have one number for each of 3 stages"),
    ],
)
def test_stages_without_blocks_or_heads_are_refused(make_swin, changes, refusal) -> None:
    with pytest.raises(ValueError, match=refusal):
        make_swin(**changes)


def test_a_scale_beyond_the_largest_has_no_infinite_gradient(make_swin) -> None:
    """`exp` of the parameter itself would be infinite, and its gradient no number, where timm's is 0."""
    backbone = make_swin(**V2)
    backbone.initialize_as_mae()
    scales = [block.attn.logit_scale for block in backbone.blocks]
    for scale in scales:
        torch.nn.init.constant_(scale, 95.0)
    backbone.forward_visible(torch.randn(1, 3, 64, 64), visible_units(backbone, 1)).square().sum().backward()
    assert all(torch.equal(scale.grad, torch.zeros_like(scale)) for scale in scales)


def test_padding_is_a_number_in_half_precision(make_swin, randomize) -> None:
    """Keys of padded tokens are 0, and so is the least norm that torch divides by once float16 has rounded it."""
    backbone = randomize(make_swin(**V2, image_size=96, depths=(2, 2), num_heads=(3, 3))).eval()
    assert any(any(block.second_padding) for block in backbone.blocks)
    images, visible = torch.randn(1, 3, 96, 96), visible_units(backbone, 1)
    expected = backbone.forward_visible(images, visible)
    encoded = backbone.half().forward_visible(images.half(), visible)
    torch.testing.assert_close(encoded.float(), expected, rtol=0, atol=0.05)
