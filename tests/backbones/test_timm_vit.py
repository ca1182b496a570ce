import pytest
import torch
from torch import nn

from unmask.backbones.timm_vit import TimmViT
from unmask.patches import PatchMask
from unmask.positions import sincos_positions, sinusoid_positions

SHAPES = [{"image_size": 32}, {"image_size": (24, 40)}, {"image_size": (24, 40), "patch_size": [8, 10]}]


def all_patches(backbone, batch: int):
    rows, cols = backbone.grid
    return torch.arange(rows * cols).expand(batch, -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_feature_maps_equal_timms_own_bitwise(make_vit, randomize, shape, positions) -> None:
    backbone = randomize(make_vit(positions=positions, num_stages=2, **shape))
    images = torch.randn(2, 3, *backbone.image_size)
    first, last = backbone.forward_features(images)
    expected = backbone.vit.forward_intermediates(images, indices=[1, 3], norm=False, intermediates_only=True)
    assert torch.equal(first, expected[0])
    tokens = backbone.vit.forward_features(images)[:, 1:]
    assert torch.equal(last.flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize("shape", SHAPES)
def test_visible_path_with_every_patch_equals_timms_forward_bitwise(make_vit, randomize, shape) -> None:
    backbone = randomize(make_vit(**shape))
    images = torch.randn(2, 3, *backbone.image_size)
    encoded = backbone.forward_visible(images, all_patches(backbone, 2))
    assert torch.equal(encoded, backbone.vit.forward_features(images))


def test_visible_path_equals_dropping_tokens_after_embedding_all(make_vit, randomize) -> None:
    backbone = randomize(make_vit(image_size=(24, 40)))
    images = torch.randn(2, 3, 24, 40)
    visible = torch.tensor([[0, 4, 5, 13], [2, 6, 7, 14]])
    tokens = backbone.vit._pos_embed(backbone.vit.patch_embed(images))
    kept = torch.stack([tokens[row, torch.cat([torch.tensor([0]), visible[row] + 1])] for row in range(2)])
    expected = backbone.vit.norm(backbone.vit.blocks(kept))
    torch.testing.assert_close(backbone.forward_visible(images, visible), expected, rtol=1e-5, atol=1e-5)


def test_order_of_the_visible_patches_only_reorders_the_result(make_vit, randomize) -> None:
    backbone = randomize(make_vit())
    images = torch.randn(1, 3, 32, 32)
    visible = torch.tensor([[1, 6, 11, 12]])
    order = torch.tensor([2, 0, 3, 1])
    straight = backbone.forward_visible(images, visible)
    shuffled = backbone.forward_visible(images, visible[:, order])
    torch.testing.assert_close(shuffled[:, 1:], straight[:, 1:][:, order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shuffled[:, 0], straight[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch_size", [8, (16, 4)])
def test_visible_path_never_reads_masked_pixels(make_vit, randomize, patch_size) -> None:
    backbone = randomize(make_vit(patch_size=patch_size))
    mask = PatchMask(torch.rand(2, 16).argsort(dim=1).view(2, *backbone.grid) < 12, patch_size)
    images = torch.randn(2, 3, 32, 32)
    spoilt = images.masked_fill(mask.at_pixels(), float("nan"))
    visible = mask.visible_indices()
    assert torch.equal(backbone.forward_visible(images, visible), backbone.forward_visible(spoilt, visible))


def test_visible_path_computes_the_class_token_and_the_visible_patches_only(make_vit) -> None:
    backbone = make_vit()
    lengths = []
    for block in backbone.vit.blocks:
        block.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    backbone.forward_visible(torch.randn(2, 3, 32, 32), torch.tensor([[0, 3, 9], [1, 2, 15]]))
    assert lengths == [1 + 3] * 4


def test_edit_at_the_first_stage_comes_before_positions(make_vit, randomize) -> None:
    backbone = randomize(make_vit(image_size=(24, 40)))
    images = torch.randn(2, 3, 24, 40)
    seen = {}

    def record(stage, tokens):
        seen[stage] = tokens
        return tokens

    maps = backbone.forward_features(images, record)
    assert torch.equal(seen[0].flatten(1, 2), backbone.vit.patch_embed(images))
    for stage in (1, 2, 3):
        assert torch.equal(seen[stage].permute(0, 3, 1, 2), maps[stage - 1])


def test_edit_sees_the_last_output_before_the_final_norm(make_vit, randomize) -> None:
    backbone = randomize(make_vit())
    seen = {}

    def record(stage, tokens):
        seen[stage] = tokens
        return tokens

    maps = backbone.forward_features(torch.randn(2, 3, 32, 32), record)
    last = len(backbone.stages)
    assert list(seen) == list(range(last + 1))
    torch.testing.assert_close(maps[-1].permute(0, 2, 3, 1), backbone.vit.norm(seen[last]))


@pytest.mark.parametrize("edited", [0, 1, 3])
def test_what_an_edit_returns_is_what_enters_the_stage(make_vit, randomize, edited) -> None:
    backbone = randomize(make_vit())
    images = torch.randn(1, 3, 32, 32)
    plain = backbone.forward_features(images)
    changed = backbone.forward_features(images, lambda stage, tokens: tokens + 1 if stage == edited else tokens)
    for stage in range(4):
        assert torch.equal(changed[stage], plain[stage]) == (stage < edited)


def test_pooling_leaves_the_class_token_out(make_vit, randomize) -> None:
    backbone = randomize(make_vit())
    images = torch.randn(2, 3, 32, 32)
    tokens = backbone.vit.forward_features(images)[:, 1:]
    torch.testing.assert_close(backbone.forward_pooled(images), tokens.mean(dim=1))


def test_fine_tuning_pools_before_a_fresh_norm_and_frees_the_positions(make_vit, randomize) -> None:
    backbone = randomize(make_vit())
    images = torch.randn(2, 3, 32, 32)
    last = backbone.vit.forward_intermediates(images, indices=[3], intermediates_only=True)[0]
    backbone.prepare_for_finetuning(drop_path_rate=0.0)
    expected = nn.functional.layer_norm(last.mean(dim=(2, 3)), (24,), eps=1e-6)
    torch.testing.assert_close(backbone.forward_pooled(images), expected, rtol=1e-4, atol=1e-5)
    assert backbone.vit.pos_embed.requires_grad
    assert backbone.settings["norm_after_pooling"]


def test_sincos_positions_are_fixed_and_learned_ones_are_not(make_vit) -> None:
    line = make_vit(positions="sinusoid").vit.pos_embed
    assert torch.equal(line, sinusoid_positions(24, 1 + 16))
    assert not line.requires_grad
    fixed, learned = make_vit().vit.pos_embed, make_vit(positions="learned").vit.pos_embed
    assert torch.equal(fixed, sincos_positions(24, (4, 4)))
    assert not fixed.requires_grad
    assert learned.requires_grad


def test_initialization_is_maes(make_vit, randomize) -> None:
    backbone = randomize(make_vit(embed_dim=192))
    positions = backbone.vit.pos_embed.clone()
    backbone.initialize_as_mae()
    for name, parameter in backbone.named_parameters():
        if name.endswith("norm1.weight"):
            assert (parameter == 1).all()
        elif name.endswith(("qkv.bias", "fc1.bias", "norm1.bias")):
            assert (parameter == 0).all()
        elif name.endswith(("qkv.weight", "fc2.weight", "patch_embed.proj.weight")):
            bound = (6 / sum(parameter.flatten(1).shape)) ** 0.5  # Xavier's uniform range
            assert 0.99 * bound < parameter.abs().max() <= bound
    deviation = backbone.vit.cls_token.std().item()
    assert abs(deviation - 0.02) < 5 * 0.02 / (2 * 192) ** 0.5
    assert torch.equal(backbone.vit.pos_embed, positions)


def test_layer_ids_number_the_blocks_between_stem_and_norm(make_vit) -> None:
    backbone = make_vit()
    ids = {
        "vit.cls_token": 0,
        "vit.pos_embed": 0,
        "vit.patch_embed.proj.weight": 0,
        "vit.blocks.0.attn.qkv.weight": 1,
        "vit.blocks.3.mlp.fc2.bias": 4,
        "vit.norm.weight": 5,
    }
    names = dict(backbone.named_parameters())
    assert ids.keys() <= names.keys()
    assert {name: backbone.layer_id(name) for name in ids} == ids
    assert {backbone.layer_id(name) for name in names} == set(range(6))


@pytest.mark.parametrize(("depth", "num_stages"), [(8, 4), (6, 3), (2, 2), (5, 1)])
def test_stages_are_at_most_four_equal_groups_of_blocks(make_vit, depth, num_stages) -> None:
    backbone = make_vit(depth=depth)
    assert len(backbone.stages) == len(backbone.forward_features(torch.zeros(1, 3, 32, 32))) == num_stages


def test_settings_rebuild_the_same_network(make_vit, randomize) -> None:
    changes = {"positions": "learned", "num_stages": 2, "drop_path_rate": 0.2, "mlp_ratio": 2.0, "norm_eps": 0.01}
    backbone = make_vit(image_size=(24, 40), **changes)
    backbone.prepare_for_finetuning(drop_path_rate=0.0)
    randomize(backbone)
    settings = dict(backbone.settings)
    assert settings.pop("kind") == "TimmViT"
    rebuilt = TimmViT(**settings)
    rebuilt.load_state_dict(backbone.state_dict())
    assert str(rebuilt) == str(backbone.train())
    assert {norm.eps for norm in rebuilt.modules() if isinstance(norm, nn.LayerNorm)} == {0.01}
    assert rebuilt.vit.blocks[0].mlp.fc1.out_features == 2 * 24
    assert rebuilt.stages == backbone.stages
    images = torch.randn(1, 3, 24, 40)
    assert torch.equal(rebuilt.eval().forward_pooled(images), backbone.eval().forward_pooled(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 30}, "use 32x32 px images"),
        ({"depth": 3, "num_stages": 4}, "3 blocks are not 4 equal stages; change num_stages or depth"),
        ({"name": "vit_tinny_patch16_224"}, r"no model 'vit_tinny_patch16_224'; nearest: .*vit_tiny_patch16_224"),
        ({"embed_dim": 42}, "divisible by 4, got 42"),
    ],
)
def test_settings_that_do_not_fit_say_what_does(make_vit, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_vit(**changes)


def test_what_timm_cannot_say_is_refused(make_vit) -> None:
    with pytest.raises(ValueError, match=r"timm's ViT adds 1e-06 to variances, this one norm_eps=1e-05"):
        make_vit(norm_eps=1e-5).to_timm()


def test_oblong_patches_come_back_from_the_settings(make_vit) -> None:
    settings = make_vit(patch_size=[16, 4]).settings
    assert settings["patch_size"] == [16, 4]
    again = TimmViT(**{name: value for name, value in settings.items() if name != "kind"})
    assert again.patch_size == again.stages[0].stride == (16, 4)
    assert again.grid == (2, 8)


@pytest.mark.parametrize("eps", [-1.0, 1e308, float("nan")])
def test_what_norms_add_to_variances_is_a_small_number(make_vit, eps: float) -> None:
    with pytest.raises(ValueError, match=r"model.norm_eps must lie in \[0, 1\], got"):
        make_vit(norm_eps=eps)
