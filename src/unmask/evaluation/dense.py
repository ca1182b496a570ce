"""What single patches know: segmentation on frozen features."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from unmask.backbones.base import MaskedBackbone
from unmask.eval_mode import eval_mode
from unmask.evaluation.base import EvalReport, EvaluationData, MakeTrainer, Split
from unmask.evaluation.evaluator import BackboneEvaluator
from unmask.evaluation.features import describe_images, trainer_device
from unmask.evaluation.knn import count_votes, nearest_neighbors
from unmask.evaluation.segmentation_score import SegmentationScore
from unmask.heads.logistic_regression import LogisticRegression
from unmask.patches import patch_text
from unmask.randomness import keyed_permutation, stream_key

_IGNORED = 255  # in masks: no class
_NUM_NUMBERS = 256  # a mask of 8 bits can hold


@runtime_checkable
class HasMasks(Protocol):
    """Images with masks."""

    def read_masks(self, split: Split, positions: Int[Tensor, " b"]) -> UInt8[Tensor, "b height width"]:
        """Reads masks, cropped as the images are; 255 is no class."""
        ...


@runtime_checkable
class SegmentationData(EvaluationData, HasMasks, Protocol):
    """A data module whose images have masks."""


class Patches(NamedTuple):
    """Features of single patches and the class most of their pixels have."""

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]


class Dense(BackboneEvaluator):
    """Classifies every patch of frozen features, by logistic regression and by a vote of similar patches.

    A patch is a cell of the last feature map; its class in training is the one most of its pixels have. Scores of the
    patches of a test image are brought to its size (bilinear), and the best class of each pixel is compared with the
    mask: `miou_*` is the mean over the classes of intersection over union, `pixel_accuracy_*` the fraction of pixels
    hit, `patch_accuracy_*` the fraction of patches whose class is hit before resizing, all in percent and without the
    pixels that have no class. A class that neither occurs in the test masks nor is predicted does not count.

    The strength of the regression's penalty is chosen by the hits on validation patches; the neighbors' count is
    fixed beforehand. Images are read as served, so masks are scored at that size, not at their own.

    Args:
        head: Completed with the width of the features and the number of classes.
        k: Neighbors of a patch.
        temperature: Of their votes, as `KNN`'s.
        max_patches: Patches learned from at most, as many of each image; and as many at most to choose on.
        seed: Key of which patches of an image those are.
        baseline: Whether a random backbone is to be measured beside.

    Raises:
        ValueError: A value is not positive; at evaluation, the images have no masks, there is one class only, or there
            are fewer patches than `k`.
    """

    def __init__(
        self,
        *,
        head: Callable[..., LogisticRegression],
        k: int = 20,
        temperature: float = 0.07,
        max_patches: int = 100_000,
        seed: int = 0,
        baseline: bool = True,
    ) -> None:
        if k < 1 or max_patches < 2:
            raise ValueError(f"eval.k must be at least 1 and eval.max_patches 2, got {k} and {max_patches}")
        if temperature <= 0.0:
            raise ValueError(f"eval.temperature must be positive, got {temperature}")
        self.head = head
        self.k = k
        self.temperature = temperature
        self.max_patches = max_patches
        self.seed = seed
        self.baseline = baseline

    def evaluate(self, backbone: MaskedBackbone, data: EvaluationData, make_trainer: MakeTrainer) -> EvalReport:
        return self._evaluate(backbone, _require_masks(data), make_trainer)

    def _evaluate(self, backbone: MaskedBackbone, data: SegmentationData, make_trainer: MakeTrainer) -> EvalReport:
        device = trainer_device(make_trainer)
        with eval_mode(backbone.to(device)):
            train, val = (self._sample(backbone, data, split, device) for split in ("train", "val"))
            num_classes = self._require_classes(train)
            head = self.head(in_features=train.features.shape[1], num_classes=num_classes).to(device)
            choice = head.fit_best(train.features, train.labels, val.features, val.labels)

            def neighbors(features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
                return self._vote(train, features, num_classes)

            scores = {
                name: self._score(backbone, data, classify, device)
                for name, classify in (("linear", head), ("knn", neighbors))
            }
        num_train, num_test = len(data.dataset("train")), len(data.dataset("test"))
        grid = head.inverse_strengths
        return EvalReport(
            protocol=(
                f"dense: patches of {type(backbone).__name__}'s last feature map ({train.features.shape[1]}, stride "
                f"{patch_text(backbone.stages[-1].stride)} px), L-BFGS logistic regression on standardized features "
                f"with inverse strength of {', '.join(f'{c:g}' for c in grid)} by hits on val patches "
                f"({len(val.labels)}), and "
                f"cosine k-NN with k={self.k}, temperature {self.temperature:g}, train ({num_train} images, "
                f"{len(train.labels)} patches), test ({num_test}), {num_classes} classes, "
                f"{describe_images(data)}"
            ),
            metrics={
                f"{metric}_{name}": value for name, score in scores.items() for metric, value in score.metrics().items()
            },
            num_train_images=num_train,
            num_test_images=num_test,
            settings={
                "selected": f"inverse strength {choice.inverse_strength:g}",
                "selected_on": f"val ({len(val.labels)} patches)",
                "is_at_edge_of_grid": "yes" if choice.inverse_strength in (grid[0], grid[-1]) else "no",
                "has_converged": "yes" if choice.has_converged else "no",
                "seed": self.seed,
            },
            headline=("miou_linear", "miou_knn"),
        )

    def _sample(self, backbone: MaskedBackbone, data: SegmentationData, split: Split, device: torch.device) -> Patches:
        """Draws labeled patches, as many of each image."""
        of_each = max(1, self.max_patches // len(data.dataset(split)))
        features, labels = [], []
        for maps, masks, index in _batches(backbone, data, split, device):
            patch_labels = majority_classes(masks, grid=(maps.shape[2], maps.shape[3])).flatten(1)
            rows = maps.flatten(2).transpose(1, 2)
            for number, position in enumerate(index.tolist()):
                order = keyed_permutation(stream_key(self.seed, "dense-patches", position), patch_labels.shape[1])
                order = order.to(device)
                chosen = order[patch_labels[number][order] != _IGNORED][:of_each]
                features.append(rows[number, chosen])
                labels.append(patch_labels[number, chosen])
        return Patches(torch.cat(features), torch.cat(labels))

    def _require_classes(self, train: Patches) -> int:
        classes = train.labels.unique()
        if len(classes) < 2:
            found = f"class {int(classes[0])} alone" if len(classes) else "no class at all"
            raise ValueError(
                f"eval=dense needs patches of at least two classes, but the training masks have {found} "
                f"({_IGNORED} means no class: where it marks an object, write 1 instead)"
            )
        if len(train.labels) < self.k:
            raise ValueError(
                f"eval=dense asks for k={self.k} neighbors among {len(train.labels)} patches; "
                f"set eval.k={len(train.labels)} or less"
            )
        return int(classes.max()) + 1

    def _vote(self, bank: Patches, query: Float[Tensor, "n d"], num_classes: int) -> Float[Tensor, "n classes"]:
        """Gives each class's fraction of the votes of the nearest patches."""
        found = nearest_neighbors(query, bank.features, self.k)
        votes = ((found.similarity - found.similarity[:, :1]) / self.temperature).exp()
        ballots = count_votes(bank.labels[found.position], votes, num_classes).clamp(min=0.0)
        return ballots / ballots.sum(dim=1, keepdim=True)

    def _score(
        self,
        backbone: MaskedBackbone,
        data: SegmentationData,
        classify: Callable[[Float[Tensor, "n d"]], Float[Tensor, "n classes"]],
        device: torch.device,
    ) -> SegmentationScore:
        score = SegmentationScore()
        for maps, masks, _ in _batches(backbone, data, "test", device):
            grid = (maps.shape[2], maps.shape[3])
            rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
            classes = classify(rows).unflatten(0, (len(maps), *grid)).permute(0, 3, 1, 2)
            pixels = F.interpolate(classes, size=masks.shape[1:], mode="bilinear", align_corners=False)
            score.add_pixels(pixels.argmax(dim=1), masks)
            score.add_patches(classes.argmax(dim=1), majority_classes(masks, grid=grid))
        return score


