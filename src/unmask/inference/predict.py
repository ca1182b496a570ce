"""Classes of images, by a classifier that was trained."""

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch

from unmask.backbones.base import MaskedBackbone
from unmask.data.files.splits import Split
from unmask.inference.base import Checkpoint, FindImages, Inference
from unmask.inference.images import SelectedImages
from unmask.inference.writing import table, write_atomically

_log = logging.getLogger("unmask")
_ROWS_PRINTED = 20


class Classifier(torch.nn.Module):
    """A trained classifier and the names of its classes."""

    def __init__(self, module: torch.nn.Module, class_names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.class_names = tuple(class_names)


class Prediction(NamedTuple):
    """The likeliest classes of one image, the likeliest first."""

    image: str
    classes: list[str]
    scores: list[float]  # softmax, in 0..1


class Predict(Inference):
    """Names the likeliest classes of each image and writes them to `predictions.csv`.

    Classes have the names that the file gives them, else those of the data that are named, else numbers.

    Args:
        image: An image file, a folder or a list; None takes the split of the data.
        split: Which split.
        top: Classes named for each image.
        crop_pct: See `ImageDataModule.crop_pct`; None: of the checkpoint's data, else 0.875.

    Raises:
        ValueError: `top` is not positive, the checkpoint has no classifier, or an image cannot be read.
    """

    reads_classifier: ClassVar[bool] = True

    def __init__(
        self, *, image: str | None, split: Split = "test", top: int = 5, crop_pct: float | None = None
    ) -> None:
        if top < 1:
            raise ValueError(f"eval.top must be at least 1, got {top}")
        self.image, self.split, self.top, self.crop_pct = image, split, top, crop_pct

    def load(self, checkpoint: Checkpoint) -> tuple[Classifier, MaskedBackbone]:
        module, path = checkpoint.load_module(), checkpoint.path
        if not module.is_classifier:
            raise ValueError(
                f"{path} holds {type(module).__name__}, which names no classes; train a classifier on it by "
                f"eval=finetune ckpt_path={path}, then name the checkpoint that leaves"
            )
        return Classifier(module, checkpoint.class_names()), module.backbone

    def run(self, model: Classifier, find: FindImages, *, run_dir: Path, device: torch.device) -> None:
        predictions = self.predict(model, find(self.image, self.split), device)
        top = len(predictions[0].classes)
        path = write_atomically(run_dir / "predictions.csv", _as_csv(predictions, top))
        rows = [
            [p.image, p.classes[0], f"{100 * p.scores[0]:.1f}", _runners_up(p)] for p in predictions[:_ROWS_PRINTED]
        ]
        _log.info("\n" + table(["image", "class", "score, %", "then"], rows) + "\n")
        more = f"the first {_ROWS_PRINTED} of " if len(predictions) > _ROWS_PRINTED else ""
        _log.info(f"{more}{len(predictions)} image(s), {top} classes each, in {path}")

    def predict(self, classifier: Classifier, shown: SelectedImages, device: torch.device) -> list[Prediction]:
        """Computes softmax scores in float32, one image at a time as the loader serves them."""
        top = min(self.top, len(classifier.class_names))
        predictions: list[Prediction] = []
        for batch in shown.batches(device):
            scores, classes = classifier.module(batch.image).float().softmax(dim=1).topk(top, dim=1)
            for own_scores, own_classes in zip(scores.tolist(), classes.tolist(), strict=True):
                names = [classifier.class_names[number] for number in own_classes]
                predictions.append(Prediction(shown.name(len(predictions)), names, own_scores))
        return predictions


def _runners_up(prediction: Prediction) -> str:
    pairs = list(zip(prediction.classes, prediction.scores, strict=True))[1:3]
    return ", ".join(f"{name} {100 * score:.1f}" for name, score in pairs)


def _as_csv(predictions: Sequence[Prediction], top: int) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ranked = ["class", "score", *(f"{name}_{rank}" for rank in range(2, top + 1) for name in ("class", "score"))]
    writer.writerow(["image", *ranked])
    for prediction in predictions:
        cells = zip(prediction.classes, (f"{score:.6f}" for score in prediction.scores), strict=True)
        writer.writerow([prediction.image, *(cell for pair in cells for cell in pair)])
    return text.getvalue().encode()
