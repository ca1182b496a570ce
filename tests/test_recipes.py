"""The published recipes of `conf/experiment` against the numbers their sources print; nothing here is trained."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import functools
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # as Python does for a script
EXPERIMENTS = ROOT / "conf" / "experiment"
PAGE = ROOT / "docs" / "recipes.md"
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
EVALUATIONS = [name for name in NAMES if "python eval.py" in (EXPERIMENTS / f"{name}.yaml").read_text()]
TRAININGS = [name for name in NAMES if name not in EVALUATIONS]
GRAMMAR = re.compile(r"[a-z0-9-]+(_finetune|_linear)?(_[a-z0-9-]+)?_\d+b-\d+e(_[a-z0-9-]+-\d+px)")
OURS = {"quickstart", "mae_cifar10", "simmim_cifar10", "ddmim_cifar10", "mae_doges", "mae_doges_frozen"}
IN1K_TRAIN = 1_281_167  # images


@functools.cache
def composed(name: str) -> DictConfig:
    from unmask.runtime.config import compose_config

    is_evaluation = name in EVALUATIONS
    config = compose_config(
        "eval" if is_evaluation else "run",
        [f"experiment={name}", "paths.run_dir=x", *(["ckpt_path=x"] if is_evaluation else [])],
    )
    for key in config.get("data") or {}:
        if OmegaConf.is_missing(config.data, key):
            config.data[key] = "x"
    return config


@functools.cache
def built(name: str) -> Any:
    """The method of a recipe without storage for its weights; layer decay needs none either."""
    from unmask.runtime.builders import build

    with torch.device("meta"):
        return build(composed(name).method)


@functools.cache
def backbone(model: str, *overrides: str) -> Any:
    from unmask.runtime.builders import build
    from unmask.runtime.config import compose_config

    with torch.device("meta"):
        return build(compose_config("run", [f"model={model}", "data=imagenet", "data.root=x", *overrides]).model)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def facts(name: str) -> dict[str, str]:
    """What the comment of a recipe says under Source, Published and Differs."""
    comment = re.match(r"(?:#.*\n)*", (EXPERIMENTS / f"{name}.yaml").read_text())[0]  # type: ignore[index]
    joined = re.sub(r"\n#   ", " ", comment)
    return dict(re.findall(r"^# (Source|Published|Differs): (.*)$", joined, flags=re.M))


def page_with_tables(page: str) -> str:
    """Puts a row for every recipe into the page."""
    for command, names in (("run.py", TRAININGS), ("eval.py", EVALUATIONS)):
        rows = ["| experiment | source | published, top-1 in percent | differs |", "|---|---|---|---|"]
        for name in names:
            said = facts(name)
            rows.append(f"| `{name}` | {said['Source']} | {said['Published']} | {said.get('Differs', '')} |")
        table = "\n".join(rows)
        page = re.sub(
            rf"(<!-- {re.escape(command)} -->\n).*?(<!-- end -->)",
            lambda found, table=table: f"{found[1]}{table}\n{found[2]}",
            page,
            flags=re.S,
        )
    return page


def test_the_page_of_recipes_lists_every_one_as_its_file_says() -> None:
    page = PAGE.read_text()
    assert page == page_with_tables(page), "run `python tests/test_recipes.py` to write the tables anew"
    assert all(f"| `{name}` |" in page for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_resolves_under_its_own_name_and_states_where_it_comes_from(name: str) -> None:
    import training_plan

    config = composed(name)
    assert config.name == name
    assert name in OURS or GRAMMAR.fullmatch(name)
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert {"Source", "Published"} <= facts(name).keys()
    said = re.search(r"_(\d+)b-(\d+)e_.*?(?:-(\d+)px)", name)
    if said:
        batch, epochs, side = map(int, said.groups())
        assert config.global_batch_size == batch
        assert (config.eval.epochs if name in EVALUATIONS else config.trainer.max_epochs) == epochs
        own_side = config.backbone.image_size if name in EVALUATIONS else config.image_size
        assert own_side in (side, None)
        if "in1k" in name:
            holds_out = name.startswith("ddmim-") and name not in EVALUATIONS
            num_images = IN1K_TRAIN - 50_000 if holds_out else IN1K_TRAIN  # 50 a class
            assert training_plan.images_and_epochs(config) == (num_images, epochs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_a_recipe_keeps_its_batch_on_any_number_of_devices(name: str, num_devices: int) -> None:
    from unmask.optim.accumulation import accumulated_batches

    config = composed(name)
    parts = num_devices * accumulated_batches(
        config.global_batch_size, num_devices=num_devices, images_per_device=config.images_per_device
    )
    assert config.global_batch_size % parts == 0
    assert config.global_batch_size // parts <= (config.images_per_device or math.inf)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mae_vit-base_4096b-800e_in1k-224px", 111_907_840),
        ("mae_vit-large_4096b-800e_in1k-224px", 329_541_888),
        ("mae_vit-huge_4096b-800e_in1k-224px", 657_074_508),
        ("simmim_swin-base_2048b-100e_in1k-192px", 89_874_104),
        ("simmim_swin-base_2048b-800e_in1k-192px", 89_874_104),
        ("simmim-mm_swin-large_2048b-800e_in1k-192px", 199_920_372),
        ("ddmim-v9_swinv2-tiny_52b-50e_in1k-224px", None),
    ],
)
def test_networks_have_as_many_parameters_as_published(name: str, expected: int | None) -> None:
    method = built(name)
    if expected is not None:
        assert count(method) == expected
        return
    representation, *_, last = method.contrast.projector.layers
    assert count(method.backbone) == 27_578_154
    assert count(method.backbone) + count(representation) == 28_365_610
    assert count(method.contrast.projector) - count(representation) == 787_456
    assert last.out_features == 512
    assert count(method.reconstruction.head) == 2_362_368
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 31_515_434  # "31.52 M"


@pytest.mark.parametrize(
    ("model", "overrides", "num_parameters", "gmacs"),
    [
        ("swin_base", ("image_size=192", "model.window_size=6"), 87_750_176, 11.30),
        ("swin_base", ("image_size=224", "model.window_size=7"), 87_768_224, 15.47),
        ("swin_large", ("image_size=224", "model.window_size=14", "model.always_partition=true"), 196_848_316, 38.85),
        ("vit_base", (), None, 17.58),
        ("vit_large", (), None, 61.60),
        ("vit_huge", (), None, 167.40),
    ],
)
def test_classifiers_have_the_parameters_and_the_cost_that_mmpretrain_prints(
    model: str, overrides: tuple[str, ...], num_parameters: int | None, gmacs: float
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = backbone(model, *overrides)
    if num_parameters is not None:
        assert count(network) + 1000 * (network.embed_dim + 1) == num_parameters
    images = torch.empty(1, 3, *network.image_size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.forward_pooled(images)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.01)  # a product and its sum are two


@pytest.mark.parametrize(
    ("name", "num_masked", "patches"),
    [
        ("mae_vit-base_4096b-800e_in1k-224px", 147, 196),
        ("mae_vit-huge_4096b-1600e_in1k-224px", 192, 256),
        ("flyegle-mae_vit-tiny_2048b-300e_in1k-224px", 147, 196),
        ("simmim_swin-base_2048b-100e_in1k-192px", 22, 36),
        ("simmim_vit-base_2048b-800e_in1k-224px", 30, 49),
        ("simmim_swinv2-base_2048b-800e_in1k-192px", 22, 36),
        ("ddmim_swinv2-tiny_1024b-100e_in1k-224px", 98, 196),
    ],
)
def test_as_many_patches_are_masked_as_published(name: str, num_masked: int, patches: int) -> None:
    from unmask.runtime.builders import build

    config = composed(name)
    mask = build(config.method.mask_generator)(torch.empty(3, 3, config.image_size, config.image_size))
    masked = mask.masked.flatten(1)
    assert masked.shape[1] == patches
    assert masked.sum(dim=1).tolist() == [num_masked] * 3


def _cosine(share: float, low: float, high: float) -> float:
    return low + (high - low) / 2 * (1 + math.cos(math.pi * share))


LAST = 1e-6  # of an epoch: one step before
MAE_PRE = {0: 0.0, 20: 1.2e-3, 40: 2.4e-3}
SIMMIM_800 = {0: 2e-6, 5: (2e-6 + 4e-4) / 2, 10: 4e-4, 699: 4e-4, 700: 4e-5, 799: 4e-5}
SIMMIM_MM_800 = {0: 2e-6, 10 - LAST: 4e-4, 10: 4e-4, 700: 4e-4, 710 - LAST: 4e-4, 710: 4e-5, 799: 4e-5}
SIMMIM_FINE = {0: 1e-6, 10: (1e-6 + 5e-3) / 2, 20: _cosine(0.2, 1e-6, 5e-3), 50: (1e-6 + 5e-3) / 2, 100: 1e-6}
RATES = {  # by epoch, as the sources say
    "mae_vit-base_4096b-800e_in1k-224px": {**MAE_PRE, 420: 1.2e-3, 800: 0.0},
    "mae_vit-huge_4096b-1600e_in1k-224px": {**MAE_PRE, 820: 1.2e-3, 1600: 0.0},
    "mae-mm_vit-base_4096b-300e_in1k-224px": {0: 2.4e-7, 40 - LAST: 2.4e-3, 40: 2.4e-3, 170: 1.2e-3, 300: 0.0},
    "mae-mm_vit-large_4096b-400e_in1k-224px": {0: 2.4e-7, 40 - LAST: 2.4e-3, 40: 2.4e-3, 220: 1.2e-3, 400: 0.0},
    "mae-mm_vit-base_4096b-800e_in1k-224px": {0: 2.4e-12, 40 - LAST: 2.4e-3, 40: 2.4e-3, 420: 1.2e-3, 800: 0.0},
    "mae-mm_vit-large_4096b-800e_in1k-224px": {0: 2.4e-12, 40 - LAST: 2.4e-3, 40: 2.4e-3, 420: 1.2e-3, 800: 0.0},
    "flyegle-mae_vit-tiny_2048b-300e_in1k-224px": {
        0: 1.5e-4 * (1 / 25_000 + 1e-6),
        40: _cosine(40 / 260, 0.0, 1.5e-4),
        130: 0.75e-4,
        260: 0.0,
        300: _cosine(300 / 260, 0.0, 1.5e-4),
    },
    "flyegle-mae_vit-base_2048b-400e_in1k-224px": {
        20: 6e-4,
        40 - LAST: 1.2e-3,
        40: _cosine(40 / 360, 0.0, 1.2e-3),
        180: 6e-4,
        360: 0.0,
        400: _cosine(400 / 360, 0.0, 1.2e-3),
    },
    "simmim_swin-base_2048b-100e_in1k-192px": {
        0: 4e-6,
        5: (4e-6 + 8e-4) / 2,
        10: _cosine(0.1, 4e-5, 8e-4),
        50: (4e-5 + 8e-4) / 2,
        100: 4e-5,
    },
    "simmim_swin-base_2048b-800e_in1k-192px": SIMMIM_800,
    "simmim_swin-large_2048b-800e_in1k-192px": SIMMIM_800,
    "simmim_vit-base_2048b-800e_in1k-224px": SIMMIM_800,
    "simmim_swinv2-base_2048b-800e_in1k-192px": SIMMIM_800,
    "simmim-mm_swin-base_2048b-800e_in1k-192px": SIMMIM_MM_800,
    "simmim-mm_swin-large_2048b-800e_in1k-192px": SIMMIM_MM_800,
    "simmim-mm_swin-base_2048b-100e_in1k-192px": {0: 4e-6, 10 - LAST: 8e-4, 10: 8e-4, 55: (4e-5 + 8e-4) / 2, 100: 4e-5},
    "ddmim-v9_swinv2-tiny_52b-50e_in1k-224px": {0: 5e-3, 19: 5e-3, 20: 5e-4, 39: 5e-4, 40: 5e-5, 49: 5e-5},
    "ddmim-mae_vit-small_52b-150e_in1k-224px": {
        0: 7.5e-4,
        15: (1e-4 + 7.5e-4) / 2,
        29: _cosine(29 / 30, 1e-4, 7.5e-4),
        30: 7.5e-4,
        60: (1e-4 + 7.5e-4) / 2,
        90: 7.5e-4,
        149: _cosine(59 / 120, 1e-4, 7.5e-4),
    },
    "ddmim_swinv2-tiny_1024b-100e_in1k-224px": {0: 2e-6, 10: 4e-4, 100: 2e-5},
    "simmim-hf_swin-base_8b-3e_indian-food-192px": {0: 5e-5, 1: 5e-5 * 2 / 3, 3: 0.0},
    "mae_finetune_vit-base_1024b-100e_in1k-224px": {0: 0.0, 5: 2e-3, 100: 1e-6},
    "mae_finetune_vit-large_1024b-50e_in1k-224px": {0: 0.0, 5: 4e-3, 50: 1e-6},
    "mae_finetune_vit-huge_1024b-50e_in1k-224px": {0: 0.0, 5: 4e-3, 50: 1e-6},
    "mae-pixel_finetune_vit-base_1024b-100e_in1k-224px": {0: 0.0, 5: 4e-3, 100: 1e-6},
    "mae-mm_finetune_vit-base_1024b-100e_in1k-224px": {0: 2e-7, 5 - LAST: 2e-3, 5: 2e-3, 100: 1e-6},
    "mae-mm_finetune_vit-large_1024b-50e_in1k-224px": {0: 4e-7, 5 - LAST: 4e-3, 5: 4e-3, 50: 1e-6},
    "mae-mm_finetune_vit-huge_1024b-50e_in1k-224px": {0: 4e-7, 5 - LAST: 4e-3, 5: 4e-3, 50: 1e-6},
    "mae-mm_finetune_vit-huge_256b-50e_in1k-448px": {0: 4e-7, 5 - LAST: 4e-3, 5: 4e-3, 50: 1e-6},
    "simmim_finetune_swin-base_2048b-100e_in1k-224px": SIMMIM_FINE,
    "simmim-800e_finetune_swin-base_2048b-100e_in1k-224px": SIMMIM_FINE,
    "simmim_finetune_swin-large_2048b-100e_in1k-224px": SIMMIM_FINE,
    "simmim_finetune_vit-base_2048b-100e_in1k-224px": SIMMIM_FINE,
    "simmim_finetune_swinv2-base_2048b-100e_in1k-224px": SIMMIM_FINE,
    "simmim-mm_finetune_swin-base_2048b-100e_in1k-224px": {
        0: 1e-6,
        20 - LAST: 5e-3,
        20: 5e-3,
        60: (1e-6 + 5e-3) / 2,
        100: 1e-6,
    },
    "simmim-mm_finetune_swin-large_2048b-100e_in1k-224px": {0: 1e-6, 20: 5e-3, 100: _cosine(0.8, 1e-6, 5e-3)},
    "flyegle-mae_finetune_vit-base_2048b-100e_in1k-224px": {
        5 - LAST: 1.2e-3,
        5: _cosine(5 / 95, 0.0, 1.2e-3),
        95: 0.0,
        100: _cosine(100 / 95, 0.0, 1.2e-3),
    },
    "ddmim-v9_finetune_60b-100e_in1k-224px": {0: 5e-3, 29: 5e-3, 30: 5e-4, 60: 5e-5, 90: 5e-6},
    "ddmim-v9_finetune_60b-400e_in1k-224px": {0: 5e-3, 120: 5e-7},
    "ddmim_finetune_swinv2-tiny_1024b-100e_in1k-224px": {0: 5e-7, 20: 2.5e-3, 100: 5e-7},
    "mae_linear_vit-base_16384b-90e_in1k-224px": {0: 0.0, 5: 3.2, 10: 6.4, 50: 3.2, 90: 0.0},
    "mae_linear_vit-large_16384b-50e_in1k-224px": {0: 0.0, 10: 6.4, 30: 3.2, 50: 0.0},
    "mae-mm_linear_vit-base_16384b-90e_in1k-224px": {0: 6.4e-4, 10 - LAST: 6.4, 10: 6.4, 50: 3.2, 90: 0.0},
    "mae-mm_linear_vit-large_16384b-90e_in1k-224px": {0: 6.4e-4, 10 - LAST: 6.4, 10: 6.4, 50: 3.2, 90: 0.0},
}


@pytest.mark.parametrize("name", RATES)
def test_rates_are_the_published_ones_at_the_first_the_turning_and_the_last_step(name: str) -> None:
    from unmask.runtime.builders import build

    config = composed(name)
    schedule = config.eval.classifier.schedule if name in EVALUATIONS else config.method.schedule
    epochs = config.eval.epochs if name in EVALUATIONS else config.trainer.max_epochs
    steps = IN1K_TRAIN // config.global_batch_size
    optimizer = build(config.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    peak = optimizer.defaults["lr"]
    (factor,) = build(schedule)(optimizer, total_steps=epochs * steps, steps_per_epoch=steps).lr_lambdas
    at_epochs = {epoch: peak * factor(math.floor(epoch * steps)) for epoch in RATES[name]}
    assert at_epochs == {epoch: pytest.approx(rate, rel=1e-4, abs=1e-14) for epoch, rate in RATES[name].items()}
    assert all(factor(step) <= 1 + 2e-6 for step in range(0, epochs * steps, steps // 3))  # FlyEgle's passes 1


@pytest.mark.parametrize(
    "name", [name for name in EVALUATIONS if "_finetune_" in name and not name.startswith(("flyegle", "ddmim-v9"))]
)
def test_the_rates_of_deep_and_shallow_layers_start_and_end_as_their_sources_have_them(name: str) -> None:
    """timm's schedulers, SimMIM's: absolute rates; mmengine's: a part of a layer's own, then an absolute one; MAE's:
    parts of a layer's own."""
    from unmask.runtime.builders import build

    config = composed(name)
    peak = config.optimizer.lr
    schedule = build(config.eval.classifier.schedule)
    optimizer = build(config.optimizer)(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": peak * part} for part in (1.0, 0.01)]
    )
    head, stem = schedule(optimizer, total_steps=1000, steps_per_epoch=10).lr_lambdas
    start, floor = peak * head(0), peak * config.eval.classifier.schedule.final_factor
    fallen = (peak * head(1000) - floor) / (peak - floor)  # 0 but for a cosine that is cut off
    shares_start = name.startswith(("simmim_", "simmim-800e_"))
    shares_floor = shares_start or "-mm_" in name
    assert peak * 0.01 * stem(0) == pytest.approx(start if shares_start else start * 0.01)
    floor = floor if shares_floor else floor * 0.01
    assert peak * 0.01 * stem(1000) == pytest.approx(floor + (0.01 * peak - floor) * fallen)


