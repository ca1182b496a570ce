"""Segmentation by patches, on colored rectangles whose masks are known."""

import functools
from types import MappingProxyType

import pytest
import torch
from PIL import Image
from torch import nn

from unmask.backbones.base import MaskedBackbone
from unmask.data.augmentation.transforms import Augmentation
from unmask.data.sources.segmentation import SegmentationFolder
from unmask.evaluation.dense import Dense, majority_classes
from unmask.evaluation.knn import count_votes, nearest_neighbors
from unmask.heads.logistic_regression import LogisticRegression
from unmask.types import FeatureStage

COLORS = torch.tensor([[30, 30, 30], [220, 40, 40], [40, 60, 220]], dtype=torch.uint8)
HEAD = functools.partial(LogisticRegression, inverse_strengths=(0.01, 1.0))


class CellColors(MaskedBackbone):
    """Features of a cell of 4 x 4 px: its mean color."""

    settings = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.stages, self.image_size, self.num_blocks = (FeatureStage(3, 4),), (16, 16), 1
        self.dropout = nn.Dropout(0.5)

    def forward_features(self, images, edit=None):
        return [self.dropout(nn.functional.avg_pool2d(images, 4))]

    def forward_pooled(self, images):
        return self.forward_features(images)[0].mean(dim=(2, 3))

    def prepare_for_finetuning(self, *, drop_path_rate):
        raise AssertionError("a frozen protocol does not fine-tune")

    def layer_id(self, parameter_name):
        return 0


@pytest.fixture
def draw_folder(tmp_path):
    """Draws pictures of 16 x 16 px: ground, and a rectangle of class 1 or 2 whose rim is left out; cells are whole."""

    def draw(counts, folder="set", rim=True):
        generator = torch.Generator().manual_seed(5)
        for split, count in counts.items():
            for kind in ("images", "masks"):
                (tmp_path / folder / kind / split).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                top, left = (4 * int(torch.randint(0, 3, (), generator=generator)) for _ in range(2))
                label = 1 + number % 2
                mask = torch.zeros(16, 16, dtype=torch.uint8)
                mask[top : top + 8, left : left + 8] = label
                image = COLORS[mask.long()]
                if rim:
                    mask[top, left : left + 8] = 255
                name = f"{split}/{number}.png"
                Image.fromarray(image.numpy()).save(tmp_path / folder / "images" / name)
                Image.fromarray(mask.numpy()).save(tmp_path / folder / "masks" / name)
        return tmp_path / folder

    return draw


@pytest.fixture
def make_segmentation():
    def make(root, **changes):
        settings = {
            "image_size": 16,
            "pixel_mean": (0.4, 0.4, 0.4),
            "pixel_std": (0.3, 0.3, 0.3),
            "augmentation": Augmentation(),
            "global_batch_size": 4,
        }
        return SegmentationFolder(root=str(root), **settings | changes)

    return make


@pytest.fixture
def data(draw_folder, make_segmentation):
    return make_segmentation(draw_folder({"train": 8, "val": 4, "test": 6}))


def test_colors_are_told_apart_and_modes_restored(data, make_trainer):
    backbone = CellColors().train()
    report = Dense(head=HEAD, k=3).evaluate(backbone, data, make_trainer)
    assert backbone.dropout.training
    assert report.metrics["patch_accuracy_linear"] == report.metrics["patch_accuracy_knn"] == 100.0
    # Bilinear scores are wrong at the borders of cells alone.
    assert 100.0 > report.metrics["pixel_accuracy_linear"] > 85.0
    assert 100.0 > report.metrics["miou_knn"] > 60.0
    assert (report.num_train_images, report.num_test_images) == (8, 6)


