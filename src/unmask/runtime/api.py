"""What notebooks and other programs call; `import unmask` offers these by name."""

from collections.abc import Sequence
from typing import Literal

import torch
from hydra.errors import HydraException
from jaxtyping import Float
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from unmask.backbones.base import MaskedBackbone
from unmask.callbacks.panel import Reconstruction, reconstruction_pixels
from unmask.methods.backbone_module import BackboneModule
from unmask.methods.base import Method
from unmask.runtime.builders import build_data, build_module, write_statistics
from unmask.runtime.config import compose_config, configuration_names
from unmask.runtime.follow_data import follow_training_images
from unmask.runtime.initialize import initialize
from unmask.runtime.mistakes import one_sentence
from unmask.types import Images


def build_method(overrides: Sequence[str]) -> BackboneModule:
    """Builds a method from what one would type after `run.py`, with random weights or those of `method.init_from`.

    No data are read, so what `run.py` lets follow the number of training images keeps its published value; with
    `follow_data=true` the images are counted and it follows here too.

    Args:
        overrides: Such as `["method=mae", "model=vit_tiny", "image_size=224"]`.

    Raises:
        ValueError: A name or a value is not one that the command takes; the sentence says what to write instead.
    """
    try:
        config = compose_config("run", overrides)
        data = build_data(config)
        if config.follow_data:  # otherwise the images are the caller's, who may have none yet
            follow_training_images(config, data)
        write_statistics(config, data)
        method = build_module(config.method, data)
        initialize(
            method,
            class_names=data.class_names if method.is_classifier else (),
            allow_partial=config.allow_partial,
            use_ema_weights=config.use_ema_weights,
        )
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(one_sentence(error, *configuration_names("run"))) from error
    return method


def extract_features(backbone: MaskedBackbone, images: Images, pool: Literal["mean"] = "mean") -> Float[Tensor, "b d"]:
    """Computes the features of full images that every evaluation reads.

    Args:
        backbone: Put in eval mode and left there.
        images: In 0..1, of the backbone's `image_size` and channels; normalized inside.
        pool: "mean" averages the final tokens.

    Raises:
        ValueError: The images have another size, other channels or another range, or the pooling is unknown.
    """
    if pool != "mean":
        raise ValueError(f"pool must be 'mean', got {pool!r}")
    with torch.inference_mode():
        return backbone.eval().forward_pooled(_normalize(backbone, images)).float()


def reconstruct(method: Method, images: Images, seed: int = 0) -> Reconstruction:
    """Masks patches of images and lets a method predict them.

    Args:
        method: Put in eval mode and left there.
        images: In 0..1, of the backbone's `image_size` and channels; normalized inside.
        seed: Key of the masks.

    Returns:
        Image, masked input, prediction and composite in 0..1, the mask, and the PSNR over masked pixels. Where a
        method predicts patches normalized by their own statistics (MAE), `prediction` borrows the true ones and
        `estimated_prediction` has ones estimated from visible patches.

    Raises:
        ValueError: As `extract_features`, or the method predicts no pixels.
    """
    backbone = method.exported_backbone
    normalized = _normalize(backbone, images)
    method.eval()
    mask = method.draw_masks(normalized, torch.arange(len(images), device=images.device) + (seed << 32))
    if mask is None:
        raise ValueError(f"{type(method).__name__} masks nothing; there is nothing to reconstruct")
    with torch.inference_mode():
        prediction = method(normalized, mask).prediction
    if prediction is None:
        raise ValueError(f"{type(method).__name__} predicts no pixels; there is nothing to reconstruct")
    return reconstruction_pixels(
        normalized,
        mask,
        prediction,
        pixel_mean=backbone.pixel_mean,
        pixel_std=backbone.pixel_std,
        borrowed=method.borrowed_statistics(normalized),
    )


def _normalize(backbone: MaskedBackbone, images: Images) -> Images:
    if tuple(images.shape[2:]) != backbone.image_size:
        raise ValueError(
            f"images are {images.shape[2]}x{images.shape[3]} px, this backbone takes "
            f"{backbone.image_size[0]}x{backbone.image_size[1]}; resize them"
        )
    if images.shape[1] != backbone.in_channels:
        raise ValueError(f"images have {images.shape[1]} channel(s), this backbone takes {backbone.in_channels}")
    if not images.is_floating_point() or not (images.min() >= 0.0 and images.max() <= 1.0):
        raise ValueError("images must lie in 0..1; divide bytes by 255, and do not normalize beforehand")
    mean, std = (images.new_tensor(values)[:, None, None] for values in (backbone.pixel_mean, backbone.pixel_std))
    return (images - mean) / std
