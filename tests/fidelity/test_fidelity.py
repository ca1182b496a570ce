"""Every hyper-parameter of every published recipe against its source; nothing here is trained.

`published.yaml` beside this file holds what the sources say. What a recipe has is read off its composed configuration;
rates are compared with the source's scheduler, written out anew below. A difference needs a reason in the file, and a
reason a difference. `python tests/fidelity/test_fidelity.py` writes the table, docs/fidelity.md.
"""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "conf" / "experiment"
PAGE = ROOT / "docs" / "fidelity.md"
FAMILIES: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())["families"]
FAMILY_OF = {recipe: family for family, content in FAMILIES.items() for recipe in content["recipes"]}
NOT_STATED = "not stated"
STEPS_PER_EPOCH = 40  # of the rates that are compared; as many as divide the shortest warm-up and all milestones
STEM = 0.01  # of the head's rate: that of a second group of parameters

Config = DictConfig
Fact = Callable[[Config], Any]


def comment_of(recipe: str) -> dict[str, str]:
    """What the comment of a recipe says under Source, Published and Differs."""
    comment = re.match(r"(?:#.*\n)*", (EXPERIMENTS / f"{recipe}.yaml").read_text())[0]  # type: ignore[index]
    return dict(re.findall(r"^# (Source|Published|Differs): (.*)$", re.sub(r"\n#   ", " ", comment), flags=re.M))


PUBLISHED = [
    path.stem for path in sorted(EXPERIMENTS.glob("*.yaml")) if not comment_of(path.stem)["Source"].startswith("ours")
]


@functools.cache
def composed(recipe: str) -> Config:
    from unmask.runtime.config import compose_config

    is_evaluation = "python eval.py" in (EXPERIMENTS / f"{recipe}.yaml").read_text()
    more = ["ckpt_path=x"] if is_evaluation else []
    name = "eval" if is_evaluation else "run"
    return compose_config(name, [f"experiment={recipe}", "paths.run_dir=x", *more])


# What a recipe has, by hyper-parameter, in the words of published.yaml.


def number(value: float) -> str:
    return f"{value:g}"


def image_size(config: Config) -> int:
    return int(config.image_size)


def network(config: Config) -> str:
    window = config.model.get("window_size")
    padded = ", small maps padded" if config.model.get("always_partition") else ""
    return f"{config.model.name}{'' if window is None else f', window {window}'}{padded}"


def decoder(config: Config) -> str:
    chosen = config.method.get("decoder")
    if chosen is None:
        return "one linear layer"
    return f"{chosen.embed_dim} wide, {chosen.depth} blocks, {chosen.num_heads} heads"


def masked_patch(config: Config) -> str:
    generator = config.method.mask_generator
    drawn = ", each by a draw of its own" if generator.get("distribution") == "bernoulli" else ""
    return f"{generator.patch_size} px{drawn}"


def masked(config: Config) -> Any:
    generator = config.method.mask_generator
    return generator.ratio if "ratio" in generator else f"{', '.join(map(number, generator.ratios))} by stage"


def masks(config: Config) -> str:
    return "one a step" if config.method.shared_masks else "one an image"


def target(config: Config) -> str:
    if config.method.get("norm_pix_loss"):
        return "pixels, normalized by patch"
    window = config.method.get("normalize_window")
    return "pixels" if window is None else f"pixels, normalized in {window} px"


def loss_over(config: Config) -> str:
    term = config.method.get("reconstruction")
    mean = config.method.get("reconstruction_mean", "masked") if term is None else term.mean
    return {"masked": "masked pixels", "all": "all pixels, visible ones as 0"}[mean]


def batch(config: Config) -> str:
    devices, rest = divmod(config.global_batch_size, config.images_per_device or config.global_batch_size)
    assert not rest
    return f"{devices} GPU{'s' * (devices > 1)} of {config.images_per_device or config.global_batch_size}"


def last_batch(_: Config) -> str:
    return "left out"  # always: see ImageDataModule.train_dataloader


