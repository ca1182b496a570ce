"""Clusters found in frozen features without any label."""

import torch.nn.functional as F

from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import EvalReport, EvaluationData
from unmask.evaluation.evaluator import FeatureProtocol
from unmask.evaluation.features import FrozenFeatures, require_labels
from unmask.evaluation.kmeans import k_means, nearest_centers
from unmask.evaluation.metrics import clustering_metrics


class Clustering(FeatureProtocol):
    """Groups the training images by k-means and compares the groups of the test images with their classes.

    Features are scaled to unit length, so distances are those of k-NN. Centers are learned on the training split
    without its labels; each test image takes the nearest, and labels of the test split only measure: `nmi`,
    `clustering_accuracy` and `ari` of `clustering_metrics`. Nothing is selected by them.

    Args:
        num_clusters: Groups sought; None takes the number of classes.
        num_starts: Starts of k-means, of which the tightest counts.
        max_iterations: Bound of each start.
        seed: Key of the starts.
        baseline: Whether a random backbone is to be measured beside.

    Raises:
        ValueError: A number is out of range; at evaluation, test labels are missing or there are fewer training images
            than clusters.
    """

    is_seeded = True

    def __init__(
        self,
        *,
        num_clusters: int | None = None,
        num_starts: int = 10,
        max_iterations: int = 100,
        seed: int = 0,
        baseline: bool = True,
    ) -> None:
        if num_clusters is not None and num_clusters < 2:
            raise ValueError(f"eval.num_clusters must be at least 2, or null for the classes, got {num_clusters}")
        if num_starts < 1 or max_iterations < 1:
            raise ValueError(
                f"eval.num_starts and eval.max_iterations must be at least 1, got {num_starts} and {max_iterations}"
            )
        self.num_clusters = num_clusters
        self.num_starts = num_starts
        self.max_iterations = max_iterations
        self.seed = seed
        self.baseline = baseline

    def require(self, backbone: MaskedBackbone, data: EvaluationData) -> None:
        require_labels(data, ("test",), evaluation="clustering")
        num_images, num_clusters = len(data.dataset("train")), self._num_clusters(data)
        if num_images < num_clusters:
            raise ValueError(
                f"eval=clustering seeks {num_clusters} clusters, but the train split has {num_images} images; "
                f"set eval.num_clusters={max(2, num_images)} or less, or use more data"
            )

    def measure(self, features: FrozenFeatures) -> EvalReport:
        train, test = (features.read(split).to(features.device) for split in ("train", "test"))
        num_clusters = self._num_clusters(features.data)
        clusters = k_means(
            F.normalize(train.features, dim=1),
            num_clusters,
            seed=self.seed,
            num_starts=self.num_starts,
            max_iterations=self.max_iterations,
        )
        found = nearest_centers(F.normalize(test.features, dim=1), clusters.centers).cluster
        return EvalReport(
            protocol=(
                f"clustering: k-means, k={num_clusters}, unit length, {self.num_starts} starts, centers of train "
                f"({len(train.labels)}, labels unused), test ({len(test.labels)}), {features.description}"
            ),
            metrics=clustering_metrics(found, test.labels),
            num_train_images=0,
            num_test_images=len(test.labels),
            settings={"inertia": clusters.inertia, "seed": self.seed},
            headline=("nmi", "clustering_accuracy", "ari"),
        )

    def _num_clusters(self, data: EvaluationData) -> int:
        return data.num_classes if self.num_clusters is None else self.num_clusters
