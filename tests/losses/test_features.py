import pytest
import torch
import torch.nn.functional as F

from unmask.losses.features import feature_distance


def smooth_l1(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def test_it_equals_a_loop_over_positions_and_channels() -> None:
    student, teacher = 2 * torch.randn(2, 3, 2, 4), 2 * torch.randn(2, 3, 2, 4)
    errors = [smooth_l1(d) for d in (student - teacher).flatten().tolist()]
    found = feature_distance(student, teacher, norm="none")
    assert found.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_layernorm_makes_it_blind_to_scale_and_offset_of_a_position() -> None:
    student, teacher = torch.randn(2, 3, 2, 16), torch.randn(2, 3, 2, 16)
    scaled = student * torch.rand(2, 3, 2, 1).add(0.5) + torch.randn(2, 3, 2, 1)
    torch.testing.assert_close(feature_distance(scaled, teacher), feature_distance(student, teacher), rtol=1e-3, atol=0)
    assert not torch.isclose(feature_distance(scaled, teacher, norm="none"), feature_distance(student, teacher))


def test_only_the_positions_asked_for_count() -> None:
    student, teacher, where = torch.randn(2, 3, 3, 4), torch.randn(2, 3, 3, 4), torch.rand(2, 3, 3) < 0.4
    expected = F.smooth_l1_loss(student[where], teacher[where])
    torch.testing.assert_close(feature_distance(student, teacher, norm="none", where=where), expected)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = torch.randn(1, 2, 2, 4, requires_grad=True), torch.randn(1, 2, 2, 4, requires_grad=True)
    feature_distance(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