STEM_SHARES = {  # of the rate of the head: decay ** (blocks + 1)
    "simmim_finetune_swin-base_2048b-100e_in1k-224px": ("swin_base", 0.0718),
    "simmim-800e_finetune_swin-base_2048b-100e_in1k-224px": ("swin_base", 3.78e-3),
    "simmim_finetune_swin-large_2048b-100e_in1k-224px": ("swin_large", 1.34e-4),
    "simmim_finetune_vit-base_2048b-100e_in1k-224px": ("beit_base", 3.70e-3),
    "simmim_finetune_swinv2-base_2048b-100e_in1k-224px": ("swinv2_base", 0.75**25),
    "mae_finetune_vit-base_1024b-100e_in1k-224px": ("vit_base", 3.70e-3),
    "mae_finetune_vit-large_1024b-50e_in1k-224px": ("vit_large", 0.75**25),
    "mae-mm_finetune_vit-base_1024b-100e_in1k-224px": ("vit_base", 0.65**13),
    "mae-mm_finetune_vit-large_1024b-50e_in1k-224px": ("vit_large", 0.75**25),
    "mae_finetune_vit-huge_1024b-50e_in1k-224px": ("vit_huge", 0.75**33),
    "ddmim-v9_finetune_60b-100e_in1k-224px": ("swinv2_tiny", 1.0),
}


