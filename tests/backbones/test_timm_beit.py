import copy

import pytest
import timm
import torch
from torch import nn

from unmask.backbones.timm_beit import TimmBeit

TABLE = "relative_position_bias_table"


@pytest.mark.parametrize("relative_bias", ["shared", "per_block"])
@pytest.mark.parametrize("image_size", [32, (24, 40)])
def test_feature_maps_equal_timms_own_bitwise(make_beit, randomize, image_size, relative_bias) -> None:
    backbone = randomize(make_beit(image_size=image_size, relative_bias=relative_bias, num_stages=2))
    images = torch.randn(2, 3, *backbone.image_size)
    first, last = backbone.forward_features(images)
    expected = backbone.beit.forward_intermediates(images, indices=[1], norm=False, intermediates_only=True)
    assert torch.equal(first, expected[0])
    tokens = backbone.beit.forward_features(images)[:, 1:]
    assert torch.equal(last.flatten(2).transpose(1, 2), tokens)
    torch.testing.assert_close(backbone.forward_pooled(images), tokens.mean(dim=1))


def test_published_form_has_the_published_parameters() -> None:
    with torch.device("meta"):
        backbone = TimmBeit(name="beit_base_patch16_224", image_size=224)
    shared_table, no_key_bias, scales = (27 * 27 + 3) * 12, 12 * 768, 12 * 2 * 768
    plain_vit, positions = 85_798_656, 197 * 768
    expected = plain_vit - positions + shared_table - no_key_bias + scales
    assert sum(parameter.numel() for parameter in backbone.parameters()) == expected
    assert {norm.eps for norm in backbone.modules() if isinstance(norm, nn.LayerNorm)} == {1e-6}
    assert (backbone.beit.pos_embed, backbone.beit.head.__class__) == (None, nn.Identity)


def test_layer_scale_starts_at_what_is_asked(make_beit) -> None:
    blocks = make_beit(layer_scale=0.3).beit.blocks
    assert all((block.gamma_1 == 0.3).all() and (block.gamma_2 == 0.3).all() for block in blocks)


def test_edits_see_patches_before_the_class_token_joins_them(make_beit, randomize) -> None:
    backbone = randomize(make_beit(image_size=(24, 40)))
    images = torch.randn(2, 3, 24, 40)
    seen = {}

    def record(stage, tokens):
        seen[stage] = tokens
        return tokens

    maps = backbone.forward_features(images, record)
    assert list(seen) == [0, 1, 2, 3, 4]
    assert torch.equal(seen[0].flatten(1, 2), backbone.beit.patch_embed(images))
    for stage in (1, 2, 3):
        assert torch.equal(seen[stage].permute(0, 3, 1, 2), maps[stage - 1])
    torch.testing.assert_close(maps[-1].permute(0, 2, 3, 1), backbone.beit.norm(seen[4]))


@pytest.mark.parametrize("edited", [0, 2])
def test_what_an_edit_returns_is_what_enters_the_stage(make_beit, randomize, edited) -> None:
    backbone = randomize(make_beit())
    images = torch.randn(1, 3, 32, 32)
    plain = backbone.forward_features(images)
    changed = backbone.forward_features(images, lambda stage, tokens: tokens + 1 if stage == edited else tokens)
    for stage in range(4):
        assert torch.equal(changed[stage], plain[stage]) == (stage < edited)


def test_fine_tuning_copies_the_shared_table_into_every_block(make_beit, randomize) -> None:
    backbone = randomize(make_beit())
    images = torch.randn(2, 3, 32, 32)
    table = backbone.beit.rel_pos_bias.relative_position_bias_table.detach().clone()
    last = backbone.beit.forward_intermediates(images, indices=[3], intermediates_only=True)[0]
    backbone.prepare_for_finetuning(drop_path_rate=0.0)
    assert not any(name.startswith("beit.rel_pos_bias") for name, _ in backbone.named_parameters())
    tables = [block.attn.relative_position_bias_table for block in backbone.beit.blocks]
    assert all(torch.equal(own, table) for own in tables)
    assert len({own.data_ptr() for own in tables}) == 4  # they may now part
    expected = nn.functional.layer_norm(last.mean(dim=(2, 3)), (24,), eps=1e-6)
    torch.testing.assert_close(backbone.eval().forward_pooled(images), expected, rtol=1e-4, atol=1e-5)


