import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unmask

MAE = ["method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=4", "method.decoder.embed_dim=24"]
MAE += ["method.decoder.depth=1", "method.decoder.num_heads=3"]
SIMMIM = ["method=simmim", "model=swin_mini", "model.embed_dim=24", "model.depths=[1,1,1]", "model.num_heads=[1,2,4]"]
STATISTICS = {"pixel_mean": (0.1, 0.5, 0.8), "pixel_std": (0.2, 0.4, 0.7)}


def by_hand(images: Tensor) -> Tensor:
    channels = []
    for channel, (mean, std) in enumerate(zip(*STATISTICS.values(), strict=True)):
        channels.append((images[:, channel] - mean) / std)
    return torch.stack(channels, dim=1)


@pytest.fixture(params=["mae", "simmim"])
def method(request: pytest.FixtureRequest, randomize: Callable[..., nn.Module]) -> Any:
    """A method in training mode whose weights, pixel statistics and stochastic depth all make a difference."""
    overrides = {"mae": MAE, "simmim": SIMMIM}[request.param]
    statistics = [f"data.{name}={list(values)}" for name, values in STATISTICS.items()]
    return randomize(unmask.build_method([*overrides, *statistics, "drop_path_rate=0.5"])).train()


@pytest.fixture
def images() -> Tensor:
    images = torch.rand(3, 3, 32, 32)
    images[:, :, 0, 0], images[:, :, 0, 1] = 0.0, 1.0  # both ends of the range are allowed
    return images


def test_a_method_is_built_as_the_command_line_would() -> None:
    method = unmask.build_method([*MAE, "image_size=64", "method.mask_generator.ratio=0.5", "seed=7"])
    assert type(method).__name__ == "MAE"
    assert method.backbone.image_size == (64, 64)
    assert method.backbone.patch_size == method.mask_generator.patch_size == 8
    assert method.mask_generator.ratio == 0.5
    assert method.seed == 7


def test_a_method_with_labels_learns_the_classes_of_its_data() -> None:
    method = unmask.build_method(["method=supervised", *MAE[1:4], "data.num_train=20"])
    assert method.head.linear.out_features == 10  # the generated pictures have ten shapes


def test_a_method_is_built_without_reading_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("pictures were drawn")

    monkeypatch.setattr("unmask.data.sources.synthetic.Synthetic.load_split", refuse)

    def rate(*overrides: str) -> float:
        method = unmask.build_method([*MAE, *overrides])
        return float(method.optimizer_factory([{"params": list(method.parameters())}]).defaults["lr"])

    assert rate() == rate("follow_data=false") == rate("data.num_train=400000", "follow_data=true")
    assert rate("follow_data=true") != rate()  # 4,000 generated pictures


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_features_are_those_of_normalized_images_in_eval_mode(make_vit, make_swin, randomize, family) -> None:
    make = {"vit": make_vit, "swin": make_swin}[family]
    backbone = randomize(make(image_size=64, drop_path_rate=0.8, **STATISTICS)).train()
    images = torch.rand(2, 3, 64, 64)
    features = unmask.extract_features(backbone, images)
    with torch.no_grad():
        torch.testing.assert_close(features, backbone.eval().forward_pooled(by_hand(images)), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(features, backbone.forward_pooled(images), atol=1e-2)
    assert not features.requires_grad


def test_features_of_a_half_precision_backbone_are_single_precision(make_vit, randomize) -> None:
    backbone = randomize(make_vit(**STATISTICS))
    images = torch.rand(2, 3, 32, 32)
    expected = unmask.extract_features(backbone, images)
    features = unmask.extract_features(backbone.bfloat16(), images.bfloat16())
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("size", [(64, 32), (32, 32), (64, 64)])
def test_images_of_another_size_are_refused(make_vit, size: tuple[int, int]) -> None:
    backbone = make_vit(image_size=(32, 64))
    with pytest.raises(ValueError, match=rf"images are {size[0]}x{size[1]} px, this backbone takes 32x64"):
        unmask.extract_features(backbone, torch.rand(1, 3, *size))


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-0.01, 0.5), (0.5, 1.01)])
def test_images_of_another_range_are_refused(make_vit, low: float, high: float) -> None:
    images = torch.rand(2, 3, 32, 32) * 0.1 + 0.45
    images[1, 2, 5, 5], images[0, 1, 7, 7] = low, high
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1; divide bytes by 255"):
        unmask.extract_features(make_vit(), images)


def test_a_reconstruction_shows_what_the_method_predicts_under_its_mask(method: Any, images: Tensor) -> None:
    shown = unmask.reconstruct(method, images, seed=5)
    masked = shown.mask.at_pixels().expand_as(images)
    assert masked.float().mean() == pytest.approx(method.mask_generator(images).masked.float().mean())

    torch.testing.assert_close(shown.image, images, rtol=0, atol=1e-5)
    assert torch.equal(shown.composite[~masked], shown.image[~masked])
    assert torch.equal(shown.composite[masked], shown.prediction[masked])
    assert torch.equal(shown.masked[~masked], shown.image[~masked])
    assert (shown.masked[masked] == 0.5).all()

    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS.values())
    with torch.no_grad():
        predicted = method.eval()(by_hand(images), shown.mask).prediction * std + mean
    torch.testing.assert_close(shown.prediction, predicted.clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_masks_of_a_reconstruction_are_keyed_by_its_seed(method: Any, images: Tensor) -> None:
    first, again, other = (unmask.reconstruct(method, images, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.mask.masked, again.mask.masked)
    assert torch.equal(first.composite, again.composite)
    # Every image differs from the others, and from all of another seed.
    masks = torch.cat([first.mask.masked, other.mask.masked])
    assert len(masks.flatten(1).unique(dim=0)) == 6
    alone = unmask.reconstruct(method, images[:1], seed=0)
    assert torch.equal(alone.mask.masked, first.mask.masked[:1])


def test_a_reconstruction_refuses_images_as_features_do(method: Any, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        unmask.reconstruct(method, 2.0 * images)
    with pytest.raises(ValueError, match="this backbone takes 32x32"):
        unmask.reconstruct(method, images[:, :, :16])


def test_experiments_are_listed_by_name() -> None:
    names = unmask.list_experiments()
    assert names == sorted(names)
    assert {"ddmim_cifar10", "mae_cifar10", "quickstart", "simmim_cifar10"} <= set(names)
    assert not [name for name in names if name.endswith(".yaml")]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'reconstrukt'; it has .*build_method.*, reconstruct$"):
        unmask.reconstrukt  # noqa: B018
    assert all(callable(getattr(unmask, name)) for name in unmask.__all__)


def test_importing_the_package_does_not_import_torch() -> None:
    """Shell completion imports it at every press of the tab key."""
    script = "import sys, unmask; print(sorted({'torch', 'lightning', 'hydra', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_images_of_other_channels_are_refused(make_vit: Callable[..., nn.Module]) -> None:
    backbone = make_vit(in_channels=4, pixel_mean=(0.5,) * 4, pixel_std=(0.2,) * 4)
    assert unmask.extract_features(backbone, torch.rand(2, 4, 32, 32)).shape[0] == 2
    with pytest.raises(ValueError, match=r"images have 3 channel\(s\), this backbone takes 4"):
        unmask.extract_features(backbone, torch.rand(2, 3, 32, 32))
