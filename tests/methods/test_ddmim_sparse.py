"""DDMIM whose student leaves masked units out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.heads.mae_decoder import MAEDecoder
from unmask.heads.pixel_shuffle import PixelShuffleHead
from unmask.heads.projector import Projector
from unmask.masking.random import RandomMaskGenerator
from unmask.masking.stages import StageMaskGenerator
from unmask.methods.ddmim_sparse import SparseDDMIM
from unmask.methods.ddmim_terms import ContrastTerm, ReconstructionTerm, StageFeatureTerm
from unmask.methods.ddmim_views import TwoViews
from unmask.optim.schedules import constant
from unmask.patches import PatchMask
from unmask.targets.ema_teacher import EMATeacher
from unmask.types import View

UNIT = 8  # px: of three stages of 4, 8 and 16 px the mask unit is a token of the second
WHOLE, LEFT = (torch.tensor([[0.0, 0.0, 1.0, width]]).expand(4, 4) for width in (1.0, 0.5))


def make_sparse(backbone: nn.Module, **changes: Any) -> SparseDDMIM:
    settings: dict[str, Any] = {
        "mask_generator": RandomMaskGenerator(ratio=0.75, patch_size=UNIT, cell=2),
        "decoder": partial(MAEDecoder, embed_dim=16, depth=2, num_heads=2),
        "reconstruction": partial(ReconstructionTerm, weight=0.5),
        "features": partial(StageFeatureTerm, weights=[1.0, 0.5, 0.1]),
        "contrast": partial(ContrastTerm, projector=partial(Projector, hidden_features=16, out_features=8)),
        "teacher": partial(EMATeacher, time_constant=100.0),
        "optimizer": partial(torch.optim.AdamW, lr=1e-2),
        "schedule": constant,
    }
    return SparseDDMIM(backbone=backbone, **settings | changes)


def randomize_both(method: SparseDDMIM) -> SparseDDMIM:
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method.eval()


@pytest.fixture(params=["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def method(request, make_swin) -> SparseDDMIM:
    """Student and teacher differ, in evaluation mode."""
    return randomize_both(make_sparse(make_swin(name=request.param)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 64, 64)


def visible_tokens(tokens: Tensor, mask: PatchMask, stride: int) -> Tensor:
    """The visible tokens of a map, unit after unit: `(images, units, tokens of a unit, channels)`."""
    side = UNIT // stride
    units = tokens.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
    return units[~mask.masked].unflatten(0, (len(tokens), -1)).flatten(2, 3)


def by_cell(small: Tensor, stride: int) -> Tensor:
    """The units of a map of the student, in the order of the squares of 2 x 2 units they are of."""
    side = UNIT // stride
    return small.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def in_order_of_units(of_cells: Tensor, mask: PatchMask) -> Tensor:
    """Sorts what is in the order of squares as the visible units are in an image, row by row."""
    rows, cols = (torch.arange(side) // 2 for side in mask.masked.shape[1:])
    cell_of_unit = (rows[:, None] * (mask.masked.shape[2] // 2) + cols).expand_as(mask.masked)
    cells = cell_of_unit[~mask.masked].unflatten(0, (len(of_cells), -1))
    return torch.stack([values[order] for values, order in zip(of_cells, cells, strict=True)])


def test_masked_pixels_reach_the_teacher_alone(method: SparseDDMIM, images: Tensor, refill_masked: Callable) -> None:
    mask = method.mask_generator(images)
    refilled = refill_masked(images, mask)
    before, after = (method._encode_by_student(pictures, mask) for pictures in (images, refilled))
    assert all(torch.equal(a, b) for a, b in zip(before.feature_points, after.feature_points, strict=True))
    assert torch.equal(before.pooled, after.pooled)
    assert torch.equal(method(images, mask).prediction, method(refilled, mask).prediction)
    before, after = (method._encode_by_teacher(pictures) for pictures in (images, refilled))
    assert not any(torch.equal(a, b) for a, b in zip(before.feature_points, after.feature_points, strict=True))


def test_the_student_computes_a_quarter_of_the_tokens_and_the_teacher_all(method: SparseDDMIM, images: Tensor) -> None:
    counted: dict[str, list[int]] = {"student": [], "teacher": []}
    for name, backbone in (("student", method.backbone), ("teacher", method.teacher["backbone"])):
        for block in backbone.blocks:
            block.register_forward_pre_hook(
                lambda _, inputs, name=name: counted[name].append(inputs[0][0, ..., 0].numel())
            )
    method(images)
    assert counted == {"student": [64, 64, 16, 4], "teacher": [256, 256, 64, 16]}


def test_a_map_of_the_whole_image_is_read_where_units_are_visible(method: SparseDDMIM, images: Tensor) -> None:
    mask = method.mask_generator(images)
    for stride in (4, 8):
        whole = torch.randn(4, 64 // stride, 64 // stride, 5)
        read = method._read_for_student(whole, mask)
        assert read.shape == (4, 32 // stride, 32 // stride, 5)
        expected = visible_tokens(whole, mask, stride)
        torch.testing.assert_close(in_order_of_units(by_cell(read, stride), mask), expected, rtol=0, atol=0)
    whole = torch.randn(4, 4, 4, 5)  # each cell has 2 x 2 units, one of them visible; a token of the student has 2 x 2
    pairs = whole.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    torch.testing.assert_close(method._read_for_student(whole, mask), pairs.mean(dim=(2, 4)))


def test_of_a_grid_of_odd_sides_the_last_cells_are_averaged_alone(make_swin) -> None:
    method = make_sparse(make_swin(image_size=48, window_size=3))
    whole = torch.randn(2, 3, 3, 5)
    mask = method.mask_generator(torch.empty(2, 3, 48, 48))
    read = method._read_for_student(whole, mask)
    student = method._encode_by_student(torch.randn(2, 3, 48, 48), mask)
    assert student.feature_points[-1].shape[1:3] == read.shape[1:3] == (2, 2)
    torch.testing.assert_close(read[:, 1, 1], whole[:, 2, 2])
    torch.testing.assert_close(read[:, 0, 1], whole[:, :2, 2].mean(dim=1))


def test_with_closed_branches_student_and_teacher_have_the_same_features_of_a_visible_unit(make_swin, images) -> None:
    """Swin V2's blocks start as identities: until tokens of several units are merged, a unit's are its own pixels'."""
    terms = make_sparse(make_swin(name="swinv2_tiny_window8_256")).eval()(images).terms
    assert terms["feature_stage_0"] < 1e-9  # entering the second stage, whose token is a unit
    assert terms["feature_stage_1"] > 1e-2


