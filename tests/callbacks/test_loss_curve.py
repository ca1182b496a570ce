import math

import pytest
from matplotlib.image import imread

from unmask.callbacks.loss_curve import LossCurve, loss_figure

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


def test_history_holds_interval_means_and_every_validation(fit, make_mae, training_losses, tmp_path):
    method, curve = make_mae(), LossCurve()
    losses = training_losses(method)
    trainer = fit(curve, log_every_n_steps=5, method=method)

    steps, values = zip(*curve.train, strict=True)
    assert steps == (5, 10, 12)  # the last one ends with the run
    assert values == pytest.approx([sum(losses[:5]) / 5, sum(losses[5:10]) / 5, sum(losses[10:]) / 2], rel=1e-6)
    assert curve.learning_rate == [(5, 1e-3), (10, 1e-3), (12, 1e-3)]
    assert [step for step, _ in curve.val] == [6, 12]
    assert curve.val[-1][1] == float(trainer.callback_metrics["val/loss"])
    assert len(imread(tmp_path / "loss_curve.png")) > 300


def test_the_sanity_check_is_no_validation(fit):
    curve = LossCurve()
    fit(curve, max_epochs=1, num_sanity_val_steps=1)
    assert [step for step, _ in curve.val] == [6]


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable")  # Lightning cannot know that the sampler is
def test_a_resumed_run_has_the_history_of_one_that_was_not_interrupted(fit, save_at_step):
    whole, resumed = LossCurve(), LossCurve()
    saving = save_at_step(7)  # in the middle of an interval
    fit(whole, saving)
    fit(resumed, ckpt_path=saving.path)

    assert resumed.train == whole.train
    assert resumed.val == whole.val
    assert resumed.learning_rate == whole.learning_rate
    assert [step for step, _ in whole.train] == [2, 4, 6, 8, 10, 12]


def test_the_picture_is_drawn_after_each_epoch(fit, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "unmask.callbacks.loss_curve.keep_figure", lambda figure, path: drawn.append((path.name, curve.train[-1][0]))
    )
    curve = LossCurve()
    fit(curve)
    assert drawn == [("loss_curve.png", 6), ("loss_curve.png", 12), ("loss_curve.png", 12)]


@pytest.mark.parametrize(
    ("losses", "scale"), [([1.0, 0.2], "linear"), ([1.0, 0.1], "log"), ([1.0, -0.1], "linear"), ([], "linear")]
)
def test_a_wide_range_of_losses_is_drawn_on_a_logarithmic_axis(losses, scale):
    axes, _ = loss_figure([(i + 1, loss) for i, loss in enumerate(losses)], [(1, 1.0)], [], title="MAE").axes
    assert axes.get_yscale() == scale


def test_losses_that_are_not_finite_leave_a_gap():
    train = [(1, 1.0), (2, math.inf), (3, math.nan), (4, 0.5)]
    axes, _ = loss_figure(train, [], [], title="MAE").axes
    (line,) = axes.lines
    assert [math.isfinite(value) for value in line.get_ydata()] == [True, False, False, True]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train, now 0.5"]
