import pytest
import torch
from torch import nn

from unmask.heads.classifier import LinearClassifier
from unmask.optim.param_groups import WEIGHT_DECAY_POLICIES, decay_groups, is_decayed, layer_decay_groups

SWIN_V2 = "swinv2_tiny_window8_256"


class WithToken(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 24))
        self.classifier = LinearClassifier(in_features=24, num_classes=3)


def names_of(groups, module: nn.Module) -> list[set[str]]:
    known = {id(parameter): name for name, parameter in module.named_parameters()}
    return [{known[id(parameter)] for parameter in group["params"]} for group in groups]


@pytest.mark.parametrize("backbone", ["swin", "swin v2", "vit", "vit learned"])
def test_exactly_matrices_and_kernels_decay(make_swin, make_vit, backbone) -> None:
    make = {
        "swin": make_swin,
        "swin v2": lambda: make_swin(name=SWIN_V2),
        "vit": make_vit,
        "vit learned": lambda: make_vit(positions="learned"),
    }[backbone]
    module = WithToken(make())
    decayed_endings = ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "reduction.weight", "linear.weight")
    for name, parameter in module.named_parameters():
        assert is_decayed(name, parameter) == name.endswith(decayed_endings), name


@pytest.mark.parametrize(
    "ending",
    ["relative_position_bias_table", "logit_scale", "cpb_mlp.0.weight", "cls_token", "pos_embed", "mask_token"],
)
def test_tables_tokens_and_positions_never_decay_though_they_have_axes(make_swin, make_vit, ending) -> None:
    module = nn.ModuleList(
        [WithToken(make_swin()), make_swin(name=SWIN_V2), make_vit(positions="learned"), make_vit(depth=4)]
    )
    matching = {name: parameter for name, parameter in module.named_parameters() if name.endswith(ending)}
    assert matching
    assert all(parameter.ndim > 1 for parameter in matching.values())
    assert not any(is_decayed(name, parameter) for name, parameter in matching.items())


@pytest.mark.parametrize("family", ["swin", "vit"])
def test_every_trainable_parameter_is_in_exactly_one_group(make_swin, make_vit, family) -> None:
    backbone = make_swin() if family == "swin" else make_vit()
    module = WithToken(backbone)
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}

    def depth(name: str) -> int:
        inside = name.removeprefix("backbone.")
        return backbone.num_blocks + 1 if inside == name else backbone.layer_id(inside)

    for groups in (
        decay_groups(module),
        layer_decay_groups(module, layer_id=depth, num_layers=backbone.num_blocks + 1, layer_decay=0.8, lr=1e-3),
    ):
        grouped = names_of(groups, module)
        assert sum(map(len, grouped)) == sum(len(group["params"]) for group in groups)
        assert sorted(name for group in grouped for name in group) == sorted(trainable)


def test_undecayed_group_switches_the_optimizers_decay_off(make_vit) -> None:
    module = WithToken(make_vit())
    optimizer = torch.optim.AdamW(decay_groups(module), lr=0.1, weight_decay=0.05)
    for group, names in zip(optimizer.param_groups, names_of(optimizer.param_groups, module), strict=True):
        parameters = dict(module.named_parameters())
        decays = {is_decayed(name, parameters[name]) for name in names}
        assert decays == {group["weight_decay"] == 0.05}
        assert group["weight_decay"] in (0.0, 0.05)
        assert group["lr"] == 0.1


def test_rate_falls_by_the_decay_from_each_depth_to_the_next_shallower(make_swin) -> None:
    backbone = make_swin()  # 4 blocks: the classifier and the final norm are depth 5
    module = WithToken(backbone)

    def depth(name: str) -> int:
        return backbone.layer_id(name.removeprefix("backbone."))

    groups = layer_decay_groups(module, layer_id=depth, num_layers=5, layer_decay=0.5, lr=0.32)
    rates = {name: group["lr"] for group, names in zip(groups, names_of(groups, module), strict=True) for name in names}
    assert rates["classifier.linear.weight"] == rates["backbone.swin.norm.weight"] == pytest.approx(0.32)
    assert rates["backbone.swin.layers.2.blocks.0.mlp.fc1.weight"] == pytest.approx(0.16)
    assert rates["backbone.swin.layers.2.downsample.reduction.weight"] == pytest.approx(0.08)
    assert rates["backbone.swin.layers.1.blocks.0.mlp.fc1.bias"] == pytest.approx(0.08)
    assert rates["backbone.swin.layers.0.blocks.0.norm1.weight"] == pytest.approx(0.02)
    assert rates["backbone.swin.patch_embed.proj.weight"] == pytest.approx(0.01)
    assert not any("lr_scale" in group for group in groups)