@pytest.mark.parametrize("name", STEM_SHARES)
def test_layers_learn_at_the_rates_of_the_papers(name: str) -> None:
    """The numbering of the papers' own modules, in which a merging closes its stage and belongs to its last block."""
    from unmask.optim.param_groups import is_decayed, layer_decay_groups
    from unmask.runtime.builders import build

    model, stem_fraction = STEM_SHARES[name]
    with torch.device("meta"):
        classifier = build(composed(name).eval.classifier)(backbone=backbone(model), num_classes=1000)
    network, decay = classifier.backbone, classifier.layer_decay
    groups = layer_decay_groups(
        classifier,
        layer_id=classifier._layer_id,
        num_layers=network.num_blocks + 1,
        layer_decay=decay,
        lr=1.0,
        weight_decay_policy=classifier.weight_decay_policy,
    )
    names = {id(parameter): key for key, parameter in classifier.named_parameters()}
    rate = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    spared = {names[id(p)] for group in groups for p in group["params"] if group.get("weight_decay") == 0.0}

    stem = next(key for key in rate if key.endswith("patch_embed.proj.weight"))
    assert rate[stem] == pytest.approx(stem_fraction, rel=5e-3)
    assert {rate[key] for key in rate if key.startswith("head.")} == {1.0}
    parameters = dict(classifier.named_parameters())
    policy = classifier.weight_decay_policy
    assert spared == {key for key in rate if not is_decayed(key, parameters[key], policy)}
    if "swin" not in model:
        blocks = [re.search(r"blocks\.(\d+)\.", key) for key in rate]
        for key, block in zip(rate, blocks, strict=True):
            if block:
                assert rate[key] == pytest.approx(decay ** (network.num_blocks - int(block[1])))
        return
    before = 0  # blocks of the stages so far
    for stage, depth in enumerate(network.depths):
        for key in (k for k in rate if k.startswith(f"backbone.swin.layers.{stage}.")):
            block = re.search(r"blocks\.(\d+)\.", key)
            layer = before if ".downsample." in key else before + int(block[1]) + 1  # type: ignore[index]
            assert rate[key] == pytest.approx(decay ** (network.num_blocks + 1 - layer)), key
        before += depth


