import math

import pytest
import torch
from torch import nn

from unmask.targets.ema_teacher import EMATeacher


def networks() -> dict[str, nn.Module]:
    return {"body": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "head": nn.Linear(2, 2)}


def shift(student: dict[str, nn.Module], amount: float) -> None:
    with torch.no_grad():
        for network in student.values():
            for parameter in network.parameters():
                parameter.add_(amount * torch.randn_like(parameter))


def test_it_starts_as_a_copy_that_no_gradient_reaches() -> None:
    student = networks()
    teacher = EMATeacher(student, time_constant=100.0)
    assert torch.equal(teacher["head"].weight, student["head"].weight)
    assert teacher["head"].weight.data_ptr() != student["head"].weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_after_n_steps_it_is_the_closed_form_of_the_average() -> None:
    student = networks()
    teacher = EMATeacher(student, time_constant=100.0)
    history, kept = [], math.exp(-8 / 100.0)
    for step in range(6):
        shift(student, 1.0)
        history.append(student["head"].weight.detach().clone())
        teacher.update(student, num_images=8, step_of_epoch=step)
    # The first update copies: its weights keep what all the others leave over.
    shares = [kept**5] + [(1 - kept) * kept ** (5 - step) for step in range(1, 6)]
    expected = sum(share * weight for share, weight in zip(shares, history, strict=True))
    torch.testing.assert_close(teacher["head"].weight, expected)


def test_two_steps_of_n_images_fade_as_much_as_one_of_2n() -> None:
    student = networks()
    halves, whole = (EMATeacher(student, time_constant=50.0) for _ in range(2))
    for teacher in (halves, whole):
        teacher.update(student, num_images=4, step_of_epoch=0)
    shift(student, 1.0)
    halves.update(student, num_images=4, step_of_epoch=1)
    halves.update(student, num_images=4, step_of_epoch=2)
    whole.update(student, num_images=8, step_of_epoch=1)
    torch.testing.assert_close(halves["head"].weight, whole["head"].weight)


def test_a_momentum_acts_at_the_first_step_of_an_epoch_and_every_nth_after() -> None:
    student = networks()
    teacher = EMATeacher(student, momentum=0.9, every_n_steps=3)
    changed_at = []
    for step in range(8):
        before = teacher["head"].weight.clone()
        shift(student, 1.0)
        teacher.update(student, num_images=1, step_of_epoch=step)
        if not torch.equal(before, teacher["head"].weight):
            changed_at.append(step)
        if step == 3:
            torch.testing.assert_close(teacher["head"].weight, 0.9 * before + 0.1 * student["head"].weight)
    assert changed_at == [0, 3, 6]


@pytest.mark.parametrize(
    "settings", [{"time_constant": 640.0}, {"momentum": 0.9, "every_n_steps": 3}, {"momentum": 0.5}]
)
def test_weights_fade_to_1_over_e_within_its_time_constant(settings: dict[str, float]) -> None:
    student = networks()
    teacher = EMATeacher(student, **settings)
    teacher.update(student, num_images=8, step_of_epoch=0)
    before, steps = student["head"].bias.detach().clone(), 600
    with torch.no_grad():
        student["head"].bias.zero_()
    for step in range(1, steps + 1):
        teacher.update(student, num_images=8, step_of_epoch=step)
    fading = math.exp(-8 * steps / teacher.time_constant_of(8))
    torch.testing.assert_close(teacher["head"].bias, fading * before, rtol=1e-3, atol=0.0)


def test_without_averaging_it_remembers_nothing() -> None:
    assert EMATeacher(networks(), momentum=0.0).time_constant_of(8) == 0.0


def test_what_is_not_averaged_is_the_students_of_the_moment() -> None:
    student = networks()
    teacher = EMATeacher(
        student, momentum=0.9, every_n_steps=3, scope="stages", is_of_a_stage=lambda name: name.startswith("body.")
    )
    for step in range(3):
        shift(student, 1.0)
        teacher.update(student, num_images=1, step_of_epoch=step)
        assert torch.equal(teacher["head"].weight, student["head"].weight)
    assert not torch.equal(teacher["body"][0].weight, student["body"][0].weight)


def test_by_default_everything_is_averaged() -> None:
    student = networks()
    teacher = EMATeacher(student, momentum=0.9, is_of_a_stage=lambda _: False)
    teacher.update(student, num_images=1, step_of_epoch=0)
    before = teacher["head"].weight.clone()
    shift(student, 1.0)
    teacher.update(student, num_images=1, step_of_epoch=1)
    torch.testing.assert_close(teacher["head"].weight, 0.9 * before + 0.1 * student["head"].weight)


def test_buffers_are_copied() -> None:
    student = networks()
    teacher = EMATeacher(student, time_constant=10.0)
    student["body"].train()(torch.randn(8, 3))
    teacher.update(student, num_images=1, step_of_epoch=0)
    assert torch.equal(teacher["body"][1].running_mean, student["body"][1].running_mean)


def test_it_is_in_eval_mode_whatever_its_owner_does() -> None:
    owner = nn.ModuleDict({"teacher": EMATeacher(networks(), time_constant=10.0)}).train()
    assert not any(part.training for part in owner["teacher"].modules())
    noisy = nn.ModuleDict({"teacher": EMATeacher(networks(), momentum=0.9, is_stochastic=True)})
    assert all(part.training for part in noisy.train()["teacher"].modules())
    assert not any(part.training for part in noisy.eval()["teacher"].modules())


def test_a_restored_teacher_goes_on_averaging_and_does_not_copy_again() -> None:
    student = networks()
    teacher = EMATeacher(student, time_constant=10.0)
    teacher.update(student, num_images=1, step_of_epoch=0)
    restored = EMATeacher(networks(), time_constant=10.0)
    restored.load_state_dict(teacher.state_dict())
    shift(student, 1.0)
    for each in (teacher, restored):
        each.update(student, num_images=1, step_of_epoch=1)
    assert torch.equal(restored["head"].weight, teacher["head"].weight)
    assert not torch.equal(restored["head"].weight, student["head"].weight)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "by time_constant or by momentum, one of them"),
        ({"time_constant": 1.0, "momentum": 0.9}, "one of them"),
        ({"time_constant": 0.0}, "positive number of images"),
        ({"momentum": 1.0}, r"\[0, 1\)"),
        ({"momentum": 0.9, "every_n_steps": 0}, "at least 1"),
        ({"time_constant": 5.0, "every_n_steps": 2}, "goes with momentum alone"),
        ({"time_constant": 5.0, "scope": "blocks"}, "method.teacher.scope=blocks does not exist; use all or stages"),
    ],
)
def test_mistakes_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EMATeacher(networks(), **settings)
