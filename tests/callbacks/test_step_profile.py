import json
import logging

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler
from torch import nn

from unmask.callbacks import step_profile
from unmask.callbacks.step_profile import StepProfile, describe_bottleneck, describe_parts, read_profile

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when a test says so."""
    now = [0.0]
    monkeypatch.setattr(step_profile, "perf_counter", lambda: now[0])
    return now


def test_each_part_is_charged_with_its_own_time(make_mae, make_data, make_trainer, tmp_path, clock, caplog):  # noqa: PLR0917
    caplog.set_level(logging.INFO, logger="unmask")
    method, data = make_mae(), make_data()

    def slow(owner, name, seconds):
        original = getattr(type(owner), name)

        def taking_time(self, *arguments, **settings):
            clock[0] += seconds
            return original(self, *arguments, **settings)

        owner.__class__ = type(type(owner).__name__, (type(owner),), {name: taking_time})

    slow(method, "draw_masks", 1.0)
    slow(method.backbone, "forward_visible", 2.0)
    slow(method.decoder, "forward", 3.0)
    slow(method, "backward", 5.0)
    slow(data, "on_after_batch_transfer", 6.0)

    class Slow(Callback):
        def on_train_batch_start(self, *_):
            clock[0] += 7.0

    trainer = make_trainer(Slow(), StepProfile(), max_epochs=3, limit_val_batches=0)
    trainer.fit(method, datamodule=data)

    parts = read_profile(tmp_path)["parts"]
    expected = {"mask": 1.0, "backbone": 2.0, "decoder": 3.0, "backward": 5.0, "transfer": 6.0, "callbacks": 7.0}
    assert {name: parts[name] for name in expected} == pytest.approx(expected)
    assert sum(parts.values()) == pytest.approx(24.0)
    assert json.loads((tmp_path / "step_profile.json").read_text())["batches"] > 3
    said = next(line for line in caplog.messages if line.startswith("a batch takes"))
    assert said.startswith("a batch takes 24 s: callbacks 29%, transfer 25%, backward 21%")
    assert any("bottleneck: callbacks and logging take 29%" in line and "in Slow;" in line for line in caplog.messages)


def test_a_teacher_is_charged_with_the_passes_of_its_networks(make_mae, make_data, make_trainer, tmp_path, clock):
    class Network(nn.Linear):
        def forward_features(self, images):
            clock[0] += 2.0
            return self(images)

    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.networks = nn.ModuleDict({"backbone": Network(2, 2)})

    method = make_mae()
    method.teacher = Teacher()
    draw_masks = method.draw_masks

    def let_the_teacher_look(images, keys=None):
        method.teacher.networks["backbone"].forward_features(torch.ones(1, 2))
        return draw_masks(images, keys)

    method.draw_masks = let_the_teacher_look
    trainer = make_trainer(StepProfile(), max_epochs=3, limit_val_batches=0)
    trainer.fit(method, datamodule=make_data())

    assert read_profile(tmp_path)["parts"]["teacher"] == pytest.approx(2.0)


def test_training_is_the_same_and_nothing_is_left_replaced(fit, make_mae):
    def weights(*callbacks):
        torch.manual_seed(0)
        method = make_mae()
        fit(*callbacks, method=method, max_epochs=3)
        return method, method.state_dict()

    _, without = weights()
    method, beside = weights(StepProfile())
    assert all(torch.equal(without[name], beside[name]) for name in without)
    assert not [name for part in method.modules() for name in vars(part) if name.startswith(("forward", "draw"))]


def test_what_comes_between_epochs_is_in_no_sample(fit, clock, tmp_path):
    class Pause(Callback):
        def on_validation_start(self, *_):
            clock[0] += 1000.0

        def on_train_epoch_end(self, *_):
            clock[0] += 1000.0

        def on_train_batch_start(self, *_):
            clock[0] += 1.0

    fit(StepProfile(), Pause(), max_epochs=4, logger=CSVLogger(tmp_path))
    assert sum(read_profile(tmp_path)["parts"].values()) == pytest.approx(1.0)


def test_a_profiler_of_the_user_stays(fit, tmp_path):
    profiler = SimpleProfiler(dirpath=tmp_path, filename="own")
    trainer = fit(StepProfile(), max_epochs=3, profiler=profiler)
    assert trainer.profiler is profiler
    assert not (tmp_path / "step_profile.json").exists()
    assert isinstance(fit(max_epochs=1).profiler, PassThroughProfiler)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"data wait": 3, "backbone": 7}, "waiting for images takes 30% of the time; more data.num_workers than 2"),
        ({"callbacks": 1, "logging": 1, "backward": 8}, "callbacks and logging take 20% of the time, most of it in X"),
        ({"transfer": 2, "backbone": 8}, "moving and preparing images on the device takes 20%"),
        ({"optimizer": 4, "backbone": 6}, "the optimizer takes 40% of the time; a larger global_batch_size"),
        (
            {"backbone": 3, "decoder": 1, "backward": 5, "loop": 1},
            "the network itself takes 90% of the time, backbone the most of it forward; a faster device",
        ),
    ],
)
def test_the_largest_hindrance_is_named_with_what_helps(parts, said):
    assert describe_bottleneck(parts, num_workers=2, costliest_callback="X").startswith(f"bottleneck: {said}")


def test_a_line_says_the_parts():
    assert describe_parts({"backbone": 0.03, "loss": 0.01}) == "a batch takes 40 ms: backbone 75%, loss 25%"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"parts": 3}', '{"parts": {}}'])
def test_a_damaged_file_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "step_profile.json").write_text(content)
    assert read_profile(tmp_path) is None