ALSO_DECAYED = {  # beyond matrices and kernels, by ending: how many tensors
    "simmim_swin-base_2048b-100e_in1k-192px": {"relative_position_bias_table": 24},
    "simmim_swin-large_2048b-800e_in1k-192px": {"relative_position_bias_table": 24},
    "simmim_swin-tiny_2048b-100e_in1k-192px": {"relative_position_bias_table": 12},  # ours, after the first
    "simmim_swinv2-base_2048b-800e_in1k-192px": {"cpb_mlp.0.weight": 24, "cpb_mlp.2.weight": 24, "logit_scale": 24},
    "simmim_vit-base_2048b-800e_in1k-224px": {"mask_token": 1, "relative_position_bias_table": 1},
    "simmim-mm_swin-base_2048b-100e_in1k-192px": {"mask_token": 1},
    "simmim_finetune_swin-base_2048b-100e_in1k-224px": {},
    "simmim_finetune_swinv2-base_2048b-100e_in1k-224px": {},
    "simmim_finetune_vit-base_2048b-100e_in1k-224px": {"relative_position_bias_table": 12},
    "mae_vit-base_4096b-800e_in1k-224px": {"mask_token": 1, "cls_token": 1},
    "mae-mm_vit-base_4096b-300e_in1k-224px": {},
}