def test_the_terms_compare_what_the_student_sees_with_what_the_teacher_has_there(
    method: SparseDDMIM, images: Tensor
) -> None:
    mask = method.mask_generator(images)
    student, teacher = method._encode_by_student(images, mask), method._encode_by_teacher(images)
    output = method(images, mask)
    for stage, stride in enumerate([8, 16, 16]):
        features, target = student.feature_points[stage], teacher.feature_points[stage]
        if stride == UNIT:
            features = in_order_of_units(by_cell(features, stride), mask)
            target = visible_tokens(target, mask, stride)
        else:
            target = F.avg_pool2d(target.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        a, b = (F.layer_norm(x, x.shape[-1:], eps=1e-6) for x in (features, target))
        torch.testing.assert_close(output.terms[f"feature_stage_{stage}"], F.smooth_l1_loss(a, b))
        cosine = F.cosine_similarity(features, target, dim=-1).mean()
        torch.testing.assert_close(output.monitors[f"cosine_stage_{stage}"], cosine)

    masked = mask.at_pixels().expand_as(images)
    torch.testing.assert_close(
        output.terms["reconstruction"], F.smooth_l1_loss(output.prediction[masked], images[masked])
    )
    queries, keys = method.contrast.projector(student.pooled), method._keys(teacher)
    similarities = F.cosine_similarity(queries[:, None], keys[None], dim=2) / 0.05
    torch.testing.assert_close(
        output.terms["contrastive"], F.cross_entropy(similarities, torch.arange(4)), rtol=1e-4, atol=1e-5
    )
    weighted = 0.5 * output.terms["reconstruction"] + output.terms["contrastive"]
    weighted = weighted + sum(w * output.terms[f"feature_stage_{s}"] for s, w in enumerate([1.0, 0.5, 0.1]))
    torch.testing.assert_close(output.loss, weighted)


def test_a_visible_unit_is_decoded_at_its_own_place(make_swin, images: Tensor) -> None:
    """Two images that differ in one visible unit: without attention what differs in the prediction is that unit."""
    method = randomize_both(make_sparse(make_swin()))
    for block in (*method.backbone.blocks, *method.decoder.blocks):
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.attn.proj.bias)
    mask = method.mask_generator(images[:1])
    unit = int(mask.visible_indices()[0, 3])
    row, col = UNIT * (unit // 8), UNIT * (unit % 8)
    other = images[:1].clone()
    other[..., row : row + UNIT, col : col + UNIT] += 1.0
    changed = (method(images[:1], mask).prediction - method(other, mask).prediction).abs().amax(dim=1)[0] > 0
    units = changed.unflatten(1, (8, UNIT)).unflatten(0, (8, UNIT)).any(dim=3).any(dim=1)
    cell = (
        row // 16 // 2 * 2,
        col // 16 // 2 * 2,
    )  # the token of the last stage that it is a part of has 2 x 2 squares
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2 * cell[0] : 2 * cell[0] + 4, 2 * cell[1] : 2 * cell[1] + 4] = True
    assert units[row // UNIT, col // UNIT]
    assert not units[~inside].any()
    assert not units[mask.masked[0]].any()


def test_features_of_crops_are_compared_where_they_overlap(make_swin, images: Tensor) -> None:
    method = randomize_both(make_sparse(make_swin()))
    method.views = TwoViews(crops=lambda pictures: (View(pictures, WHOLE), View(pictures, LEFT)))
    mask = method.mask_generator(images)
    student, teacher = method._encode_by_student(images, mask), method._encode_by_teacher(images)
    terms = method.train()(images, mask).terms
    for stage in range(3):
        features = student.feature_points[stage]
        pairs = teacher.feature_points[stage].unflatten(2, (-1, 2)).mean(dim=3)  # on the student's left half
        target = method._read_for_student(torch.cat([pairs, torch.zeros_like(pairs)], dim=2), mask)
        columns = slice(0, features.shape[2] // 2)
        a, b = (F.layer_norm(x[:, :, columns], x.shape[-1:], eps=1e-6) for x in (features, target))
        torch.testing.assert_close(terms[f"feature_stage_{stage}"], F.smooth_l1_loss(a, b))


def test_all_that_is_trained_gets_a_gradient_and_the_teacher_none(method: SparseDDMIM, images: Tensor) -> None:
    method.train()
    method.training_output(images).loss.backward()
    without = [
        name for name, parameter in method.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_a_training_step_predicts_masked_units_alone_and_has_the_loss_of_all(
    method: SparseDDMIM, images: Tensor
) -> None:
    mask = method.mask_generator(images)
    predicted: list[Tensor] = []
    method.decoder.predict.register_forward_hook(lambda *call: predicted.append(call[2]))
    found = []
    for compute in (method, method.training_output):
        method.zero_grad()
        output = compute(images, mask)
        output.loss.backward()
        found.append((output, {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}))
    (drawn, gradients), (trained, others) = found
    assert [tokens.shape[1] for tokens in predicted] == [64, 48]
    assert drawn.prediction is not None
    assert trained.prediction is None
    torch.testing.assert_close(trained.terms["reconstruction"], drawn.terms["reconstruction"])
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-5)


def test_terms_can_be_left_out(make_swin, images: Tensor) -> None:
    alone = make_sparse(make_swin(), reconstruction=None, decoder=None)
    assert "reconstruction" not in alone(images).terms
    assert alone(images).prediction is None
    rebuilt = make_sparse(make_swin(), features=None, contrast=None, teacher=None)
    assert set(rebuilt(images).terms) == {"reconstruction"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mask_generator": RandomMaskGenerator(ratio=0.5, patch_size=UNIT)},
            r"one of each 2x2 units of 8 px is visible",
        ),
        ({"mask_generator": RandomMaskGenerator(ratio=0.75, patch_size=4, cell=2)}, "not a whole number of 8 px units"),
        (
            {"mask_generator": StageMaskGenerator(ratios=[0.5, 0.5, 0.5], patch_size=16, token_size=4)},
            r"set method.mask_generator.patch_size=8 method.mask_generator.cell=2 method.mask_generator.ratio=0.75",
        ),
        ({"decoder": None}, "method.decoder predicts the pixels of method.reconstruction: give it settings"),
        ({"reconstruction": None}, "set method.decoder=null too"),
        ({"mask_value": "zero"}, "has no masked tokens, which method.mask_value fills; leave it out"),
        ({"reconstruction": partial(ReconstructionTerm, head=PixelShuffleHead)}, "set method.reconstruction.head=null"),
        (
            {"features": partial(StageFeatureTerm, weights=[1.0, 1.0, 1.0], positions="masked")},
            "set method.features.positions=all",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(make_swin, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sparse(make_swin(), **changes)


def test_a_backbone_without_windows_is_refused(make_vit) -> None:
    with pytest.raises(ValueError, match="which a Swin or Swin V2 can do; use model=swinv2_tiny"):
        make_sparse(make_vit())
