"""The configuration files: every choice of every group composes and its parts can be built."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).parents[1] / "conf"


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(name: str, *overrides: str) -> DictConfig:
    from unmask.runtime.config import compose_config  # noqa: PLC0415

    return compose_config(name, overrides)


@pytest.mark.parametrize("model", choices("model"))
@pytest.mark.parametrize("image_size", [32, 64, 224])
def test_every_model_fits_small_and_usual_images(model: str, image_size: int) -> None:
    import torch  # noqa: PLC0415

    from unmask.runtime.builders import build  # noqa: PLC0415

    config = composed("run", f"model={model}", f"image_size={image_size}")
    with torch.device("meta"):
        patch_size, stride = config.model.patch_size, _first_stride(build(config.model))

    assert stride == patch_size
    assert image_size % patch_size == 0


def _first_stride(backbone: object) -> int:
    return backbone.stages[0].stride  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "image_size", "ratios", "weights", "patch_size"),
    [
        ("swinv2_tiny", 224, [0.5, 0.5, 0.5, 0.0], [1.0, 1.0, 1.0, 0.1], 16),  # as published but for the patches
        ("swinv2_tiny", 64, [0.5, 0.5, 0.5, 0.0], [1.0, 1.0, 1.0, 0.1], 16),  # two cells of 8 px of the third stage
        ("swinv2_mini", 32, [0.5, 0.0], [1.0, 0.1], 8),
        ("vit_mini", 32, [0.5, 0.5, 0.0], [1.0, 1.0, 0.1], 8),
        ("vit_mini", 96, [0.5, 0.5, 0.0], [1.0, 1.0, 0.1], 24),
    ],
)
def test_stages_of_ddmim_follow_the_backbone(
    model: str, image_size: int, ratios: list[float], weights: list[float], patch_size: int
) -> None:
    config = composed("run", "method=ddmim", f"model={model}", f"image_size={image_size}")

    assert list(config.method.mask_generator.ratios) == ratios
    assert list(config.method.features.weights) == weights
    assert config.method.mask_generator.patch_size == patch_size


@pytest.mark.parametrize("method", choices("method"))
@pytest.mark.parametrize("model", ["vit_mini", "swin_mini"])
def test_every_partial_of_a_method_completes(method: str, model: str) -> None:
    from unmask.runtime.builders import build, build_module  # noqa: PLC0415

    if (method, model) == ("ddmim_sparse", "vit_mini"):
        pytest.skip("needs a Swin; tests/methods/test_ddmim_sparse.py holds the refusal")
    config = composed("run", f"method={method}", f"model={model}", "data.num_train=20", "data.num_val=2")
    module = build_module(config.method, build(config.data))

    groups = [{"params": list(module.parameters())}]
    optimizer = module.optimizer_factory(groups)
    schedule = module.schedule_factory(optimizer, total_steps=100, steps_per_epoch=10)
    assert optimizer.defaults["lr"] == pytest.approx(config.base_lr * 256 / config.base_batch_size)
    assert schedule.get_last_lr()[0] < optimizer.defaults["lr"]  # warm-up begins below the peak


@pytest.mark.parametrize("optimizer", choices("optimizer"))
@pytest.mark.parametrize("schedule", choices("schedule"))
def test_any_optimizer_goes_with_any_schedule(optimizer: str, schedule: str) -> None:
    import torch  # noqa: PLC0415

    from unmask.runtime.builders import build  # noqa: PLC0415

    config = composed("run", f"optimizer={optimizer}", f"schedule={schedule}")
    built = build(config.optimizer)([torch.nn.Parameter(torch.zeros(2, 2))])
    build(config.schedule)(built, total_steps=100, steps_per_epoch=10)


@pytest.mark.parametrize("group", ["trainer", "strategy", "logger", "callbacks", "data", "debug"])
def test_every_choice_of_a_group_composes_without_a_missing_link(group: str) -> None:
    for choice in choices(group):
        config = composed("run", f"{group}={choice}", "name=x", "paths.run_dir=x")
        for key in config.data:
            if OmegaConf.is_missing(config.data, key):
                config.data[key] = "somewhere"
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def test_ddmim_brings_the_backbone_it_was_published_with() -> None:
    assert composed("run", "method=ddmim", "data=imagenet", "data.root=x").model.name == "swinv2_tiny_window8_256"
    assert composed("run", "method=ddmim", "model=swin_tiny").model.name == "swin_tiny_patch4_window7_224"


def test_every_argument_of_lightnings_trainer_is_a_key() -> None:
    from lightning import Trainer  # noqa: PLC0415

    assert {*inspect.signature(Trainer.__init__).parameters} - {"self"} <= {*composed("run").trainer}


def test_ddmim_takes_a_vit_where_the_image_is_whole_units_and_names_such_a_size_elsewhere() -> None:
    import torch  # noqa: PLC0415

    from unmask.runtime.builders import build, build_module  # noqa: PLC0415

    small = ["model.embed_dim=24", "model.num_heads=3", "model.depth=4", "data.num_train=8", "data.num_val=2"]
    for size, refusal in ((256, None), (224, "224x224 px images are not whole 64 px patches; use 256x256 px images")):
        config = composed("run", "method=ddmim", "model=vit_tiny", f"image_size={size}", *small)
        if refusal is not None:
            with pytest.raises(Exception, match=refusal):
                build_module(config.method, build(config.data))
            continue
        method = build_module(config.method, build(config.data))
        images = torch.zeros(2, 3, size, size)
        mask = method.draw_masks(images)
        masked = [stage.masked for stage in mask.by_stage if stage is not None]
        assert [float(stage.float().mean()) for stage in masked] == [0.5, 0.5, 0.5]
        assert method(images, mask).loss.isfinite()


FEATURES = "{_target_:unmask.methods.ddmim_terms.StageFeatureTerm,_partial_:true,weights:[0.3,0.03]}"


@pytest.mark.parametrize(
    ("ablation", "terms"),
    [
        ([], {"reconstruction": 5.0, "contrastive": 1.0}),
        (["method.contrast=null", "method.teacher=null"], {"reconstruction": 5.0}),
        (["method.reconstruction=null"], {"contrastive": 1.0}),
        (
            ["method.teacher.time_constant=null", "method.teacher.momentum=0"],
            {"reconstruction": 5.0, "contrastive": 1.0},
        ),
        (["method.teacher.time_constant=3e4"], {"reconstruction": 5.0, "contrastive": 1.0}),
        (
            [f"method.features={FEATURES}"],
            {"reconstruction": 5.0, "feature_stage_0": 0.3, "feature_stage_1": 0.03, "contrastive": 1.0},
        ),
    ],
)
def test_every_row_of_the_ablation_of_ddmim_is_a_matter_of_overrides(
    ablation: list[str], terms: dict[str, float]
) -> None:
    from unmask.runtime.builders import build  # noqa: PLC0415

    config = composed("run", "experiment=ddmim_cifar10", "data.root=x", *ablation)
    assert build(config.method).weights == terms


def test_a_setting_of_a_term_that_is_off_is_refused() -> None:
    with pytest.raises(Exception, match="features"):
        composed("run", "experiment=ddmim_cifar10", "method.features.norm=none")
    with pytest.raises(Exception, match="contrast"):
        composed("run", "method=ddmim", "method.contrast=null", "method.contrast.temperature=0.1")


@pytest.mark.parametrize("protocol", choices("eval"))
def test_every_evaluation_can_be_built(protocol: str) -> None:
    from unmask.runtime.builders import build  # noqa: PLC0415

    config = composed("eval", f"eval={protocol}", "ckpt_path=x", "paths.run_dir=x")
    if protocol == "embed":
        config.eval.out = "x"  # which a user must name
    evaluator = build(config.eval)
    kinds = [kind for kind in ("evaluate", "evaluate_module", "run") if hasattr(evaluator, kind)]
    assert len(kinds) == 1 or (not kinds and len(evaluator.protocols) > 1)


def test_a_misspelled_key_is_refused_not_added() -> None:
    with pytest.raises(Exception, match="max_epoch"):
        composed("run", "trainer.max_epoch=3")


def test_methods_change_what_their_papers_change() -> None:
    mae, simmim = composed("run", "method=mae"), composed("run", "method=simmim", "model=swin_mini")

    assert (mae.base_lr, mae.base_batch_size, mae.optimizer.betas) == (1.5e-4, 256, [0.9, 0.95])
    assert (simmim.base_lr, simmim.base_batch_size, simmim.optimizer.betas) == (2e-4, 512, [0.9, 0.999])
    assert (mae.trainer.gradient_clip_val, simmim.trainer.gradient_clip_val) == (None, 5.0)
    assert (mae.augmentation.scale, simmim.augmentation.scale) == ([0.2, 1.0], [0.67, 1.0])


FILES = sorted(CONF.rglob("*.yaml"))


def restated_defaults(node: Any, plain: Any, lines: list[str]) -> Iterator[str]:
    """Lines without a comment whose value is what the constructor of their node takes anyway."""
    from unmask.runtime.constructor_defaults import constructor_defaults  # noqa: PLC0415

    if isinstance(node, yaml.SequenceNode):
        for inner, value in zip(node.value, plain, strict=True):
            yield from restated_defaults(inner, value, lines)
    if isinstance(node, yaml.MappingNode):
        defaults = constructor_defaults(str(plain.get("_target_")))
        for key, inner in node.value:
            value = plain[key.value]
            line = lines[key.start_mark.line]
            is_default = key.value in defaults and defaults[key.value] == value
            if is_default and type(value) is type(defaults[key.value]) and "#" not in line:
                yield line.strip()
            yield from restated_defaults(inner, value, lines)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CONF)) for path in FILES])
def test_a_file_restates_no_default_unless_it_says_whose_choice_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)

    assert list(restated_defaults(yaml.compose(text), plain, text.splitlines())) == []


def test_a_restated_default_is_found() -> None:
    text = """