@pytest.mark.parametrize("name", ALSO_DECAYED)
def test_weight_decay_reaches_what_it_reaches_in_the_source(name: str) -> None:
    from unmask.optim.param_groups import is_decayed

    if name in EVALUATIONS:
        model = {
            "swin": ["swin_base"],
            "swinv2": ["swinv2_base"],
            "vit": ["beit_base", "model.relative_bias=per_block"],
        }
        module = _classifier(name, backbone(*model[name.split("_")[2].removesuffix("-base")]))
    else:
        module = built(name)
    policy = module.weight_decay_policy
    more = [
        key
        for key, parameter in module.named_parameters()
        if parameter.requires_grad and is_decayed(key, parameter, policy) and not is_decayed(key, parameter)
    ]
    found = {ending: sum(key.endswith(ending) for key in more) for ending in ALSO_DECAYED[name]}
    assert found == ALSO_DECAYED[name]
    assert len(more) == sum(found.values())


def _classifier(name: str, network: Any) -> Any:
    from unmask.runtime.builders import build

    with torch.device("meta"):
        return build(composed(name).eval.classifier)(backbone=network, num_classes=1000)


def test_published_settings_that_no_count_shows() -> None:
    mae, simmim = composed("mae_vit-base_4096b-800e_in1k-224px"), composed("simmim_swin-base_2048b-100e_in1k-192px")
    assert (mae.optimizer.betas, simmim.optimizer.betas) == ([0.9, 0.95], [0.9, 0.999])
    assert mae.optimizer.weight_decay == simmim.optimizer.weight_decay == 0.05
    assert (mae.trainer.gradient_clip_val, simmim.trainer.gradient_clip_val) == (None, 5.0)
    assert mae.method.norm_pix_loss
    for name in (name for name in EVALUATIONS if "mae_linear" in name or "mm_linear" in name):
        config = composed(name)
        assert (config.optimizer._target_, config.optimizer.weight_decay) == ("unmask.optim.lars.LARS", 0.0)
        assert config.eval._target_ == "unmask.evaluation.frozen.Frozen"
    simmim_probe = composed("simmim_linear_vit-base_1024b-90e_in1k-224px").eval
    assert (simmim_probe.layers, simmim_probe.pools) == ([8], ["mean"])
    swin_v2 = composed("simmim_swinv2-base_2048b-800e_in1k-192px")
    assert (swin_v2.method.normalize_window, swin_v2.model.drop_path_rate) == (47, 0.1)
    for name in (name for name in EVALUATIONS if "_finetune_" in name and not name.startswith("ddmim-v9")):
        config = composed(name)
        assert (config.eval.classifier.mixup, config.eval.classifier.cutmix) == (0.8, 1.0)
        assert config.eval.classifier.label_smoothing == 0.1
        assert config.augmentation.rand_augment == "rand-m9-mstd0.5-inc1"
        assert config.augmentation.random_erasing_prob == (0.0 if name.startswith("flyegle") else 0.25)
        clips = name.startswith(("simmim", "ddmim"))
        assert config.trainer.gradient_clip_val == (5.0 if clips else None)


