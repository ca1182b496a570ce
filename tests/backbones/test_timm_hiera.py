import re

import pytest
import timm
import torch
from torch import Tensor

from unmask.backbones.timm_hiera import HieraSettings, TimmHiera

ABSWIN = {"name": "hiera_small_abswin_256", "image_size": 64, "patch_size": 4, "depths": (1, 1, 1, 1), "embed_dim": 8}


@pytest.mark.parametrize(
    "changes", [{}, {"pool_last_stage": True}, {"image_size": (16, 32)}, ABSWIN], ids=["", "pooled", "oblong", "abswin"]
)
def test_features_equal_timms_own_bitwise(make_hiera, randomize, changes) -> None:
    backbone = randomize(make_hiera(**changes))
    images = torch.randn(2, 3, *backbone.image_size)
    expected = backbone.hiera.forward_intermediates(images, intermediates_only=True)
    computed = backbone.forward_features(images)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(computed[:-1], expected[:-1], strict=True))
    assert torch.equal(computed[-1].permute(0, 2, 3, 1), backbone.hiera.head.norm(expected[-1].permute(0, 2, 3, 1)))
    assert torch.equal(backbone.forward_pooled(images), backbone.hiera(images))
    assert [(m.shape[1], images.shape[3] // m.shape[3]) for m in computed] == [tuple(s) for s in backbone.stages]


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_published_sizes_are_timms(size) -> None:
    with torch.device("meta"):
        ours = TimmHiera(name=f"hiera_{size}_224", image_size=224, pool_last_stage=True)
        theirs = timm.create_model(f"hiera_{size}_224", num_classes=0)
    assert str(ours.hiera) == str(theirs)
    assert [block.attn.use_mask_unit_attn for block in ours.hiera.blocks] == [
        block.attn.use_mask_unit_attn for block in theirs.blocks
    ]
    assert ours.hiera.reroll.schedule == theirs.reroll.schedule
    assert ours.mask_unit_size == 32


def keep(backbone: TimmHiera, visible: Tensor) -> Tensor:
    """timm's mask, in which True is kept."""
    num_units = backbone.hiera.mask_spatial_shape[0] * backbone.hiera.mask_spatial_shape[1]
    return torch.zeros(len(visible), num_units, dtype=torch.bool).scatter_(1, visible, True)


@pytest.mark.parametrize("changes", [{}, {"pool_last_stage": True}, {"image_size": (16, 32)}])
def test_visible_units_are_encoded_as_by_timm_under_the_same_mask(make_hiera, randomize, changes) -> None:
    backbone = randomize(make_hiera(**changes))
    images, visible = torch.randn(2, 3, *backbone.image_size), torch.tensor([[0, 3, 6], [1, 2, 7]])
    _, expected = backbone.hiera.forward_features(images, mask=keep(backbone, visible), return_intermediates=True)
    seen: list[Tensor] = []

    def look(maps):
        seen.extend(maps)
        return maps[-1]

    encoded = backbone.forward_visible(images, visible, look)
    torch.testing.assert_close(encoded, backbone.hiera.head.norm(expected[-1].flatten(1, 3)), rtol=0, atol=1e-5)
    assert torch.equal(backbone.forward_visible(images, visible), encoded)
    for ours, theirs in zip(seen, [*expected[: backbone.num_fused_stages], expected[-1]], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_units_come_in_the_order_they_are_asked_for(make_hiera, randomize) -> None:
    backbone = randomize(make_hiera())
    images, visible, order = torch.randn(1, 3, 32, 32), torch.tensor([[2, 5, 11, 14]]), torch.tensor([3, 0, 2, 1])
    straight = backbone.forward_visible(images, visible).unflatten(1, (4, 4))
    shuffled = backbone.forward_visible(images, visible[:, order]).unflatten(1, (4, 4))
    torch.testing.assert_close(shuffled, straight[:, order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_each_patch_lies_where_its_pixels_do(make_hiera, stage) -> None:
    """Blocks that change nothing but the width leave the number that is written on each patch in its place."""
    backbone = make_hiera(depths=(1, 1, 1)).eval()
    embed = backbone.hiera.patch_embed.proj
    with torch.no_grad():
        embed.weight.zero_()
        embed.weight[:, 0, 1, 1] = 1.0  # the pixel in the middle of the kernel
        embed.bias.zero_()
        backbone.hiera.pos_embed.zero_()
        for block in backbone.hiera.blocks:
            block.attn.proj.weight.zero_()
            block.mlp.fc2.weight.zero_()
            block.attn.proj.bias.zero_()
            block.mlp.fc2.bias.zero_()
            if block.do_expand:
                block.norm1 = torch.nn.Identity()
                block.proj.weight.copy_(torch.eye(block.dim).repeat(2, 1))
                block.proj.bias.zero_()
    stride = backbone.stages[stage].stride
    cells = (32 // stride) ** 2
    numbers = torch.arange(1.0, cells + 1).view(1, 1, 32 // stride, -1)
    images = numbers.repeat_interleave(stride, 2).repeat_interleave(stride, 3).expand(1, 3, -1, -1)
    captured: list[Tensor] = []
    backbone.forward_features(images, lambda at, tokens: captured.append(tokens) or tokens)
    assert torch.equal(captured[stage + 1][..., 0], numbers[:, 0])

    visible = torch.tensor([[1, 6, 15]])
    maps: list[Tensor] = []
    backbone.forward_visible(images, visible, lambda stages: maps.extend(stages) or stages[-1])
    side = 8 // stride  # of a unit
    for place, unit in enumerate(visible[0].tolist()):
        row, col = side * (unit // 4), side * (unit % 4)
        read = maps[min(stage, 1)][0, place, ..., 0]
        assert torch.equal(read, numbers[0, 0, row : row + side, col : col + side])


def test_masked_pixels_reach_neither_features_nor_gradients(make_hiera, randomize) -> None:
    backbone = randomize(make_hiera())
    visible = torch.tensor([[0, 1, 5, 10]])  # with masked neighbors on all sides
    images = torch.randn(1, 3, 32, 32)
    is_seen = keep(backbone, visible).view(1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    found = []
    for content in (images, torch.where(is_seen, images, 5.0 * torch.randn_like(images))):
        filled = content.clone().requires_grad_()
        encoded = backbone.forward_visible(filled, visible)
        backbone.zero_grad()
        encoded.square().sum().backward()
        found.append([encoded.detach(), filled.grad, *(p.grad for p in backbone.parameters() if p.grad is not None)])
        assert torch.equal(filled.grad.abs().sum(dim=1, keepdim=True) > 0, is_seen)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_blocks_see_the_visible_units_alone(make_hiera) -> None:
    backbone, lengths = make_hiera(), []
    for block in backbone.blocks:
        block.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    backbone.forward_visible(torch.randn(2, 3, 32, 32), torch.tensor([[0, 3, 9], [1, 2, 15]]))
    assert lengths == [3 * 16, 3 * 16, 3 * 4, 3 * 4]


@pytest.mark.parametrize("edited", [0, 1, 2])
def test_what_an_edit_returns_is_what_enters_the_stage(make_hiera, randomize, edited) -> None:
    backbone = randomize(make_hiera())
    images, entering = torch.randn(1, 3, 32, 32), {}
    plain = backbone.forward_features(images, entering.setdefault)
    assert list(entering) == [0, 1, 2, 3]
    assert torch.equal(entering[0].flatten(1, 2), backbone.hiera.patch_embed(images))
    assert torch.equal(entering[2].permute(0, 3, 1, 2), plain[1])
    assert torch.equal(backbone.hiera.head.norm(entering[3]).permute(0, 3, 1, 2), plain[2])
    assert all(
        torch.equal(one, other) for one, other in zip(plain, backbone.forward_features(images), strict=True)
    )  # tokens found their way back

    changed = backbone.forward_features(images, lambda stage, tokens: tokens * 0 if stage == edited else tokens)
    blank = backbone.forward_features(images + 1, lambda stage, tokens: tokens * 0 if stage == edited else tokens)
    for stage in range(3):
        assert torch.equal(changed[stage], plain[stage]) == (stage < edited)
        assert torch.equal(changed[stage], blank[stage]) == (stage >= edited)


def test_layers_are_the_stages_and_the_last_is_what_evaluation_reads(make_hiera, randomize) -> None:
    backbone = randomize(make_hiera())
    images = torch.randn(2, 3, 32, 32)
    layers, maps = list(backbone.forward_layers(images)), backbone.forward_features(images)
    assert backbone.layer_names == ("stage 1", "stage 2", "stage 3")
    for pooled, feature_map in zip(layers[:-1], maps[:-1], strict=True):
        torch.testing.assert_close(pooled["mean"], feature_map.mean(dim=(2, 3)))
        torch.testing.assert_close(pooled["max"], feature_map.amax(dim=(2, 3)))
    torch.testing.assert_close(layers[-1]["mean"], backbone.forward_pooled(images))
    with torch.no_grad():
        largest = [m.amax(dim=(1, 2)) for m in backbone._stage_maps(images, None)][-1]
    torch.testing.assert_close(layers[-1]["max"], backbone.hiera.head.norm(largest))


def test_timm_builds_the_same_network_from_its_description(make_hiera, randomize) -> None:
    backbone = randomize(make_hiera(pool_last_stage=True))
    spec = backbone.to_timm()
    theirs = timm.create_model(spec.name, num_classes=3, **spec.arguments)
    names = {name for name in theirs.state_dict() if name not in spec.state_dict}
    assert names == {f"{spec.classifier}.weight", f"{spec.classifier}.bias"}
    theirs.load_state_dict(spec.state_dict, strict=False)
    images = torch.randn(1, 3, 32, 32)
    pooled = theirs.eval().forward_head(theirs.forward_features(images), pre_logits=True)
    assert torch.equal(pooled, backbone.eval().forward_pooled(images))


def test_fine_tuning_pools_in_the_last_stage_and_begins_with_a_fresh_norm(make_hiera, randomize) -> None:
    backbone = randomize(make_hiera())
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    backbone.prepare_for_finetuning(drop_path_rate=0.3)
    after = backbone.state_dict()
    assert [stage.stride for stage in backbone.stages] == [2, 4, 8]
    assert {name for name, weight in before.items() if not torch.equal(weight, after[name])} == {
        "hiera.head.norm.weight",
        "hiera.head.norm.bias",
    }
    assert not backbone.training
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.blocks] == pytest.approx(
        [0, 0.1, 0.2, 0.3]
    )
    settings = dict(backbone.settings)
    assert settings.pop("kind") == "TimmHiera"
    rebuilt = TimmHiera(**settings)
    rebuilt.load_state_dict(after)
    assert str(rebuilt) == str(backbone)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(rebuilt.eval().forward_pooled(images), backbone.eval().forward_pooled(images))


def test_layer_ids_count_blocks_through_all_stages(make_hiera) -> None:
    backbone = make_hiera(**ABSWIN)
    ids = {
        "hiera.patch_embed.proj.weight": 0,
        "hiera.pos_embed": 0,
        "hiera.pos_embed_win": 0,
        "hiera.blocks.0.norm1.weight": 1,
        "hiera.blocks.3.attn.qkv.weight": 4,
        "hiera.head.norm.weight": 5,
    }
    names = dict(backbone.named_parameters())
    assert {name: backbone.layer_id(name) for name in ids} == ids
    assert ids.keys() <= names.keys()
    assert {backbone.layer_id(name) for name in names} == set(range(backbone.num_blocks + 2))


def test_as_many_tokens_are_taken_as_networks_have() -> None:
    most = {"name": "hiera_tiny_224", "patch_size": 4}
    assert HieraSettings(image_size=4096, **most).size == (4096, 4096)  # 2^20 tokens
    with pytest.raises(ValueError, match="an image of 1032 x 1024 patches is too large for any network"):
        HieraSettings(image_size=(4128, 4096), **most)


@pytest.mark.parametrize("image_size", [36, (32, 20)])
def test_the_size_named_for_an_image_that_is_not_whole_units_can_be_built(make_hiera, image_size) -> None:
    with pytest.raises(ValueError, match=r"not whole mask units of 8 px \(4 tokens of 2 px a side") as error:
        make_hiera(image_size=image_size)
    advice = re.search(r"use (\d+)x(\d+) px images", str(error.value))
    make_hiera(image_size=(int(advice[1]), int(advice[2])))


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"depths": (2,)}, r"model.depths has 1 stage\(s\); a Hiera has 2 to 8"),
        ({"num_heads": 3}, "model.embed_dim=8 does not split into model.num_heads=3"),
        ({"name": "swin_tiny_patch4_window7_224"}, "of another family than this backbone adapts; nearest: hiera"),
        ({"name": "hiera_tiny"}, "nearest: .*hiera_tiny_224"),
        ({"image_size": 2**16}, "too large for any network"),
    ],
)
def test_settings_of_no_hiera_are_refused(make_hiera, changes, refusal) -> None:
    with pytest.raises(ValueError, match=refusal):
        make_hiera(**changes)
