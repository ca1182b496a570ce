from dataclasses import replace

import pytest
import torch
from torch import nn

from unmask.interchange.conversion import Conversion
from unmask.interchange.load_weights import load_backbone_weights, load_head_weights
from unmask.interchange.resize import resize_bias_table, resize_positions

TABLE = "relative_position_bias_table"


def conversion_of(backbone, **changes) -> Conversion:
    whole = Conversion(
        source_format="Somebody",
        source="file.pth",
        settings=dict(backbone.settings),
        backbone={name: weight.clone() for name, weight in backbone.state_dict().items()},
    )
    return replace(whole, **changes)


def test_every_weight_is_loaded_bitwise_and_counted(make_vit, randomize) -> None:
    theirs, ours = randomize(make_vit()), make_vit()
    coverage = load_backbone_weights(ours, conversion_of(theirs, left_out={"head.weight": "a classifier of 5 classes"}))
    assert all(torch.equal(weight, ours.state_dict()[name]) for name, weight in theirs.state_dict().items())
    assert set(coverage.loaded) == set(theirs.state_dict())
    number = len(theirs.state_dict())
    assert coverage.describe().splitlines() == [
        f"Somebody: {number} of {number} tensors of the backbone loaded",
        "left out: head.weight: a classifier of 5 classes",
    ]


def test_positions_follow_the_grid(make_vit, randomize) -> None:
    theirs, ours = randomize(make_vit(positions="learned")), make_vit(positions="learned", image_size=(48, 24))
    coverage = load_backbone_weights(ours, conversion_of(theirs))
    expected = resize_positions(theirs.vit.pos_embed, (6, 3), num_prefix_tokens=1)
    assert torch.equal(ours.vit.pos_embed, expected)
    assert coverage.resized == {"vit.pos_embed": "positions of 4x4 patches to 6x3"}
    assert "resized: positions of 4x4 patches to 6x3 (vit.pos_embed)" in coverage.describe()


def test_tables_follow_the_window_of_each_stage(make_swin, randomize) -> None:
    theirs, ours = randomize(make_swin()), make_swin(image_size=96, window_size=6)
    coverage = load_backbone_weights(ours, conversion_of(theirs))
    for stage, block in ((0, 1), (1, 0), (2, 0)):
        name = f"swin.layers.{stage}.blocks.{block}.attn.{TABLE}"
        assert torch.equal(ours.state_dict()[name], resize_bias_table(theirs.state_dict()[name], (6, 6)))
    assert list(coverage.resized.values()) == ["relative positions in 4x4 tokens to 6x6"] * 4


def test_a_shared_table_is_resized_with_its_rows_of_the_class_token(make_beit, randomize) -> None:
    theirs, ours = randomize(make_beit()), make_beit(image_size=40)
    load_backbone_weights(ours, conversion_of(theirs))
    name = f"beit.rel_pos_bias.{TABLE}"
    assert torch.equal(ours.state_dict()[name], resize_bias_table(theirs.state_dict()[name], (5, 5), num_extra_rows=3))


def test_a_shared_table_goes_into_every_block_of_a_fine_tuned_form(make_beit, randomize) -> None:
    theirs, ours = randomize(make_beit()), make_beit(relative_bias="per_block")
    load_backbone_weights(ours, conversion_of(theirs))
    table = theirs.beit.rel_pos_bias.relative_position_bias_table
    assert all(torch.equal(block.attn.relative_position_bias_table, table) for block in ours.beit.blocks)


def test_less_than_all_is_refused_unless_allowed(make_vit, randomize) -> None:
    theirs, ours = randomize(make_vit()), make_vit()
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    conversion = conversion_of(theirs)
    weights = dict(conversion.backbone)
    del weights["vit.norm.bias"]
    weights["vit.blocks.0.ls1.gamma"] = torch.ones(24)
    partial = replace(conversion, backbone=weights)
    message = (
        r"file.pth, Somebody .*, lacks 1 weights of the backbone \(vit.norm.bias\) and holds 1 weights unknown .*ls1"
    )
    with pytest.raises(ValueError, match=message):
        load_backbone_weights(ours, partial)
    assert all(torch.equal(weight, ours.state_dict()[name]) for name, weight in before.items())
    coverage = load_backbone_weights(ours, partial, allow_partial=True)
    assert (coverage.missing_keys, coverage.unexpected_keys) == (("vit.norm.bias",), ("vit.blocks.0.ls1.gamma",))
    assert torch.equal(ours.vit.norm.bias, before["vit.norm.bias"])
    assert torch.equal(ours.vit.norm.weight, theirs.vit.norm.weight)
    assert "missing keys, left as they were: vit.norm.bias" in coverage.describe()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_taken(make_vit, bad) -> None:
    theirs, ours = make_vit(), make_vit()
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    theirs.vit.blocks[0].mlp.fc1.weight.data[3, 2] = bad
    with pytest.raises(ValueError, match=r"file.pth holds numbers in vit.blocks.0.mlp.fc1.weight that are not finite"):
        load_backbone_weights(ours, conversion_of(theirs), allow_partial=True)
    assert all(torch.equal(weight, ours.state_dict()[name]) for name, weight in before.items())