def test_figures_are_those_of_doing_it_by_hand(data, make_trainer):
    backbone = CellColors().eval()
    report = Dense(head=HEAD, k=3, temperature=0.1).evaluate(backbone, data, make_trainer)
    tables = {}
    for split in ("train", "val", "test"):
        batch = data.to_model_input(next(iter(data.evaluation_part(split, part=0, num_parts=1))), augmented=False)
        images = torch.stack([_read(path) for path in data.dataset(split).paths]).float() / 255.0
        images = (images.permute(0, 3, 1, 2) - 0.4) / 0.3
        torch.testing.assert_close(batch.image, images[: len(batch.image)])
        masks = torch.stack([_read(path) for path in data.dataset(split).masks])
        tables[split] = backbone.forward_features(images)[0], masks
    maps, masks = tables["test"]
    bank, bank_labels = _labeled_cells(*tables["train"])
    head = HEAD(in_features=3, num_classes=3)
    head.fit_best(bank, bank_labels, *_labeled_cells(*tables["val"]))
    query = maps.permute(0, 2, 3, 1).reshape(-1, 3)
    found = nearest_neighbors(query, bank, 3)
    votes = ((found.similarity - found.similarity[:, :1]) / 0.1).exp()
    ballots = count_votes(bank_labels[found.position], votes, 3).clamp(min=0.0)
    for name, scores in (("linear", head(query)), ("knn", ballots / ballots.sum(dim=1, keepdim=True))):
        grid = scores.view(6, 4, 4, 3).permute(0, 3, 1, 2)
        pixels = nn.functional.interpolate(grid, size=(16, 16), mode="bilinear").argmax(dim=1)
        counted = masks != 255
        hits = (pixels == masks)[counted].float().mean().item()
        assert report.metrics[f"pixel_accuracy_{name}"] == pytest.approx(100.0 * hits)


def _read(path):
    import numpy as np  # noqa: PLC0415

    return torch.from_numpy(np.array(Image.open(path)))


def _labeled_cells(maps, masks):
    """Cells and classes, by a plain loop; no cell of these pictures is without a class."""
    rows, labels = [], []
    for image, mask in zip(maps, masks, strict=True):
        for row in range(4):
            for col in range(4):
                cell = mask[4 * row : 4 * row + 4, 4 * col : 4 * col + 4].flatten()
                rows.append(image[:, row, col])
                labels.append(int(cell[cell != 255].mode().values))
    return torch.stack(rows), torch.tensor(labels)


def test_the_protocol_counts_patches_and_says_what_was_chosen_where(data, make_trainer):
    report = Dense(head=HEAD, k=3, max_patches=40).evaluate(CellColors(), data, make_trainer)
    assert report.protocol == (
        "dense: patches of CellColors's last feature map (3, stride 4 px), L-BFGS logistic regression on standardized "
        "features with inverse strength of 0.01, 1 by hits on val patches (40), and cosine k-NN with k=3, temperature "
        "0.07, train (8 images, 40 patches), test (6), 3 classes, 16x16 px, center crop 1"
    )
    assert report.settings["selected_on"] == "val (40 patches)"


def test_the_test_masks_choose_nothing(data, draw_folder, make_segmentation, make_trainer):
    settings = [Dense(head=HEAD, k=3).evaluate(CellColors(), data, make_trainer).settings]
    for path in (data.root / "masks" / "test").iterdir():
        Image.new("L", (16, 16), 2).save(path)
    other = make_segmentation(data.root)
    settings.append(Dense(head=HEAD, k=3).evaluate(CellColors(), other, make_trainer).settings)
    assert settings[0] == settings[1]


def test_the_class_of_a_cell_is_the_most_frequent_of_those_that_count() -> None:
    masks = torch.tensor([[[1, 1, 255, 255], [2, 0, 255, 255], [0, 3, 255, 255], [3, 0, 255, 9]]], dtype=torch.uint8)
    assert majority_classes(masks, grid=(2, 2)).tolist() == [[[1, 255], [0, 9]]]  # of 0 and 3, twice each, the lower
    with pytest.raises(ValueError, match="4x4 px are not 3x3 whole cells"):
        majority_classes(masks, grid=(3, 3))


def test_masks_of_one_class_are_refused_with_the_usual_reason(data, make_segmentation, make_trainer):
    for path in (data.root / "masks" / "train").iterdir():
        mask = _read(path)
        Image.fromarray(torch.where(mask > 0, 255, 0).to(torch.uint8).numpy()).save(path)
    with pytest.raises(ValueError, match=r"have class 0 alone \(255 means no class: where it marks an object, write 1"):
        Dense(head=HEAD, k=3).evaluate(CellColors(), make_segmentation(data.root), make_trainer)


def test_more_neighbors_than_patches_are_refused(data, make_trainer):
    with pytest.raises(ValueError, match=r"asks for k=129 neighbors among 128 patches; set eval.k=128 or less"):
        Dense(head=HEAD, k=129).evaluate(CellColors(), data, make_trainer)


def test_images_without_masks_are_refused(make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((6, 3, 3), num_classes=3, spread=9.0), num_classes=3)
    with pytest.raises(
        ValueError, match="needs images with masks, which InMemory does not have; add data=segmentation"
    ):
        Dense(head=HEAD).evaluate(CellColors(), data, make_trainer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"k": 0}, r"eval.k must be at least 1"), ({"temperature": 0.0}, r"eval.temperature must be positive")],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Dense(head=HEAD, **settings)