def test_frozen_parameters_reach_no_optimizer(make_vit) -> None:
    module = make_vit()
    module.vit.blocks[0].requires_grad_(False)
    grouped = set().union(*names_of(decay_groups(module), module))
    assert not any(name.startswith("vit.blocks.0.") or name == "vit.pos_embed" for name in grouped)


@pytest.mark.parametrize("layer_decay", [0.0, 1.1, -0.5])
def test_layer_decay_must_be_a_fraction(layer_decay: float) -> None:
    with pytest.raises(ValueError, match=f"above 0 and at most 1, got {layer_decay}"):
        layer_decay_groups(nn.Linear(2, 2), layer_id=lambda _: 0, num_layers=1, layer_decay=layer_decay, lr=0.1)


def test_layer_decay_without_a_rate_is_refused_and_not_ignored() -> None:
    with pytest.raises(ValueError, match="needs the learning rate"):
        layer_decay_groups(nn.Linear(2, 2), layer_id=lambda _: 0, num_layers=1, layer_decay=0.5, lr=None)


def test_policies_add_the_tokens_and_then_the_rest(make_swin, make_vit) -> None:
    for module in (WithToken(make_swin()), WithToken(make_swin(name=SWIN_V2)), WithToken(make_vit())):
        module.mask_token = nn.Parameter(torch.zeros(24))  # SimMIM's is a vector
        by_policy = {
            policy: {name for name, parameter in module.named_parameters() if is_decayed(name, parameter, policy)}
            for policy in WEIGHT_DECAY_POLICIES
        }
        assert {name.rpartition(".")[2] for name in by_policy["tokens"] - by_policy["weights"]} in (
            {"mask_token"},
            {"mask_token", "cls_token"},
        )
        assert by_policy["tokens"] > by_policy["weights"]
        assert by_policy["all"] == {name for name, _ in module.named_parameters()}
        for policy, decayed in by_policy.items():
            groups = decay_groups(module, weight_decay_policy=policy)
            kept = [
                names
                for names, group in zip(names_of(groups, module), groups, strict=True)
                if "weight_decay" not in group
            ]
            assert kept == [{name for name in decayed if dict(module.named_parameters())[name].requires_grad}]


def official_decay(module: nn.Module, *, spared: set[str], keywords: set[str]) -> set[str]:
    """Names that decay by SimMIM's rule: a tensor is spared by shape, as a bias, by its whole name or by a keyword."""
    return {
        name
        for name, parameter in module.named_parameters()
        if not (
            parameter.ndim == 1
            or name.endswith(".bias")
            or name in spared
            or any(keyword in name for keyword in keywords)
        )
    }


@pytest.mark.parametrize("phase", ["pre-training", "fine-tuning"])
@pytest.mark.parametrize("family", ["swin", "swin v2", "vit"])
def test_simmims_policies_are_its_codes_rule(make_swin, make_beit, family: str, phase: str) -> None:
    """In pre-training its names carry the prefix `encoder.`, with which the keywords that spare tables never match."""
    make = {"swin": make_swin, "swin v2": lambda: make_swin(name=SWIN_V2), "vit": make_beit}[family]
    backbone = make()
    keywords = set() if family == "vit" else {"relative_position_bias_table", "cpb_mlp", "logit_scale"}
    spared = {"backbone.beit.cls_token"} if family == "vit" else set()
    if phase == "pre-training":
        module = WithToken(backbone)
        policy = "mask_token_and_position_bias" if family == "vit" else "position_bias"
        expected = official_decay(
            module,
            spared=spared | ({"mask_token"} if family != "vit" else set()),
            keywords={f"encoder.{keyword}" for keyword in keywords},
        )
    else:
        backbone.prepare_for_finetuning(drop_path_rate=0.1)
        module = nn.ModuleDict({"backbone": backbone})
        policy = "position_bias" if family == "vit" else "weights"
        expected = official_decay(module, spared=spared, keywords=keywords)
    assert {name for name, parameter in module.named_parameters() if is_decayed(name, parameter, policy)} == expected


def test_a_mask_token_kept_as_a_vector_decays_where_the_policy_says_so() -> None:
    token = nn.Parameter(torch.zeros(24))
    decaying = {policy for policy in WEIGHT_DECAY_POLICIES if is_decayed("mask_token", token, policy)}
    assert decaying == {"tokens", "mask_token_and_position_bias", "all"}