def optimizer(config: Config) -> str:
    chosen = config.optimizer
    name = chosen._target_.rpartition(".")[2]
    if "betas" in chosen:
        return f"{name}, betas {' and '.join(map(number, chosen.betas))}"
    return f"{name}, momentum {chosen.momentum:g}, trust {chosen.trust:g}"


def decayed(config: Config) -> str:
    trained = config.eval.classifier if "eval" in config else config.method
    return {
        "weights": "matrices and kernels",
        "tokens": "matrices, kernels, class and mask token",
        "position_bias": "matrices, kernels and relative positions",
        "mask_token_and_position_bias": "matrices, kernels, mask token and relative positions",
        "all": "everything",
    }[trained.weight_decay_policy]


def gradient_clipping(config: Config) -> Any:
    limit = config.trainer.get("gradient_clip_val")
    return "none" if limit is None else limit


def crop(config: Config) -> str:
    chosen = config.augmentation
    attempts = "one draw" if "SingleDraw" in chosen._target_ else "ten attempts"
    smallest, largest = chosen.scale
    return f"{smallest:g} to {largest:g} of the area, {attempts}, {chosen.interpolation}"


def distortion(config: Config) -> str:
    return config.augmentation.rand_augment or "none"


def precision(config: Config) -> str:
    written = str(config.trainer._get_node("precision")._value())
    return "float32" if written == "32-true" else "bfloat16 where the device has it"


def resize(config: Config) -> str:
    """Of the test images; the side and the crop of a source of image files unless the recipe has others."""
    named = re.search(r"-(\d+)px", config.name)
    side = config.backbone.image_size or (int(named[1]) if named else 224)
    return f"{int(side / (config.crop_pct or 0.875))} px, {config.interpolation or 'bicubic'}"


def resize_in_validation(config: Config) -> str:
    return f"{int(config.image_size / config.data.get('crop_pct', 0.875))} px, {config.data.interpolation}"


def mixing(config: Config) -> str:
    return f"{config.eval.classifier.mixup:g} and {config.eval.classifier.cutmix:g}"


def head(config: Config) -> str:
    name, std = config.head._target_.rpartition(".")[2], config.head.get("weight_std")
    if name == "BatchNormMLPClassifier":
        return "linear, batch norm, linear, GELU, linear"
    return f"{'batch norm, ' * name.startswith('BatchNorm')}linear, deviation {std:g}" if std else name


def probed_features(config: Config) -> str:
    return {"auto": "class token"}.get(config.eval.classifier.pool, config.eval.classifier.pool)


def stage_features(config: Config) -> str:
    chosen = config.method.features
    as_they_are = {"none": "as they are", "layernorm": "normalized"}[chosen.norm]
    return f"weighted {', '.join(map(number, chosen.weights))}, {as_they_are}"


def contrast(config: Config) -> str:
    chosen = config.method.contrast
    more = ", one more logit of 0" if chosen.extra_zero_logit else ""
    return f"weighted {chosen.weight:g}, temperature {chosen.temperature:g}{more}"


def projector(config: Config) -> str:
    chosen = config.method.contrast.projector
    drawn = "drawn as torch does" if chosen.weight_std is None else f"deviation {chosen.weight_std:g}"
    return f"{chosen.representation_features}, {chosen.hidden_features}, {chosen.out_features}, {drawn}"


def teacher(config: Config) -> str:
    chosen = config.method.teacher
    scope = {"stages": "stages alone", "all": "all of it"}[chosen.scope]
    drops = ", drops paths" if chosen.is_stochastic else ""
    return f"{chosen.momentum:g} every {chosen.every_n_steps} steps, {scope}{drops}"