thing:
  _target_: torch.optim.SGD
  momentum: 0
  nesterov: false # as its paper
  weight_decay: 0.1
"""
    assert list(restated_defaults(yaml.compose(text), yaml.safe_load(text), text.splitlines())) == ["momentum: 0"]


RUNS = [
    name for name in choices("experiment") if "python eval.py" not in (CONF / f"experiment/{name}.yaml").read_text()
]


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"data={name}", "method=ddmim", "image_size=64"] for name in choices("data")),
        *([f"model={name}", "global_batch_size=8", "seed=5"] for name in choices("model")),
        *([f"experiment={name}"] for name in RUNS),
    ],
    ids=lambda overrides: overrides[0],
)
def test_no_value_that_stands_in_two_places_differs(overrides: list[str]) -> None:
    config = composed("run", *overrides)

    for key in ("image_size", "global_batch_size", "seed"):
        assert config.data[key] == config[key], key
    assert config.model.image_size == config.image_size
    assert config.model.in_channels == config.data.channels
    assert (config.model.pixel_mean, config.model.pixel_std) == (config.data.pixel_mean, config.data.pixel_std)
    if "seed" in config.method:
        assert config.method.seed == config.seed


@pytest.mark.parametrize("path", [*(CONF / "experiment").glob("*.yaml"), *(CONF / "base").glob("*in1k.yaml")])
def test_an_experiment_leaves_what_only_its_source_of_images_has_to_a_choice_of_data(path: Path) -> None:
    assert "data" not in yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("quickstart", 32),
        ("mae_cifar10", 32),
        ("ddmim_cifar10", 32),
        ("mae_vit-base_4096b-800e_in1k-224px", 224),
        ("flyegle-mae_vit-base_2048b-400e_in1k-224px", 224),
        ("simmim_swin-base_2048b-100e_in1k-192px", 192),
        ("ddmim-v9_swinv2-tiny_52b-50e_in1k-224px", 224),
        ("mae_doges", 224),
    ],
)
@pytest.mark.parametrize("source", ["folder", "cifar10"])
def test_an_experiment_takes_images_of_any_source_at_its_own_size(name: str, image_size: int, source: str) -> None:
    config = composed("run", f"experiment={name}", f"data={source}", "data.root=x")

    assert (config.image_size, config.data.image_size, config.model.image_size) == (image_size,) * 3