@pytest.mark.parametrize("allow_partial", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 48}, r"width 24, .* have other sizes .*: vit.cls_token 1x1x24 in the file, 1x1x48 in the model"),
        ({"patch_size": 16}, "vit.patch_embed.proj.weight 24x3x8x8 in the file, 24x3x16x16 in the model"),
        ({"num_heads": 6}, r"with 3 attention heads, the configured model has 6; set model.num_heads=3"),
    ],
)
def test_another_size_is_never_taken(make_vit, changes, message, allow_partial) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone_weights(make_vit(**changes), conversion_of(make_vit()), allow_partial=allow_partial)


def test_another_family_is_never_taken(make_vit, make_swin) -> None:
    with pytest.raises(ValueError, match=r"family 'swin'; choose one of 'vit', such as model=vit_base"):
        load_backbone_weights(make_swin(), conversion_of(make_vit()), allow_partial=True)


def test_what_no_shape_shows_is_said(make_vit) -> None:
    theirs = make_vit(norm_eps=1e-12)
    theirs.prepare_for_finetuning(drop_path_rate=0.0)
    conversion = conversion_of(theirs, assumed={"num_heads": "64 channels each, the default"})
    notes = load_backbone_weights(make_vit(num_heads=6), conversion).notes
    assert notes == (
        "not stated in the file: num_heads; 6 is used, of the model",
        "differs: norm_eps is 1e-12 in the file, the default in the configured model",
        "differs: norm_after_pooling is True in the file, False in the configured model",
    )


class Decoder(nn.Module):
    """A method with a head of two weights, zero so far."""

    def __init__(self, *, width: int = 2, cells: int = 5) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.weight = nn.Parameter(torch.zeros(3, width))
        self.decoder.pos_embed = nn.Parameter(torch.zeros(1, cells, 2))


def heads_for(make_vit, method: nn.Module):
    """Loads ones into a method; returns the report."""
    heads = {"decoder.weight": torch.ones(3, 2), "decoder.pos_embed": torch.ones(1, 5, 2)}
    conversion = conversion_of(make_vit(), heads=heads, left_out={"optimizer": "no weight"})
    report = load_backbone_weights(make_vit(), conversion)
    assert set(report.left_out) == {"optimizer", *heads}
    return load_head_weights(method, conversion, report)


@pytest.mark.parametrize("cells", [5, 10])
def test_positions_of_a_head_are_taken_from_a_file_of_the_same_grid_alone(make_vit, cells: int) -> None:
    report = heads_for(make_vit, method := Decoder(cells=cells))
    is_same = cells == 5
    assert (method.decoder.weight == 1).all()
    assert (method.decoder.pos_embed == float(is_same)).all()
    assert set(report.heads) == {"decoder.weight", *(["decoder.pos_embed"] if is_same else [])}
    other_grid = {} if is_same else {"decoder.pos_embed": "fixed positions of another grid"}
    assert report.left_out == {"optimizer": "no weight"} | other_grid


def test_a_head_of_other_sizes_is_left_out_whole_and_so_reported(make_vit) -> None:
    report = heads_for(make_vit, method := Decoder(width=4))
    assert not any(parameter.any() for parameter in method.parameters())
    assert report.heads == ()
    reason = "the configured head has other sizes (decoder.weight: 3x2 in the file, 3x4 in the model)"
    assert report.left_out == {"optimizer": "no weight"} | dict.fromkeys(
        ["decoder.weight", "decoder.pos_embed"], reason
    )