ALWAYS: dict[str, Fact] = {
    "batch": batch,
    "last batch": last_batch,
    "optimizer": optimizer,
    "peak rate": lambda config: config.optimizer.lr,
    "weight decay": lambda config: config.optimizer.weight_decay,
    "gradient clipping": gradient_clipping,
    "crop": crop,
    "distortion": distortion,
    "precision": precision,
}
OF_KIND: dict[str, dict[str, Fact]] = {
    "pre-training": {
        "epochs": lambda config: config.trainer.max_epochs,
        "image size": image_size,
        "network": network,
        "decoder": decoder,
        "masked patch": masked_patch,
        "masked": masked,
        "masks": masks,
        "target": target,
        "loss over": loss_over,
        "drop path": lambda config: config.model.drop_path_rate,
        **ALWAYS,
        "decayed": decayed,
    },
    "fine-tuning": {
        "epochs": lambda config: config.eval.epochs,
        "drop path": lambda config: config.eval.drop_path_rate,
        **ALWAYS,
        "layer decay": lambda config: config.eval.classifier.layer_decay,
        "decayed": decayed,
        "random erasing": lambda config: config.augmentation.random_erasing_prob,
        "mixup and cutmix": mixing,
        "label smoothing": lambda config: config.eval.classifier.label_smoothing,
        "head": head,
        "resize in evaluation": resize,
    },
    "linear probe": {
        "epochs": lambda config: config.eval.epochs,
        **ALWAYS,
        "head": head,
        "features": probed_features,
        "resize in evaluation": resize,
    },
    "cached probe": {
        "epochs": lambda config: config.eval.epochs,
        "batch": lambda config: config.eval.batch_size,
        "features": lambda config: f"block {', '.join(map(str, config.eval.layers))}, {', '.join(config.eval.pools)}",
    },
}
OF_SOME: dict[str, Fact] = {  # compared where a source states them
    "resize in validation": resize_in_validation,
    "stage features": stage_features,
    "contrast": contrast,
    "projector": projector,
    "teacher": teacher,
}


# The sources' schedulers: the rate of a group of parameters whose peak is `peak`, in a run whose highest is `top`.


class Clock(NamedTuple):
    """A moment of a run."""

    step: int
    epochs: int  # of the run

    @property
    def epoch(self) -> float:
        return self.step / STEPS_PER_EPOCH


def half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def mae(now: Clock, peak: float, top: float, *, warmup: int, floor: float) -> float:
    """util/lr_sched.py: one rate for all, then multiplied by the group's scale."""
    if now.epoch < warmup:
        return peak * now.epoch / warmup
    return peak / top * (floor + (top - floor) * half_cosine((now.epoch - warmup) / (now.epochs - warmup)))


def timm_cosine(now: Clock, peak: float, _: float, *, start: float, warmup: int, floor: float) -> float:
    """timm's CosineLRScheduler without warmup_prefix: the cosine counts from step 0; start and floor are rates."""
    if now.epoch < warmup:
        return start + (peak - start) * now.epoch / warmup
    return floor + (peak - floor) * half_cosine(now.epoch / now.epochs)


def timm_multistep(now: Clock, peak: float, _: float, *, start: float, warmup: int, milestones: list[int]) -> float:
    """SimMIM's lr_scheduler.py."""
    if now.epoch < warmup:
        return start + (peak - start) * now.epoch / warmup
    return peak * 0.1 ** sum(now.epoch >= milestone for milestone in milestones)


def mmengine_warmup(now: Clock, peak: float, *, start_factor: float, warmup: int) -> float:
    """LinearLR spans `end - begin - 1` steps."""
    return peak * (start_factor + (1 - start_factor) * now.step / (warmup * STEPS_PER_EPOCH - 1))


def mmengine_cosine(
    now: Clock, peak: float, _: float, *, start_factor: float, warmup: int, floor: float, t_max: int | None = None
) -> float:
    if now.epoch < warmup:
        return mmengine_warmup(now, peak, start_factor=start_factor, warmup=warmup)
    length = now.epochs - warmup if t_max is None else t_max
    return floor + (peak - floor) * half_cosine((now.epoch - warmup) / length)


def mmengine_multistep(
    now: Clock, peak: float, _: float, *, start_factor: float, warmup: int, milestones: list[int]
) -> float:
    """MultiStepLR counts its milestones from where it begins, the end of the warm-up."""
    if now.epoch < warmup:
        return mmengine_warmup(now, peak, start_factor=start_factor, warmup=warmup)
    return peak * 0.1 ** sum(now.epoch - warmup >= milestone for milestone in milestones)


