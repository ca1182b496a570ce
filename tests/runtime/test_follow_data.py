"""Settings that follow the number of training images, and those that do not."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from unmask.data.datamodule import ImageDataModule
from unmask.runtime.builders import build
from unmask.runtime.config import compose_config, list_experiments
from unmask.runtime.follow_data import (
    advice_on_length,
    announce_length,
    describe_followed,
    follow_training_images,
    is_following,
    tell_rules,
)
from unmask.small_sets import peak_lr_for

IMAGENET = 1_281_167
CONF = Path(__file__).parents[2] / "conf"
TRAININGS = [
    name
    for name in list_experiments()
    if "python eval.py" not in (CONF / f"experiment/{name}.yaml").read_text(encoding="utf-8")
]


def composed(*overrides: str, images: int | None = None, width: int = 128) -> DictConfig:
    config = compose_config("run", ["name=x", "paths.run_dir=x", *overrides])
    if images is not None and is_following(config):
        tell_rules(config, num_train_images=images, backbone_width=width)
    return config


def resolved(config: DictConfig) -> Any:
    for key in config.data:
        if OmegaConf.is_missing(config.data, key):
            config.data[key] = "x"
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return {key: value for key, value in plain.items() if key not in ("num_train_images", "backbone_width")}


@pytest.mark.parametrize("method", ["mae", "simmim", "ddmim", "ddmim_sparse"])
@pytest.mark.parametrize(
    ("images", "batch", "epochs"),
    [(50, 16, 1000), (200, 16, 250), (1000, 16, 49), (9000, 128, 43), (50_000, 128, 10), (IMAGENET, 256, 10)],
)
def test_batch_length_and_rate_follow_the_images(method: str, images: int, batch: int, epochs: int) -> None:
    config = composed(f"method={method}", images=images)
    published = composed(f"method={method}").base_lr * 256 / composed(f"method={method}").base_batch_size

    assert (config.global_batch_size, config.data.global_batch_size) == (batch, batch)
    assert config.trainer.max_epochs == epochs
    assert config.optimizer.lr == pytest.approx(published if images == IMAGENET else peak_lr_for(batch, 128))
    assert config.schedule.warmup_epochs == pytest.approx(epochs * (0.05 if images == IMAGENET else 0.1), rel=1e-3)


def test_the_teacher_follows_the_images() -> None:
    assert composed("method=ddmim", images=IMAGENET).method.teacher.time_constant == 1.664e6
    assert composed("method=ddmim", images=9000).method.teacher.time_constant == 128 * 12
    assert composed("method=ddmim", images=200_000).method.teacher.time_constant == pytest.approx(128 * 39, rel=0.01)
    longer = composed("method=ddmim", "trainer.max_epochs=400", images=9000)
    assert longer.method.teacher.time_constant == 128 * 12  # or a run could not be continued for longer


def test_ddmims_reconstruction_leads_on_small_sets_alone() -> None:
    weights = {
        images: composed("method=ddmim", images=images).method.reconstruction.weight for images in (50, IMAGENET)
    }
    assert weights == {50: 20.0, IMAGENET: 1.0}
    assert composed("experiment=ddmim-v9_swinv2-tiny_52b-50e_in1k-224px").method.reconstruction.weight == 1.0
    followed = str(describe_followed(composed("method=ddmim", images=9000)))
    assert "method.reconstruction.weight=20, method.reconstruction.normalize_window=" in followed


@pytest.mark.parametrize("method", ["ddmim", "ddmim_sparse"])
def test_the_pixels_of_ddmim_are_normalized_on_small_sets_alone(method: str) -> None:
    chosen = [f"method={method}", "image_size=32", "model=swinv2_mini"]
    few, many = (composed(*chosen, images=images).method.reconstruction for images in (50, IMAGENET))
    assert (few.normalize_window, many.normalize_window) == (17, None)
    stated = composed(*chosen, "method.reconstruction.normalize_window=null", images=50)
    assert stated.method.reconstruction.normalize_window is None
    assert "normalize_window" not in str(describe_followed(stated))


def test_ddmim_starts_with_learned_tokens_and_open_branches_on_small_sets_alone() -> None:
    few, many = (composed("method=ddmim", images=images) for images in (50, IMAGENET))
    assert (few.method.mask_value, many.method.mask_value) == ("learned", "zero")
    assert (few.method.zero_init_residual, many.method.zero_init_residual) == (False, True)
    assert "method.mask_value=learned, method.zero_init_residual=false" in str(describe_followed(few))
    assert composed("method=ddmim", "method.mask_value=zero", images=50).method.zero_init_residual  # or it were refused


def test_simmims_targets_are_normalized_and_its_branches_open_on_small_sets_alone() -> None:
    few, many = (composed("method=simmim", images=images) for images in (50, IMAGENET))
    assert (few.method.normalize_window, many.method.normalize_window) == (17, None)  # of 32 px
    assert (few.method.zero_init_residual, many.method.zero_init_residual) == (False, True)
    assert "method.zero_init_residual=false, method.normalize_window=17" in str(describe_followed(few))
    assert composed("method=simmim", "method.normalize_window=null", images=50).method.normalize_window is None
    published = composed("experiment=simmim_cifar10", "data.root=x", images=50).method
    assert (published.normalize_window, published.zero_init_residual) == (None, True)


@pytest.mark.parametrize("method", ["mae", "simmim", "ddmim", "ddmim_sparse"])
def test_without_the_images_counted_nothing_changes(method: str) -> None:
    assert resolved(composed(f"method={method}")) == resolved(composed(f"method={method}", images=IMAGENET))


EXPLICIT = {
    "global_batch_size": "48",
    "trainer.max_epochs": "7",
    "base_lr": "0.5",
    "schedule.warmup_epochs": "0.25",
    "method.teacher.time_constant": "77.0",
    "method.reconstruction.weight": "3.0",
    "method.mask_value": "zero",
    "method.zero_init_residual": "true",
}


@pytest.mark.parametrize("images", [50, 9000, IMAGENET])
@pytest.mark.parametrize("name", EXPLICIT)
def test_what_the_user_states_wins(name: str, images: int) -> None:
    config = composed("method=ddmim", f"{name}={EXPLICIT[name]}", images=images)

    assert OmegaConf.select(config, name) == yaml.safe_load(EXPLICIT[name])
    assert name not in str(describe_followed(config))


def test_what_is_not_stated_follows_what_is() -> None:
    config = composed("method=mae", "global_batch_size=32", images=9000)

    assert config.optimizer.lr == pytest.approx(peak_lr_for(32, 128))
    assert config.trainer.max_epochs == 11  # of 281 steps
    steps = composed("method=mae", "trainer.max_steps=100", images=9000)
    assert steps.trainer.max_epochs == 2  # of 70 steps
    assert steps.schedule.warmup_epochs == pytest.approx(10 / 70)
    limited = composed("method=mae", "trainer.max_steps=100", "trainer.limit_train_batches=10", images=9000)
    assert limited.trainer.max_epochs == -1  # or 2 epochs of 10 batches would end it at 20 steps
    endless = composed("method=mae", "trainer.max_epochs=-1", images=9000)
    assert endless.schedule.warmup_epochs == 0.0  # as of any run without an end


@pytest.mark.parametrize("name", TRAININGS)
def test_an_experiment_stays_as_published_on_any_images(name: str) -> None:
    counted = composed(f"experiment={name}", images=9000)

    assert not is_following(counted)
    assert describe_followed(counted) is None
    before = copy.deepcopy(counted)
    tell_rules(before, num_train_images=IMAGENET, backbone_width=768)
    assert resolved(counted) == resolved(before)


def test_an_experiment_may_follow_the_images_in_what_it_leaves_open() -> None:
    config = composed("experiment=mae_vit-tiny_4096b-400e_in1k-224px", "follow_data=true", images=9000)

    assert (config.global_batch_size, config.trainer.max_epochs) == (4096, 400)  # stated
    assert config.base_lr != 1.5e-4


def test_the_images_may_be_left_out_of_it() -> None:
    assert composed("method=mae", "follow_data=false", images=9000).global_batch_size == 256


@pytest.mark.parametrize("stated", [None, True, False])
@pytest.mark.parametrize("names_experiment", [True, False])
def test_an_experiment_does_not_follow_the_images_unless_it_is_said(
    stated: bool | None, names_experiment: bool
) -> None:
    config = composed("method=mae", f"follow_data={str(stated).lower() if stated is not None else 'null'}")

    assert is_following(config, names_experiment=names_experiment) is (
        not names_experiment if stated is None else stated
    )


@pytest.mark.parametrize(("chosen", "follows"), [([], True), (["experiment=mae_cifar10"], False)])
def test_a_job_is_asked_for_its_experiment(chosen: list[str], follows: bool) -> None:
    config = composed("method=mae")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = compose("run", chosen, return_hydra_config=True)
    HydraConfig.instance().set_config(job)
    assert is_following(config) is follows


@pytest.mark.parametrize("name", ["num_train_images", "backbone_width", "train_image_side"])
def test_what_the_program_counts_is_refused_from_the_user(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be set"):
        is_following(composed("method=mae", f"{name}=100"))


def test_data_and_backbone_are_asked() -> None:
    config = composed("method=mae", "data.num_train=100", "data.num_val=2", "model.embed_dim=64")
    data = build(config.data)
    follow_training_images(config, data)

    assert (config.num_train_images, config.backbone_width, config.global_batch_size) == (100, 64, 16)
    assert data.global_batch_size == 16
    assert "global_batch_size=16, trainer.max_epochs=500" in str(describe_followed(config))


def folder_of(path: Path, *sizes: tuple[int, int]) -> list[str]:
    """Writes pictures of (height, width) and a file that is none."""
    for number, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height), (9 * number, 0, 0)).save(path / f"{number}.png")
    (path / "broken.png").write_bytes(b"")
    return ["method=mae", "data=folder", f"data.root={path}"]


def followed(overrides: list[str], *more: str, names_experiment: bool = False) -> tuple[DictConfig, ImageDataModule]:
    config = compose_config("run", ["name=x", "paths.run_dir=x", *overrides, *more])
    data = build(config.data)
    follow_training_images(config, data, names_experiment=names_experiment)
    return config, data


def test_small_images_are_served_at_their_own_size(tmp_path: Path) -> None:
    overrides = folder_of(tmp_path, *[(60, 300)] * 3, *[(200, 66)] * 3, *[(500, 500)] * 2)
    config, data = followed(overrides)

    assert config.train_image_side in {60, 66}
    assert (config.image_size, config.data.image_size, data.image_size) == (64, 64, (64, 64))
    assert config.model.patch_size == 8
    assert str(describe_followed(config)).startswith(f"image_size=64 of images of {config.train_image_side} px; ")


def test_a_named_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    overrides = folder_of(tmp_path, *[(60, 60)] * 8)
    os.mkfifo(tmp_path / "pipe.png")

    assert followed(overrides)[0].image_size == 64


def test_a_size_that_is_stated_is_kept(tmp_path: Path) -> None:
    overrides = folder_of(tmp_path, *[(60, 60)] * 8)

    config, data = followed(overrides, "image_size=48")
    assert (config.image_size, data.image_size, config.train_image_side) == (48, (48, 48), None)
    assert "image_size" not in str(describe_followed(config))
    config, data = followed(overrides, "image_size=[48,96]")
    assert data.image_size == (48, 96)
    config, data = followed(overrides, names_experiment=True)
    assert (config.image_size, data.image_size) == (224, (224, 224))
    config, data = followed(overrides, "data.image_size=48")
    assert data.image_size == (48, 48)


def test_photos_are_served_at_the_usual_size(tmp_path: Path) -> None:
    config, data = followed(folder_of(tmp_path, *[(160, 400)] * 8))

    assert (config.image_size, data.image_size, config.model.patch_size) == (224, (224, 224), 16)
    assert "image_size" not in str(describe_followed(config))


def test_the_size_of_many_small_images_is_announced_too() -> None:
    config = composed("method=mae", "data=folder", "data.root=x", images=IMAGENET)
    config.train_image_side = 64

    assert describe_followed(config) == "image_size=64 of images of 64 px"


@pytest.mark.parametrize("side", [32, 64, 96, 128])
@pytest.mark.parametrize(
    "chosen",
    [
        ("mae", "vit_mini"),
        ("mae", "hiera_mini"),
        ("mae", "swinv2_mini"),
        ("mae", "swin_tiny"),
        ("simmim", "swin_mini"),
        ("simmim", "swinv2_tiny"),
        ("ddmim", "swinv2_mini"),
        ("ddmim", "swin_tiny"),
    ],
)
def test_every_backbone_fits_the_sizes_of_small_images(chosen: tuple[str, str], side: int) -> None:
    method, model = chosen
    config = composed(f"method={method}", f"model={model}", "data=folder", "data.root=x", images=1000)
    config.train_image_side = side

    assert build(config.method).backbone.image_size == (side, side)


def test_an_evaluation_shows_what_it_trains_by() -> None:
    config = compose_config("eval", ["eval=finetune", "ckpt_path=x", "name=x", "paths.run_dir=x"])
    tell_rules(config, num_train_images=900, backbone_width=128)

    assert describe_followed(config) == "global_batch_size=16, eval.epochs=54, base_lr=0.01131, of 900 images"
    assert (config.mixup, config.augmentation.rand_augment, config.augmentation.scale) == (0.0, None, [0.4, 1.0])


def test_a_large_set_is_not_said_to_be_followed() -> None:
    assert describe_followed(composed("method=mae", images=IMAGENET)) is None


def test_what_follows_and_what_is_too_short_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    config = composed("method=mae", "trainer.max_epochs=1", images=9000)
    with caplog.at_level("INFO", logger="unmask"):
        announce_length(config, num_images=9000)
    followed, advised = [record.message for record in caplog.records]
    assert followed.strip().startswith("by images  global_batch_size=128, base_lr=")
    assert advised.startswith("70 optimizer steps are few")


def advice(*overrides: str, images: int) -> str:
    return "; ".join(advice_on_length(composed(*overrides, images=images), num_images=images))


def test_a_run_of_few_steps_is_called_short() -> None:
    assert advice("method=mae", images=9000) == ""
    assert "306 optimizer steps are few" in advice("experiment=mae_cifar10", "data.root=x", images=9000)
    short = advice("method=mae", "trainer.max_epochs=1", images=9000)
    assert "70 optimizer steps are few" in short
    assert "raise trainer.max_epochs (now 1) or lower global_batch_size (now 128)" in short
    short = advice("method=mae", "trainer.max_steps=499", images=9000)
    assert "499 optimizer steps are few to learn from; raise trainer.max_steps (now 499)" in short
    assert advice("method=mae", "trainer.max_steps=500", images=9000) == ""
    assert "rises for 2 epochs of a run of 5" in advice(
        "method=mae", "schedule.warmup_epochs=2", "trainer.max_epochs=5", images=9000
    )
    for warmup, is_long in ((2.99, False), (3, False), (3.01, True)):  # a third of nine epochs
        said = advice("method=mae", f"schedule.warmup_epochs={warmup}", "trainer.max_epochs=9", images=9000)
        assert ("the rate rises for" in said) == is_long
    # A batch that the set does not fill is refused by the data, with what to write; a run of 0 steps is no news then.
    assert advice("method=mae", "global_batch_size=512", "trainer.max_epochs=1", images=40) == ""
    assert "trainer.max_time may end the run" in advice("method=mae", "trainer.max_time=00:00:05:00", images=9000)
