"""The features every protocol without training of the backbone reads: of full images, computed in one place."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import EvaluationData, MakeTrainer, Split


class Features(NamedTuple):
    """A split as a backbone sees it, in stored order."""

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]


def extract_features(backbone: MaskedBackbone, data: EvaluationData, split: Split, *, device: torch.device) -> Features:
    """Computes the pooled feature of every image of a split once: full images, no augmentation, no dropout.

    Bank, probe and query all come from here, so they cannot differ in masking, pooling or precision, which is float32
    whatever the trainer's.

    Args:
        backbone: Moved to `device`; its training modes are restored afterwards.
        data: Serves the split.
        split: Which split.
        device: Where features are computed and stay.
    """
    was_training = {module: module.training for module in backbone.modules()}
    backbone.to(device).eval()
    pooled, labels, index = [], [], []
    try:
        with torch.inference_mode():
            for raw in data.evaluation_loader(split):
                batch = data.finish(move_data_to_device(raw, device), augmented=False)
                pooled.append(backbone.forward_pooled(batch.image).float())
                labels.append(batch.label)
                index.append(batch.index)
    finally:
        for module, mode in was_training.items():
            module.training = mode
    assert torch.cat(index).tolist() == list(range(len(data.samples(split)))), "a sample was skipped or read twice"
    return Features(torch.cat(pooled), torch.cat(labels))  # joined outside inference mode: a probe may train on them


def require_labels(data: EvaluationData, splits: Sequence[Split], *, evaluation: str) -> None:
    """Refuses data a classification cannot be measured on, before anything is computed.

    Raises:
        ValueError: A split has images without a label, or there is one class only.
    """
    for split in splits:
        labels = data.samples(split).labels
        num_unlabelled = int((labels < 0).sum())
        if num_unlabelled or not len(labels):
            lack = "none" if num_unlabelled == len(labels) else f"none for {num_unlabelled} of {len(labels)} images"
            raise ValueError(
                f"eval={evaluation} needs labels, but the {split} split of {type(data).__name__} has {lack}; "
                "use labelled data such as data=cifar10"
            )
    if data.num_classes < 2:
        raise ValueError(
            f"eval={evaluation} needs at least two classes, but {type(data).__name__} has {data.num_classes}; "
            "use labelled data such as data=cifar10"
        )


def describe_features(backbone: MaskedBackbone, data: EvaluationData) -> str:
    """Says in a protocol line what the features are."""
    height, width = data.image_size
    return (
        f"{type(backbone).__name__} pooled features ({backbone.embed_dim}), {height}x{width} px, "
        f"centre crop {data.eval_crop_share:g}"
    )


def trainer_device(make_trainer: MakeTrainer) -> torch.device:
    """Finds the device the configured trainer computes on."""
    device: torch.device = make_trainer().strategy.root_device
    return device