def flyegle(now: Clock, peak: float, _: float, *, warmup: int) -> float:
    """cosine_learning_rate of train_mae.py."""
    if now.epoch < warmup:
        return peak * ((now.step + 1) / (warmup * STEPS_PER_EPOCH) + 1e-6)
    return peak * half_cosine(now.step / ((now.epochs - warmup) * STEPS_PER_EPOCH))


def torch_step(now: Clock, peak: float, _: float, *, every: int) -> float:
    return peak * 0.1 ** (int(now.epoch) // every)


def torch_restarts(now: Clock, peak: float, _: float, *, first: int, factor: int, floor: float) -> float:
    epoch, length = int(now.epoch), first
    while epoch >= length:
        epoch, length = epoch - length, length * factor
    return floor + (peak - floor) * half_cosine(epoch / length)


def hf_linear(now: Clock, peak: float, _: float) -> float:
    return peak * (1 - now.epoch / now.epochs)


SCHEDULERS: dict[str, Callable[..., float]] = {
    scheduler.__name__: scheduler
    for scheduler in (
        mae,
        timm_cosine,
        timm_multistep,
        mmengine_cosine,
        mmengine_multistep,
        flyegle,
        torch_step,
        torch_restarts,
        hf_linear,
    )
}

Rate = Callable[[int, float], float]
"""(step, peak of the group over the highest) -> rate."""


def published_rate(facts: Mapping[str, Any]) -> Rate:
    settings = dict(facts["rates"])
    scheduler, top, epochs = SCHEDULERS[settings.pop("scheduler")], facts["peak rate"], facts["epochs"]
    return lambda step, part: scheduler(Clock(step, epochs), part * top, top, **settings)


def our_rate(config: Config, epochs: int) -> Rate:
    from unmask.runtime.builders import build

    schedule = config.eval.classifier.schedule if "eval" in config else config.method.schedule
    top = config.optimizer.lr
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1, 1))], "lr": part * top} for part in (1.0, STEM)]
    made = build(schedule)(
        build(config.optimizer)(groups), total_steps=epochs * STEPS_PER_EPOCH, steps_per_epoch=STEPS_PER_EPOCH
    )
    factors = dict(zip((1.0, STEM), made.lr_lambdas, strict=True))
    return lambda step, part: part * top * factors[part](step)


