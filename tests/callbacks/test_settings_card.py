import logging
from functools import partial

import pytest
import torch
from lightning import Callback
from torch.optim import AdamW

from unmask.callbacks.settings_card import SettingsCard
from unmask.optim.schedules import warmup_cosine

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


@pytest.fixture
def said(fit, make_mae, caplog):
    """The lines of the card of a run, by their names."""
    caplog.set_level(logging.INFO, logger="unmask")

    def run(*callbacks, **changes):
        card = SettingsCard(learning_rate="as given", seed=7, limits_batch=" (limited)")
        fit(card, *callbacks, **{"method": make_mae(), **changes})
        lines = [record.getMessage() for record in caplog.records if record.name == "unmask"]
        return dict(line.strip().split("  ", 1) for line in lines)

    return run


def test_the_card_says_what_the_built_objects_hold(said, make_mae, tmp_path):
    schedule = partial(warmup_cosine, warmup_epochs=0.5, start_factor=0.1, final_factor=0.25)
    method = make_mae(optimizer=partial(AdamW, lr=2e-3), schedule=schedule)
    card = said(method=method, max_epochs=2, accumulate_grad_batches=2)

    trainable = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    assert card["method"].startswith(f"MAE, {trainable / 1e6:.2f} M trainable parameters; backbone TimmViT, ")
    assert card["images"] == "24 to train on, 10 held out to validate; 32x32 px"
    assert card["masked"] == "75% of an image"
    # The data module's batch is 4, in two parts of 2: six steps an epoch, of which three are warm-up.
    assert card["batch"] == "4 = 2 x 1 device(s) x 2 accumulated (limited); 6 steps an epoch, 2 epochs, 12 steps"
    last = 0.25 + 0.75 / 2 * (1 + torch.cos(torch.tensor(torch.pi * 8 / 9)))  # eight of nine steps behind the warm-up
    expected = f"0.002 at its peak as given; 3 steps of warm-up from 0.0002, {0.002 * float(last):.3g} at the last step"
    assert card["learning rate"] == expected
    assert card["device"].endswith("precision 32-true, seed 7")
    assert card["output"] == str(tmp_path)


def test_a_run_cut_short_by_steps_is_told_by_its_steps(said):
    assert said(max_steps=9)["batch"].endswith("; 6 steps an epoch, 1.5 epochs, 9 steps")


def test_the_time_left_is_told_after_some_steps(said, monkeypatch):
    times = iter([100.0, 105.0])  # after the first step and after ten more; it is not asked again
    monkeypatch.setattr("unmask.callbacks.settings_card.perf_counter", lambda: next(times))
    card = said(max_epochs=4)

    assert card["expected"].startswith("6 s to the end, 0.5 s a step without validation; ")  # 13 of 24 steps are left


def test_a_size_of_checkpoints_is_that_of_weights_and_moments(said, make_mae):
    method = make_mae(optimizer=partial(AdamW, lr=2e-3))
    card = said(Grow(method), method=method, max_epochs=2)
    weights = sum(tensor.nbytes for tensor in method.state_dict().values())
    assert card["expected"].endswith(f"; {3 * weights / 1e6:,.0f} MB a checkpoint")


class Grow(Callback):
    """Makes a tiny network's checkpoint worth rounding to megabytes."""

    def __init__(self, method):
        method.extra = torch.nn.Parameter(torch.zeros(2_000_000))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pl_module.extra.grad = torch.zeros_like(pl_module.extra)


def test_a_short_run_promises_nothing(said):
    assert "expected" not in said(max_steps=5)
