"""All rates in one pass, the choice made on held-out training images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unmask.evaluation.features import Features, FrozenFeatures
from unmask.evaluation.linear import LinearProbe
from unmask.optim.schedules import warmup_cosine
from unmask.randomness import keyed_permutation, stream_key

RATES = (0.01, 0.3, 5.0)


def train_by_hand(train, first_weight, *, base_lr, epochs, batch_size, seed):
    """One rate, one plain loop; what does not fill a batch is left out of the epoch."""
    norm = nn.BatchNorm1d(train.features.shape[1], affine=False, eps=1e-6)
    layer = nn.Linear(*first_weight.shape)
    layer.weight.data.copy_(first_weight.T)
    layer.bias.data.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=base_lr * batch_size / 256, momentum=0.9)
    steps = len(train.labels) // batch_size
    schedule = warmup_cosine(optimizer, total_steps=epochs * steps, steps_per_epoch=float(steps), warmup_epochs=0.0)
    for epoch in range(epochs):
        order = keyed_permutation(stream_key(seed, "linear-probe-order", epoch), len(train.labels))
        for step in range(steps):
            rows = order[step * batch_size : (step + 1) * batch_size]
            optimizer.zero_grad()
            F.cross_entropy(layer(norm(train.features[rows])), train.labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return layer, norm


def test_the_grid_equals_one_plain_loop_a_rate():
    train = Features(3.0 + 2.0 * torch.randn(70, 6), torch.randint(0, 4, (70,)))
    settings = {"epochs": 5, "batch_size": 16, "seed": 3}
    grid = LinearProbe(base_lrs=RATES, **settings).fit(train, 4)
    first = LinearProbe(base_lrs=(1e-30,), **settings).fit(train, 4).weight[0].detach()
    for rate, base_lr in enumerate(RATES):
        layer, norm = train_by_hand(train, first, base_lr=base_lr, **settings)
        torch.testing.assert_close(grid.weight[rate].T, layer.weight, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(grid.bias[rate, 0], layer.bias, atol=1e-4, rtol=1e-4)
        expected = layer(norm.eval()(train.features))
        torch.testing.assert_close(grid.classify(train.features, rate), expected, atol=1e-3, rtol=1e-3)


def test_first_weights_are_small_and_normal():
    train = Features(torch.randn(64, 256), torch.randint(0, 4, (64,)))
    first = LinearProbe(base_lrs=(1e-30,), epochs=1).fit(train, 16).weight[0].detach()
    assert first.std().item() == pytest.approx(0.01, rel=0.05)  # 4096 draws: 1.1 % standard error


def test_a_rate_that_diverges_leaves_the_others_alone():
    train = Features(torch.randn(64, 6), torch.randint(0, 4, (64,)))
    alone = LinearProbe(base_lrs=(0.1,), epochs=3).fit(train, 4)
    beside = LinearProbe(base_lrs=(0.1, 1e300), epochs=3).fit(train, 4)
    assert not beside.weight[1].isfinite().all()
    torch.testing.assert_close(beside.weight[0], alone.weight[0])


def test_results_repeat_whatever_the_global_generator(make_backbone, make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((40, 20, 30), num_classes=3, spread=90.0), num_classes=3)
    backbone, probe = make_backbone(), LinearProbe(base_lrs=RATES, epochs=3, batch_size=16)
    first = probe.evaluate(backbone, data, make_trainer)
    torch.manual_seed(99)
    assert probe.evaluate(backbone, data, make_trainer) == first


def test_the_backbone_is_never_trained(make_backbone, make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((40, 20, 30), num_classes=3, spread=90.0), num_classes=3)
    backbone = make_backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    LinearProbe(base_lrs=RATES, epochs=2).evaluate(backbone, data, make_trainer)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_the_rate_is_chosen_on_val_though_test_prefers_another(
    make_backbone, make_data, draw_split, make_trainer, monkeypatch
):
    """Val keeps the training labels, test has them rotated: the worst learner on val is the best on test."""
    images, labels = draw_split(60, num_classes=3, spread=60.0)
    splits = {"train": (images, labels), "val": (images, labels), "test": (images, (labels + 1) % 3)}
    rates = (1e-9, 0.3)
    report = LinearProbe(base_lrs=rates, epochs=10, batch_size=16).evaluate(
        make_backbone(), make_data(splits, num_classes=3), make_trainer
    )
    layer, _, values = str(report.settings["val_top1_of_grid"]).partition(": ")
    on_val = [float(value) for value in values.split(", ")]
    assert on_val[0] < 80.0 < on_val[1]
    assert report.metrics["top1"] < 100.0 - on_val[0] - 20.0  # the other rate would have scored more on test
    assert layer == "stage 1 mean"
    assert report.settings["selected"] == "stage 1 mean, base_lr=0.3"
    assert report.settings["selected_on"] == "val (60)"
    assert report.metrics["val_top1"] == pytest.approx(on_val[1], abs=1e-3)
    assert report.settings["is_at_edge_of_grid"] == "yes"


@pytest.mark.parametrize(
    ("num_images", "batch_size", "epochs"),
    [(7, 2, 334), (50, 16, 334), (1486, 64, 90), (9000, 512, 90), (45_000, 1024, 90)],
)
def test_batch_and_epochs_follow_the_images_where_they_are_not_given(num_images, batch_size, epochs):
    assert LinearProbe().length_on(num_images) == (batch_size, epochs)
    assert LinearProbe(epochs=3).length_on(num_images) == (batch_size, 3)
    assert LinearProbe(batch_size=4, epochs=3).length_on(num_images) == (4, 3)


def test_a_probe_on_few_images_is_as_long_as_its_protocol_says(make_backbone, make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((50, 20, 30), num_classes=3, spread=90.0), num_classes=3)
    backbone = make_backbone()
    followed = LinearProbe(base_lrs=RATES).evaluate(backbone, data, make_trainer)
    given = LinearProbe(base_lrs=RATES, batch_size=16, epochs=334).evaluate(backbone, data, make_trainer)
    assert "batch 16, 334 epochs" in followed.protocol
    assert followed == given


def test_separate_blobs_are_told_apart(make_backbone, make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((48, 20, 30), num_classes=6, spread=3.0), num_classes=6)
    report = LinearProbe(base_lrs=(0.01, 0.3, 1.0), epochs=20, batch_size=16).evaluate(
        make_backbone(), data, make_trainer
    )
    assert (report.metrics["top1"], report.metrics["top5"]) == (100.0, 100.0)
    assert "batch 16, 20 epochs, train (48), test (30)" in report.protocol


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": []},
        {"pools": []},
        {"base_lrs": ()},
        {"base_lrs": (0.1, 0.01)},
        {"base_lrs": (0.0,)},
        {"epochs": 0},
        {"batch_size": 1},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="eval"):
        LinearProbe(**settings)


@pytest.fixture
def vit_data(make_data, draw_splits):
    splits = draw_splits((40, 30, 30), num_classes=3, spread=60.0, side=32)
    return lambda **changes: make_data(splits | changes, num_classes=3, image_size=32)


def test_layer_pooling_and_rate_are_chosen_together_on_val(make_vit, vit_data, make_trainer):
    backbone, data = make_vit(), vit_data()
    probe = LinearProbe(base_lrs=(0.01, 0.3), layers=[1, 4], pools=["mean", "cls"], epochs=3, batch_size=16)
    report = probe.evaluate(backbone, data, make_trainer)
    grid = dict(line.split(": ") for line in str(report.settings["val_top1_of_grid"]).split("; "))
    assert list(grid) == ["block 4 mean", "block 1 mean", "block 1 cls", "block 4 cls"]
    assert all(f"{name}" in report.protocol for name in grid)

    shared = FrozenFeatures(backbone, data, make_trainer, probe.pooled_layers(backbone))
    scores = {}
    for layer, name in zip(probe.pooled_layers(backbone), grid, strict=True):
        train, val, test = (shared.read(split, layer) for split in ("train", "val", "test"))
        scores[name] = probe.score(train, val, test, 3)
        assert [float(value) for value in grid[name].split(", ")] == pytest.approx(scores[name].val_top1, abs=1e-3)
    best = max(scores, key=lambda name: max(scores[name].val_top1))
    rate = (0.01, 0.3)[scores[best].best]
    assert report.settings["selected"] == f"{best}, base_lr={rate:g}"
    assert report.metrics["top1"] == scores[best].metrics["top1"]
    assert report.metrics["final_mean_top1"] == scores["block 4 mean"].metrics["top1"]
    assert report.metrics["final_mean_top1_ci95_low"] == scores["block 4 mean"].metrics["top1_ci95_low"]


def test_test_labels_never_reach_the_choice(make_vit, vit_data, make_trainer):
    backbone, data = make_vit(), vit_data()
    images, labels = data.splits["test"]
    probe = LinearProbe(base_lrs=(0.01, 0.3, 1.0), epochs=2, batch_size=16)
    first = probe.evaluate(backbone, data, make_trainer)
    scrambled = probe.evaluate(backbone, vit_data(test=(images, labels[torch.randperm(30)])), make_trainer)
    assert scrambled.settings == first.settings
    assert scrambled.metrics["val_top1"] == first.metrics["val_top1"]
    assert scrambled.metrics["top1"] != first.metrics["top1"]


def test_the_default_grid_spreads_over_depth_and_puts_the_pooled_features_first(make_vit, make_swin):
    def names(backbone):
        return [(layer.number + 1, layer.pool) for layer in LinearProbe().pooled_layers(backbone)]

    assert names(make_vit(depth=6, num_stages=1)) == [
        (6, "mean"), (2, "mean"), (2, "cls"), (3, "mean"), (3, "cls"), (5, "mean"), (5, "cls"), (6, "cls"),
    ]  # fmt: skip
    assert names(make_swin()) == [(3, "mean"), (1, "mean"), (2, "mean")]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layers": [1, 5]}, r"eval.layers has \[5\], but TimmViT has block 1 to block 4; choose from 1 to 4"),
        ({"layers": [0]}, r"eval.layers has \[0\]"),
        ({"pools": ["median"]}, r"eval.pools has \['median'\], which TimmViT does not offer; choose from \['mean'"),
    ],
)
def test_layers_and_poolings_a_backbone_lacks_are_refused(make_vit, vit_data, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        LinearProbe(**settings).evaluate(make_vit(), vit_data(), lambda: None)


def test_a_single_training_image_is_refused(make_backbone, make_data, draw_splits):
    data = make_data(draw_splits((1, 6, 6), num_classes=3, spread=3.0), num_classes=3)
    with pytest.raises(ValueError, match="the train split has 1 image; it needs 2"):
        LinearProbe().evaluate(make_backbone(), data, lambda: None)