def test_fine_tuned_form_computes_as_timms_classifier_model_bitwise(make_beit, randomize) -> None:
    backbone = make_beit()
    backbone.prepare_for_finetuning(drop_path_rate=0.2)
    randomize(backbone)
    theirs = timm.create_model(
        "beit_base_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=0
    )
    weights = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: weight
               for name, weight in backbone.beit.state_dict().items()}  # fmt: skip
    theirs.load_state_dict(weights)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone.forward_pooled(images), theirs.eval()(images), rtol=0, atol=0)
    assert [block.drop_path2.drop_prob for block in backbone.beit.blocks[1:]] == pytest.approx([0.2 / 3, 0.4 / 3, 0.2])


def test_settings_rebuild_the_same_network(make_beit, randomize) -> None:
    for is_fine_tuned in (False, True):
        backbone = make_beit(image_size=(24, 40), mlp_ratio=2.0, num_stages=2, drop_path_rate=0.1)
        if is_fine_tuned:
            backbone.prepare_for_finetuning(drop_path_rate=0.3)
        randomize(backbone)
        settings = copy.deepcopy(dict(backbone.settings))
        assert settings.pop("kind") == "TimmBeit"
        rebuilt = TimmBeit(**settings)
        rebuilt.load_state_dict(backbone.state_dict())
        assert str(rebuilt) == str(backbone.train())
        images = torch.randn(1, 3, 24, 40)
        assert torch.equal(rebuilt.eval().forward_pooled(images), backbone.eval().forward_pooled(images))


def test_layer_ids_number_the_blocks_between_stem_and_shared_table(make_beit) -> None:
    backbone = make_beit()
    ids = {
        "beit.cls_token": 0,
        "beit.patch_embed.proj.weight": 0,
        "beit.blocks.0.gamma_1": 1,
        "beit.blocks.3.attn.q_bias": 4,
        "beit.norm.weight": 5,
        f"beit.rel_pos_bias.{TABLE}": 5,
    }
    names = dict(backbone.named_parameters())
    assert ids.keys() <= names.keys()
    assert {name: backbone.layer_id(name) for name in ids} == ids
    backbone.prepare_for_finetuning(drop_path_rate=0.0)
    assert backbone.layer_id(f"beit.blocks.2.attn.{TABLE}") == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 30}, "use 32x32 px images"),
        ({"depth": 3, "num_stages": 2}, "3 blocks are not 2 equal stages; change num_stages or depth"),
        ({"name": "beit_bace_patch16_224"}, r"no model 'beit_bace_patch16_224'; nearest: .*beit_base_patch16_224"),
        ({"relative_bias": "none"}, "relative_bias must be 'shared' or 'per_block', got 'none'"),
    ],
)
def test_settings_that_do_not_fit_say_what_does(make_beit, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_beit(**changes)


def test_it_starts_as_simmims_code_starts_its_vit(make_beit, randomize) -> None:
    """trunc_normal_ with std=.02, a=-std, b=std: what is left deviates by 0.5396 of 0.02; then BEiT's scaling."""
    backbone = randomize(make_beit(embed_dim=96, depth=3, num_heads=3))
    token = nn.Parameter(torch.full((96,), 7.0))
    backbone.initialize_as_simmim(token)
    tensors = dict(backbone.beit.named_parameters())
    drawn = {name for name, tensor in tensors.items() if name.endswith("weight") and tensor.ndim > 1} | {"cls_token"}
    assert len(drawn) == 4 * 3 + 2
    for name in drawn:
        block = int(name.split(".")[1]) + 1 if name.endswith(("attn.proj.weight", "mlp.fc2.weight")) else 0.5
        values = tensors[name] * (2 * block) ** 0.5
        assert values.abs().max() <= 0.02 * (1 + 1e-6), name
        few = values.numel() < 1000
        assert values.std().item() == pytest.approx(0.0108, rel=0.25 if few else 0.05), name
        assert abs(values.mean().item()) < (0.005 if few else 0.001), name
    assert not tensors["patch_embed.proj.bias"].any()
    assert not any(tensors[name].any() for name in tensors if name.endswith(("qkv.bias", "fc1.bias", "proj.bias")))
    assert token.abs().max() <= 0.02
    assert token.std().item() == pytest.approx(0.0108, rel=0.25)