def compared_steps(epochs: int) -> list[int]:
    """The first and the last step, those around whole tenths of the run and around what warm-ups and milestones are."""
    turns = {epochs * tenth // 10 for tenth in range(11)} | {5, 10, 20, 40, 700, 710}
    near = {turn * STEPS_PER_EPOCH + shift for turn in turns for shift in (-1, 0, 1)}
    return sorted(step for step in near if 0 <= step < epochs * STEPS_PER_EPOCH)


def same_rates(theirs: Rate, ours: Rate, *, epochs: int, has_layers: bool) -> bool:
    return all(
        math.isclose(theirs(step, part), ours(step, part), rel_tol=1e-6, abs_tol=1e-15)
        for part in ((1.0, STEM) if has_layers else (1.0,))
        for step in compared_steps(epochs)
    )


def shown_rates(rate: Rate, epochs: int, *, has_layers: bool) -> str:
    last = epochs * STEPS_PER_EPOCH - 1
    head_rates = " … ".join(f"{rate(step, 1.0):.3g}" for step in (0, epochs * STEPS_PER_EPOCH // 2, last))
    if not has_layers:
        return head_rates
    return f"{head_rates}; at a hundredth of its peak {rate(0, STEM):.3g} … {rate(last, STEM):.3g}"


# The table.


class Row(NamedTuple):
    """One hyper-parameter of one recipe."""

    recipe: str
    parameter: str
    source: str
    ours: str
    why: str
    differs: bool


def plain(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def is_same(source: Any, ours: Any) -> bool:
    if isinstance(source, int | float) and isinstance(ours, int | float):
        return math.isclose(source, ours, rel_tol=1e-9)
    return bool(source == ours)


def facts_of(recipe: str) -> dict[str, Any]:
    family = FAMILIES[FAMILY_OF[recipe]]
    own = {key: value for key, value in family["recipes"][recipe].items() if key != "why"}
    return {**family["facts"], **own}


def reasons_of(recipe: str) -> dict[str, str]:
    family = FAMILIES[FAMILY_OF[recipe]]
    return {**family.get("why", {}), **family["recipes"][recipe].get("why", {})}


@functools.cache
def rows_of(recipe: str) -> tuple[Row, ...]:
    return tuple(_rows_of(recipe))


def _rows_of(recipe: str) -> Iterator[Row]:
    family, facts, reasons = FAMILIES[FAMILY_OF[recipe]], facts_of(recipe), reasons_of(recipe)
    config, not_stated = composed(recipe), family.get("not_stated", [])
    compared = OF_KIND[family["kind"]] | {name: fact for name, fact in OF_SOME.items() if name in facts}
    for parameter, read in compared.items():
        if parameter in family.get("not_compared", {}):
            continue
        ours = read(config)
        if parameter in not_stated or (parameter not in facts and "rest" in not_stated):
            yield Row(recipe, parameter, NOT_STATED, plain(ours), "", differs=False)
            continue
        differs = not is_same(facts[parameter], ours)
        why = reasons.get(parameter, "") if differs else ""
        yield Row(recipe, parameter, plain(facts[parameter]), plain(ours), why, differs)
    if "rates" in facts:
        yield _rates_row(recipe, config, facts, reasons)


def _rates_row(recipe: str, config: Config, facts: Mapping[str, Any], reasons: Mapping[str, str]) -> Row:
    epochs, has_layers = facts["epochs"], FAMILIES[FAMILY_OF[recipe]]["kind"] == "fine-tuning"
    theirs, ours = published_rate(facts), our_rate(config, epochs)
    differs = not same_rates(theirs, ours, epochs=epochs, has_layers=has_layers)
    shown = [shown_rates(rate, epochs, has_layers=has_layers) for rate in (theirs, ours)]
    why = reasons.get("rates", "") if differs else ""
    return Row(recipe, "rates", f"{facts['rates']['scheduler']}: {shown[0]}", shown[1], why, differs)


def collapsed(rows: list[Row], num_recipes: int) -> Iterator[str]:
    """Lines of a family's table: one for all recipes that have a value in common."""
    for parameter in dict.fromkeys(row.parameter for row in rows):
        values: dict[tuple[str, str, str], list[str]] = {}
        for row in rows:
            if row.parameter == parameter:
                values.setdefault((row.source, row.ours, row.why), []).append(row.recipe)
        for (source, ours, why), recipes in values.items():
            named = "all" if len(recipes) == num_recipes else ", ".join(f"`{recipe}`" for recipe in recipes)
            yield f"| {parameter} | {named} | {source} | {ours} | {why} |"


def page() -> str:
    every = [row for recipe in PUBLISHED for row in rows_of(recipe)]
    stated = [row for row in every if row.source != NOT_STATED]
    lines = [
        "# Recipes and their sources",
        "",
        "Written by `python tests/fidelity/test_fidelity.py`, which holds every published recipe of `conf/experiment/` "
        "to what its source says (`tests/fidelity/published.yaml`): a difference without a reason fails the tests, and "
        "so does a reason without a difference. Settings are read off the composed configuration. Rates are compared "
        "step by step with the source's scheduler, written out anew, and in fine-tuning for two depths; the table "
        "shows those of the first, the middle and the last step, of a run of 40 steps an epoch.",
        "",
        f"{len(PUBLISHED)} recipes, {len(stated)} hyper-parameters that a source states, of which "
        f"{sum(row.differs for row in stated)} differ, in the ways listed first.",
        "",
        "## What differs, and why",
        "",
        "| recipes | hyper-parameter | source | ours | why |",
        "|---|---|---|---|---|",
        *_difference_lines(),
    ]
    for family, content in FAMILIES.items():
        rows = [row for recipe in content["recipes"] for row in rows_of(recipe)]
        lines += ["", f"## {family}", "", f"Source: {content['source']}.", ""]
        lines += ["| hyper-parameter | recipes | source | ours | why |", "|---|---|---|---|---|"]
        lines += collapsed(rows, len(content["recipes"]))
    return "\n".join(lines) + "\n"


def _difference_lines() -> Iterator[str]:
    for family, content in FAMILIES.items():
        differing = [row for recipe in content["recipes"] for row in rows_of(recipe) if row.differs]
        for line in collapsed(differing, len(content["recipes"])):
            _, parameter, named, *rest = line.split(" | ")[0].split("| ") + line.split(" | ")[1:]
            yield f"| {family if named == 'all' else named} | {parameter} | {' | '.join(rest)}"
        for unseen in content.get("unseen", []):
            yield f"| {family} | {unseen['what']} | {unseen['source']} | {unseen['ours']} | {unseen['why']} |"


def test_every_published_recipe_is_in_the_table_and_no_other() -> None:
    assert sorted(FAMILY_OF) == sorted(PUBLISHED)
    assert sum(len(content["recipes"]) for content in FAMILIES.values()) == len(PUBLISHED)


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_recipe_is_as_its_source_or_says_why_not(recipe: str) -> None:
    rows = rows_of(recipe)
    without_reason = [row for row in rows if row.differs and not row.why]
    assert not without_reason
    differing = {row.parameter for row in rows if row.differs}
    own_reasons = FAMILIES[FAMILY_OF[recipe]]["recipes"][recipe].get("why", {})
    assert set(own_reasons) <= differing, "a reason without a difference"


@pytest.mark.parametrize("family", FAMILIES)
def test_reasons_and_facts_of_a_family_are_all_used(family: str) -> None:
    content = FAMILIES[family]
    rows = [row for recipe in content["recipes"] for row in rows_of(recipe)]
    assert set(content.get("why", {})) <= {row.parameter for row in rows if row.differs}, (
        "a reason without a difference"
    )
    known = {row.parameter for row in rows} | set(content.get("not_compared", {})) | {"rates"}
    stated = set(content["facts"]).union(*content["recipes"].values()) - {"why"}
    assert stated <= known, "a fact that nothing is compared with"
    assert set(content.get("not_stated", [])) - {"rest"} <= known


EVERYWHERE = {"precision"}  # said once, in docs/recipes.md


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_what_differs_is_said_in_the_file_of_the_recipe(recipe: str) -> None:
    differing = {row.parameter for row in rows_of(recipe) if row.differs} - EVERYWHERE
    if differing:
        assert "Differs" in comment_of(recipe), differing
    if "last batch" in differing:
        assert "smaller batch of an epoch is left out" in comment_of(recipe)["Differs"]


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text() == page(), "run `python tests/fidelity/test_fidelity.py` to write the page anew"


@pytest.mark.parametrize(
    ("recipe", "key", "value", "parameter"),
    [
        ("simmim-mm_swin-base_2048b-800e_in1k-192px", "schedule.milestones", [700.0], "rates"),
        ("mae-mm_vit-base_4096b-800e_in1k-224px", "schedule.start_factor", 1e-4, "rates"),
        ("simmim_finetune_swin-base_2048b-100e_in1k-224px", "eval.classifier.schedule.shared_floor", False, "rates"),
        ("mae-mm_finetune_vit-huge_256b-50e_in1k-448px", "crop_pct", 1.0, "resize in evaluation"),
        ("simmim_vit-base_2048b-800e_in1k-224px", "method.weight_decay_policy", "weights", "decayed"),
        ("ddmim-v9_swinv2-tiny_52b-50e_in1k-224px", "method.contrast.projector.weight_std", 0.02, "projector"),
    ],
)
def test_a_setting_that_goes_astray_is_seen(recipe: str, key: str, value: Any, parameter: str, monkeypatch) -> None:
    astray = composed(recipe).copy()
    OmegaConf.update(astray, key, value, merge=False)
    monkeypatch.setitem(globals(), "composed", lambda _: astray)
    (row,) = [row for row in _rows_of(recipe) if row.parameter == parameter]
    assert row.differs


if __name__ == "__main__":
    PAGE.write_text(page())