def test_evaluation_resizes_and_crops_as_the_sources_do() -> None:
    """Bilinear is what torchvision and mmcv take where a file names nothing."""
    named_nowhere = {name for name in EVALUATIONS if name.startswith(("ddmim-v9", "mae-mm_linear", "flyegle"))}
    for name in (name for name in EVALUATIONS if composed(name).get("interpolation", None) or name in named_nowhere):
        assert composed(name).interpolation == "bilinear"
        assert name in named_nowhere
    for name in ("ddmim-v9_swinv2-tiny_52b-50e_in1k-224px", "ddmim-mae_vit-small_52b-150e_in1k-224px"):
        assert composed(name).data.interpolation == "bilinear"
    larger = composed("mae-mm_finetune_vit-huge_256b-50e_in1k-448px")
    assert (larger.crop_pct, larger.backbone.image_size) == (0.875, 448)
    assert (larger.images_per_device, larger.global_batch_size) == (8, 32 * 8)


def test_ddmim_as_published_has_its_numbers() -> None:
    config = composed("ddmim-v9_swinv2-tiny_52b-50e_in1k-224px")

    assert (config.optimizer.lr, config.optimizer.weight_decay, config.method.weight_decay_policy) == (
        5e-3,
        1e-4,
        "all",
    )
    assert (config.trainer.gradient_clip_val, config.trainer.precision) == (None, "32-true")
    assert (config.data.held_out_per_class, config.augmentation.scale) == (50, [0.08, 1.0])
    assert (config.model.window_size, config.model.drop_path_rate, config.image_size) == (7, 0.1, 224)
    assert (config.method.mask_generator.ratios, config.method.features.weights) == (
        [0.5, 0.5, 0.5, 0.0],
        [1, 1, 1, 0.1],
    )
    assert (config.method.contrast.temperature, config.method.contrast.weight) == (0.05, 1.0)
    assert config.method.contrast.projector.weight_std is None
    assert (config.method.teacher.momentum, config.method.teacher.every_n_steps) == (0.999, 32)


@pytest.mark.parametrize("epochs", [100, 400])
def test_fine_tuning_of_ddmim_as_published_states_its_departures(epochs: int) -> None:
    name = f"ddmim-v9_finetune_60b-{epochs}e_in1k-224px"
    config = composed(name)
    assert (config.seed, config.eval.classifier.weight_decay_policy, config.optimizer.weight_decay) == (
        3407,
        "all",
        0.01,
    )
    assert "first layer is new" in facts(name)["Differs"]
    assert "epoch=48_val_loss=0.04" in facts("ddmim-v9_finetune_60b-100e_in1k-224px")["Source"]


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text()))