def _require_masks(data: EvaluationData) -> SegmentationData:
    if not isinstance(data, HasMasks):
        raise ValueError(
            f"eval=dense needs images with masks, which {type(data).__name__} does not have; "
            "add data=segmentation data.root=DIR"
        )
    return cast(SegmentationData, data)


def majority_classes(masks: UInt8[Tensor, "b height width"], *, grid: tuple[int, int]) -> Int[Tensor, "b rows cols"]:
    """Finds the class most pixels of each cell have, of equals the lowest; 255 where none has a class.

    Raises:
        ValueError: The mask is not whole cells.
    """
    rows, cols = grid
    count, height, width = masks.shape
    if height % rows or width % cols:
        raise ValueError(f"{height}x{width} px are not {rows}x{cols} whole cells; choose another image_size")
    cells = masks.long().view(count, rows, height // rows, cols, width // cols).transpose(2, 3).flatten(3)
    histogram = torch.zeros(count, rows, cols, _NUM_NUMBERS, dtype=torch.long, device=masks.device)
    histogram.scatter_add_(3, cells, torch.ones_like(cells))
    of_classes = histogram[..., :_IGNORED]
    # argmax does not say which of equals it takes, so the lower class is made to count a little more.
    weighed = of_classes * _NUM_NUMBERS - torch.arange(_IGNORED, device=masks.device)
    best = weighed.argmax(dim=3)
    return torch.where(of_classes.sum(dim=3) > 0, best, torch.full_like(best, _IGNORED))


def _batches(
    backbone: MaskedBackbone, data: SegmentationData, split: Split, device: torch.device
) -> Iterator[tuple[Float[Tensor, "b d rows cols"], UInt8[Tensor, "b height width"], Int[Tensor, " b"]]]:
    """Reads a split once, in stored order: last feature maps, masks, numbers of the images."""
    for raw in data.evaluation_part(split, part=0, num_parts=1):
        batch = data.to_model_input(move_data_to_device(raw, device), augmented=False)
        with torch.no_grad():
            maps = backbone.forward_features(batch.image)[-1].float()
        yield maps, data.read_masks(split, batch.index.cpu()).to(device), batch.index
