import numpy as np
import pytest
import torch
from PIL import Image

from unmask.callbacks.feature_pictures import FeaturePictures, color_patches, nearest

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


@pytest.mark.parametrize("channels", [5, 200])  # fewer, and more than there are patches
def test_colors_are_the_principal_components_of_all_patches(channels):
    maps = torch.randn(3, channels, 4, 6) * torch.arange(1.0, channels + 1.0)[:, None, None]
    colors = color_patches(maps)

    patches = maps.movedim(1, -1).flatten(0, 2)
    patches = patches - patches.mean(dim=0)
    left, _, _ = torch.linalg.svd(patches, full_matrices=False)
    found = colors.movedim(1, -1).flatten(0, 2)
    likeness = (torch.nn.functional.normalize(found, dim=0) * left[:, :3]).sum(dim=0)
    assert torch.allclose(likeness.abs(), torch.ones(3), atol=1e-3)
    assert torch.allclose(found.std(dim=0, correction=0), torch.ones(3), atol=1e-3)


def test_colors_are_turned_towards_the_earlier_ones():
    maps = torch.randn(2, 8, 4, 4)
    first = color_patches(maps)
    swapped = -first.flip(1)  # other signs in another order
    assert torch.allclose(color_patches(maps, like=swapped), swapped, atol=1e-3)
    assert torch.equal(color_patches(maps, like=first[:1]), first)  # of other images: left as they are


def test_features_of_fewer_than_three_channels_or_all_alike_are_drawn_too():
    assert color_patches(torch.randn(2, 2, 4, 4)).shape == (2, 3, 4, 4)
    assert color_patches(torch.ones(2, 8, 4, 4)).isfinite().all()


def test_neighbors_are_those_of_most_alike_direction_and_never_oneself():
    features = torch.tensor([[1.0, 0.0], [5.0, 0.1], [1.0, 1.0], [-1.0, 0.0]])
    assert nearest(features, torch.tensor([0, 3]), count=2).tolist() == [[1, 2], [2, 1]]
    assert nearest(features, torch.tensor([0]), count=9).tolist() == [[1, 2, 3]]


def test_pictures_of_each_epoch_lie_in_the_folder_and_training_is_the_same(fit, make_mae, tmp_path):
    def weights(*callbacks):
        torch.manual_seed(0)
        method = make_mae()
        fit(*callbacks, method=method, max_epochs=3, limit_val_batches=0)
        return method.state_dict()

    without = weights()
    drawing = FeaturePictures(num_images=3, num_neighbors=2, every_n_epochs=2)
    beside = weights(drawing)
    assert all(torch.equal(without[name], beside[name]) for name in without)

    names = ["epoch_0002.png", "epoch_0003.png"]
    assert [path.name for path in sorted((tmp_path / "features").iterdir())] == names
    assert [path.name for path in sorted((tmp_path / "neighbors").iterdir())] == names
    features = np.asarray(Image.open(tmp_path / "features/epoch_0003.png"))
    neighbors = np.asarray(Image.open(tmp_path / "neighbors/epoch_0003.png"))
    assert features.shape == (2 * 112 + 4, 3 * 116 - 4, 3)
    assert neighbors.shape == (3 * 116 - 4, 3 * 116 - 4, 3)
    assert np.array_equal(features[:112, :112], neighbors[:112, :112])  # the first image, above its colors
    assert len(np.unique(features[116:].reshape(-1, 3), axis=0)) > 10

    other = FeaturePictures()
    other.load_state_dict(drawing.state_dict())
    assert torch.equal(other._colors, drawing._colors)
