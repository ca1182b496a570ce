import functools
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from unmask.backbones.timm_swin import TimmSwin
from unmask.heads.pixel_shuffle import PixelShuffleHead
from unmask.heads.projector import Projector
from unmask.masking.stages import StageMaskGenerator
from unmask.methods.ddmim import DDMIM
from unmask.methods.ddmim_monitors import effective_rank
from unmask.methods.ddmim_terms import ContrastTerm, ReconstructionTerm, StageFeatureTerm
from unmask.methods.ddmim_views import TwoViews
from unmask.optim.schedules import constant
from unmask.patches import PatchMask
from unmask.targets.ema_teacher import EMATeacher
from unmask.targets.local import local_statistics
from unmask.types import ImageBatch, MethodOutput, View

V2 = "swinv2_tiny_window8_256"
FULL_MASK = PatchMask(torch.zeros(4, 4, 4, dtype=torch.bool), 16)


TERMS = {
    "reconstruction": (ReconstructionTerm, {"head": PixelShuffleHead}),
    "features": (StageFeatureTerm, {"weights": [1.0, 1.0, 0.1]}),
    "contrast": (ContrastTerm, {"projector": partial(Projector, hidden_features=16, out_features=8)}),
}


def make_ddmim(backbone: nn.Module, *, masks: dict[str, Any] | None = None, **changes: Any) -> DDMIM:
    """Three stages of 4, 8 and 16 px cells; all of them masked by patches of 16 px.

    A term takes a dict of changed settings, or None to leave it out.
    """
    mask_settings = {"ratios": [0.5, 0.5, 0.5], "patch_size": 16, "token_size": 4} | (masks or {})
    terms = {}
    for name, (term, settings) in TERMS.items():
        changed = changes.pop(name, {})
        terms[name] = None if changed is None else partial(term, **settings | changed)
    others: dict[str, Any] = {
        "mask_generator": StageMaskGenerator(**mask_settings),
        "teacher": partial(EMATeacher, time_constant=100.0),
        "optimizer": partial(torch.optim.AdamW, lr=1e-2),
        "schedule": constant,
    }
    return DDMIM(backbone=backbone, **terms, **others | changes)


@pytest.fixture(params=["swin", "swin v2"])
def method(request, make_swin, randomize) -> DDMIM:
    """Student and teacher differ, in evaluation mode."""
    return randomize_both(make_ddmim(make_swin(**{"name": V2} if request.param == "swin v2" else {})))


def randomize_both(method: DDMIM) -> DDMIM:
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 64, 64)


# --- the published formulation, written again from its equations, slowly ---


def published_losses(method: DDMIM, images: Tensor, keep: Tensor, temperature: float) -> dict[str, Tensor]:
    """`keep` is 1 for visible tokens of the first stage, (b, 56, 56) there, (b, 16, 16) here."""
    student, teacher, projector = method.backbone.swin, method.teacher["backbone"].swin, method.contrast.projector
    z = student.patch_embed(images)
    stages = len(student.layers)

    def stage_blocks(network: Any, stage: int, tokens: Tensor) -> Tensor:
        for block in network.layers[stage].blocks:
            tokens = block(tokens)
        return tokens if stage == stages - 1 else network.layers[stage + 1].downsample(tokens)

    u, t, losses = z, z, {}
    for stage in range(stages):
        k = keep[:, :: 2**stage, :: 2**stage].unsqueeze(-1)
        u = stage_blocks(student, stage, u * k if stage < stages - 1 else u)
        with torch.no_grad():
            t = stage_blocks(teacher, stage, t)
        errors = [0.5 * e * e if abs(e) < 1 else abs(e) - 0.5 for e in (u - t).flatten().tolist()]
        losses[f"feature_stage_{stage}"] = torch.tensor(sum(errors) / len(errors))

    def describe(tokens: Tensor) -> Tensor:
        vectors = projector(student.norm(tokens).flatten(1, 2).mean(dim=1))
        return vectors / vectors.norm(dim=1, keepdim=True)

    s = describe(u) @ describe(t).T / temperature
    per_query = [-s[a, a] + torch.log(1 + sum(torch.exp(s[a, b]) for b in range(len(s)))) for a in range(len(s))]
    losses["contrastive"] = torch.stack(per_query).mean()
    masked = (1 - keep).repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1)
    rebuilt = method.reconstruction.head(student.norm(u).permute(0, 3, 1, 2))
    losses["reconstruction"] = F.smooth_l1_loss(masked * rebuilt, masked * images)  # the mean over all pixels
    return losses


def test_the_published_terms_equal_their_equations(make_swin, images: Tensor) -> None:
    method = make_ddmim(
        make_swin(name=V2),
        masks={"ratios": [0.5, 0.5, 0.0], "patch_size": 4, "distribution": "bernoulli"},
        reconstruction={"mean": "all"},
        features={"norm": "none"},
        contrast={
            "projector": partial(Projector, representation_features=20, hidden_features=16, out_features=8),
            "extra_zero_logit": True,
            "temperature": 0.5,
        },
        teacher=partial(EMATeacher, momentum=0.999, every_n_steps=32, scope="stages", is_stochastic=True),
    )
    randomize_both(method)
    method.teacher.update(method.student_networks(), num_images=4, step_of_epoch=0)  # copies
    with torch.no_grad():
        for name, parameter in method.backbone.named_parameters():
            if ".blocks." in name or ".downsample." in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    mask = method.mask_generator(images)
    expected = published_losses(method, images, (~mask.masked).float(), temperature=0.5)
    output = method(images, mask)
    assert set(output.terms) == set(expected)
    for name, value in expected.items():
        assert output.terms[name].item() == pytest.approx(value.item(), rel=1e-5), name
    total = sum(weight * expected[f"feature_stage_{s}"] for s, weight in enumerate([1.0, 1.0, 0.1]))
    total = total + expected["reconstruction"] + expected["contrastive"]
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-5)


# --- the clean formulation ---


def test_an_unmasked_student_that_is_its_teacher_has_nothing_to_learn_from_it(make_swin, images: Tensor) -> None:
    method = make_ddmim(make_swin(name=V2)).eval()
    output = method(images, FULL_MASK)
    for stage in range(3):
        assert output.terms[f"feature_stage_{stage}"] == 0
        assert output.monitors[f"cosine_stage_{stage}"].item() == pytest.approx(1.0, abs=1e-6)
    assert output.monitors["contrastive_accuracy"] == 1
    queries = method.contrast.projector(method.backbone.forward_pooled(images))
    similarities = F.cosine_similarity(queries[:, None], queries[None], dim=2) / 0.05
    expected = (torch.logsumexp(similarities, dim=1) - 1 / 0.05).mean()
    torch.testing.assert_close(output.terms["contrastive"], expected, rtol=1e-4, atol=1e-5)


def test_hidden_pixels_reach_the_teacher_alone(method: DDMIM, images: Tensor, refill_masked: Callable) -> None:
    mask = method.mask_generator(images)
    scrambled = refill_masked(images, mask)
    before, after = (method._encode_by_student(pictures, mask) for pictures in (images, scrambled))
    assert all(torch.equal(a, b) for a, b in zip(before.feature_points, after.feature_points, strict=True))
    assert torch.equal(method(images, mask).prediction, method(scrambled, mask).prediction)
    before, after = (method._encode_by_teacher(pictures) for pictures in (images, scrambled))
    assert not any(torch.equal(a, b) for a, b in zip(before.feature_points, after.feature_points, strict=True))


@pytest.mark.parametrize("feature_point", ["post_merge", "stage_out"])
def test_feature_points_are_what_the_stages_hand_on_before_it_is_masked(
    make_swin, images: Tensor, feature_point: str
) -> None:
    method = randomize_both(make_ddmim(make_swin(), features={"feature_point": feature_point}))
    swin, mask = method.backbone.swin, method.mask_generator(images)
    tokens, expected = swin.patch_embed(images), []
    for stage, layer in enumerate(swin.layers):
        if stage > 0:
            if feature_point == "stage_out":
                expected.append(tokens)
            tokens = layer.downsample(tokens)
            if feature_point == "post_merge":
                expected.append(tokens)
        tokens = tokens * ~mask.at_stride(4 * 2**stage).unsqueeze(-1)
        tokens = layer.blocks(tokens)
    expected.append(tokens)
    stream = method._encode_by_student(images, mask)
    for found, wanted in zip(stream.feature_points, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_locally_normalized_pixels_are_what_the_reconstruction_compares_with(make_swin, images: Tensor) -> None:
    """The picture that is shown is made of the image's own pixels, and a wrong one costs what it is off."""
    method = randomize_both(make_ddmim(make_swin(), reconstruction={"normalize_window": 5}))
    mask = method.mask_generator(images)
    output = method(images, mask)
    around = local_statistics(images, 5)

    off = ((output.prediction - images) / around.std)[mask.at_pixels().expand_as(images)].abs()
    expected = torch.where(off < 1.0, off.square() / 2, off - 0.5).mean()
    torch.testing.assert_close(output.terms["reconstruction"], expected, rtol=1e-4, atol=1e-5)
    borrowed = method.borrowed_statistics(images)
    assert torch.equal(borrowed.mean, around.mean)
    assert torch.equal(borrowed.std, around.std)
    assert make_ddmim(make_swin()).borrowed_statistics(images) is None
    assert make_ddmim(make_swin(), reconstruction=None).borrowed_statistics(images) is None
    with pytest.raises(ValueError, match="odd side of at least 3 px, got 46"):
        make_ddmim(make_swin(), reconstruction={"normalize_window": 46})


def test_hidden_tokens_become_the_learned_token_of_their_stage(make_swin, images: Tensor) -> None:
    method = randomize_both(make_ddmim(make_swin(), masks={"ratios": [0.0, 0.5, 0.5]}, mask_value="learned"))
    entered = []
    for layer in method.backbone.swin.layers:
        layer.blocks[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    mask = method(images).mask
    assert sorted(method.mask_tokens) == ["1", "2"]
    for stage in (1, 2):
        masked = mask.at_stride(4 * 2**stage)
        assert (entered[stage][masked] == method.mask_tokens[str(stage)]).all()
        assert not (entered[stage][~masked] == method.mask_tokens[str(stage)]).all(dim=1).any()
    assert not (entered[0][mask.at_stride(4)] == 0).any()  # stage 0 has ratio 0


def test_the_reconstruction_is_the_mean_over_hidden_pixels(method: DDMIM, images: Tensor) -> None:
    output = method(images)
    masked = output.mask.at_pixels().expand_as(images)
    expected = F.smooth_l1_loss(output.prediction[masked], images[masked])
    torch.testing.assert_close(output.terms["reconstruction"], expected)
    method.reconstruction.mean = "all"
    over_all = method(images, output.mask).terms["reconstruction"]
    torch.testing.assert_close(over_all, expected * masked.float().mean())


@pytest.mark.parametrize("positions", ["masked", "visible"])
def test_features_can_be_compared_in_part(method: DDMIM, images: Tensor, positions: str) -> None:
    mask = method.mask_generator(images)
    student = method._encode_by_student(images, mask)
    teacher = method._encode_by_teacher(images)
    method.features.positions = positions
    for stage, stride in enumerate([8, 16, 16]):
        chosen = mask.at_stride(stride) if positions == "masked" else ~mask.at_stride(stride)
        a, b = (
            F.layer_norm(s.feature_points[stage], s.feature_points[stage].shape[-1:], eps=1e-6)[chosen]
            for s in (student, teacher)
        )
        found = method(images, mask).terms[f"feature_stage_{stage}"]
        torch.testing.assert_close(found, F.smooth_l1_loss(a, b))


def test_the_loss_is_the_weighted_sum_of_terms_logged_unweighted(make_swin, images: Tensor) -> None:
    method = randomize_both(
        make_ddmim(
            make_swin(),
            reconstruction={"weight": 0.3},
            features={"weights": [0.5, 2.0, 0.7]},
            contrast={"weight": 0.2},
        )
    )
    mask = method.mask_generator(images)
    output = method(images, mask)
    factors = {"reconstruction": 0.3, "contrastive": 0.2}
    factors |= {f"feature_stage_{stage}": weight for stage, weight in enumerate([0.5, 2.0, 0.7])}
    assert set(output.terms) == set(factors)
    torch.testing.assert_close(output.loss, sum(factors[name] * term for name, term in output.terms.items()))
    plain = make_ddmim(method.backbone)
    plain.load_state_dict(method.state_dict())
    for name, term in plain.eval()(images, mask).terms.items():
        assert torch.equal(term, output.terms[name])


ALL_FEATURES = [f"feature_stage_{stage}" for stage in range(3)]


@pytest.mark.parametrize(
    ("off", "gone"),
    [
        ({"reconstruction": None}, ["reconstruction"]),
        ({"contrast": None}, ["contrastive"]),
        ({"features": None}, ALL_FEATURES),
        ({"features": {"weights": [1.0, 0.0, 0.0]}}, ["feature_stage_1", "feature_stage_2"]),
        ({"features": None, "contrast": None, "teacher": None}, [*ALL_FEATURES, "contrastive"]),
    ],
)
def test_a_term_left_out_is_not_computed_and_leaves_the_others_alone(
    make_swin, images: Tensor, off: dict[str, Any], gone: list[str]
) -> None:
    torch.manual_seed(0)
    whole = make_ddmim(make_swin())
    torch.manual_seed(0)
    method = make_ddmim(make_swin(), **off)
    method.load_state_dict({name: whole.state_dict()[name] for name in method.state_dict()})
    mask = method.mask_generator(images)
    output: MethodOutput = method(images, mask)
    assert set(output.terms) == {"reconstruction", "contrastive", *ALL_FEATURES} - set(gone)
    expected = whole(images, mask).terms
    for name, term in output.terms.items():
        assert torch.equal(term, expected[name]), name
    assert (output.prediction is None) == ("reconstruction" in gone)
    output.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_the_projector_and_its_copy_leave_with_the_contrast(make_swin) -> None:
    method = make_ddmim(make_swin(), contrast=None)
    assert not [name for name in method.state_dict() if "projector" in name]


def test_no_gradient_reaches_the_teacher_or_the_keys(method: DDMIM, images: Tensor) -> None:
    method.train()(images).loss.backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    keys = method.teacher["projector"].layers[0].weight
    assert not keys.requires_grad
    assert all(p.grad is not None for p in method.backbone.parameters())


def test_the_keys_come_from_the_teachers_own_projector(method: DDMIM, images: Tensor) -> None:
    mask = method.mask_generator(images)
    student = method._encode_by_student(images, mask)
    teacher = method._encode_by_teacher(images)
    queries = method.contrast.projector(student.pooled)

    def loss(keys: Tensor) -> Tensor:
        return F.cross_entropy(F.cosine_similarity(queries[:, None], keys[None], dim=2) / 0.05, torch.arange(4))

    found = method(images, mask).terms["contrastive"]
    torch.testing.assert_close(found, loss(method.teacher["projector"](teacher.pooled)), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(found, loss(method.contrast.projector(teacher.pooled)), rtol=1e-2)


def test_a_batch_of_one_is_refused_in_training(make_swin, images: Tensor) -> None:
    method = make_ddmim(make_swin())
    with pytest.raises(ValueError, match="tells an image from the others of its batch, and this batch has one image"):
        method.train()(images[:1])
    assert method.eval()(images[:1]).terms["contrastive"] == 0  # a last image left over in validation
    make_ddmim(make_swin(), contrast=None).train()(images[:1])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"features": {"weights": [1.0, 1.0]}},
            "method.features.weights.* has 2 numbers, but the backbone has 3 stages",
        ),
        ({"masks": {"ratios": [0.5, 0.5]}}, "ratios.* has 2 numbers, but the backbone has 3 stages"),
        (
            {"features": {"feature_point": "middle"}},
            "method.features.feature_point=middle does not exist; use post_merge or stage_out",
        ),
        ({"features": {"weights": [1.0, -1.0, 1.0]}}, "must be 0 or more and not all 0"),
        ({"features": {"weights": [0.0, 0.0, 0.0]}}, "not all 0; method.features=null leaves the term out"),
        ({"contrast": {"weight": 0.0}}, "method.contrast.weight=0.0 must be above 0; method.contrast=null leaves"),
        ({"contrast": {"temperature": 0.0}}, "method.contrast.temperature must be above 0"),
        ({"reconstruction": {"weight": -1.0}}, "method.reconstruction.weight=-1.0 must be above 0"),
        ({"reconstruction": {"mean": "visible"}}, "method.reconstruction.mean=visible does not exist"),
        (
            {"zero_init_residual": False},
            "method.zero_init_residual=false with method.mask_value=zero has gradients without bound; "
            "set method.mask_value=learned or method.zero_init_residual=true",
        ),
        ({"mask_value": "noise"}, "method.mask_value=noise does not exist; use zero or learned"),
        ({"reconstruction": None, "contrast": None, "features": None}, "method=ddmim has no loss term"),
        ({"teacher": None}, "method.teacher is null; give it settings"),
        ({"contrast": None, "features": None}, "set method.teacher=null too"),
        (
            {"masks": {"patch_size": 2, "distribution": "bernoulli"}},
            "masked patches of 2 px .* method.mask_generator.patch_size to a multiple of 4",
        ),
    ],
)
def test_mistakes_are_refused(make_swin, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_ddmim(make_swin(), **changes)


def _record_inputs(method: DDMIM) -> dict[str, list[Tensor]]:
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    for name, backbone in (("student", method.backbone), ("teacher", method.teacher["backbone"])):
        backbone.swin.patch_embed.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0]))
    return seen


def test_the_students_view_is_changed_in_training_alone(make_swin, images: Tensor) -> None:
    method = randomize_both(make_ddmim(make_swin(), views=TwoViews(student=lambda pictures: 0.5 * pictures)))
    mask = method.mask_generator(images)
    seen = _record_inputs(method)
    output = method.train()(images, mask)
    method.eval()(images, mask)
    assert torch.equal(seen["student"][0], 0.5 * images)
    assert all(torch.equal(pictures, images) for pictures in (seen["student"][1], *seen["teacher"]))
    masked = mask.at_pixels().expand_as(images)
    expected = F.smooth_l1_loss(output.prediction[masked], images[masked])
    torch.testing.assert_close(output.terms["reconstruction"], expected)


WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(4, -1)
LEFT = torch.tensor([[0.0, 0.0, 1.0, 0.5]]).expand(4, -1)
RIGHT = torch.tensor([[0.0, 0.5, 1.0, 0.5]]).expand(4, -1)


def test_crops_of_the_same_place_change_nothing(make_swin, images: Tensor) -> None:
    method = randomize_both(make_ddmim(make_swin()))
    mask = method.mask_generator(images)
    plain = method.train()(images, mask).terms
    method.views = TwoViews(crops=lambda pictures: (View(pictures, WHOLE), View(pictures, WHOLE)))
    for name, term in method(images, mask).terms.items():
        torch.testing.assert_close(term, plain[name])


def test_each_network_sees_its_crop_in_training(make_swin, images: Tensor) -> None:
    own, theirs = torch.randn_like(images), torch.randn_like(images)
    method = randomize_both(
        make_ddmim(
            make_swin(),
            views=TwoViews(
                crops=lambda pictures: (View(own, LEFT), View(theirs, RIGHT)),
                student=lambda pictures: 2 * pictures,
                teacher=lambda pictures: 3 * pictures,
            ),
        )
    )
    seen = _record_inputs(method)
    mask = method.mask_generator(images)
    output = method.train()(images, mask)
    method.eval()(images, mask)
    assert torch.equal(seen["student"][0], 2 * own)
    assert torch.equal(seen["teacher"][0], 3 * theirs)
    assert torch.equal(seen["student"][1], images)
    assert torch.equal(seen["teacher"][1], images)
    masked = mask.at_pixels().expand_as(images)
    torch.testing.assert_close(output.terms["reconstruction"], F.smooth_l1_loss(output.prediction[masked], own[masked]))
    assert all(output.terms[f"feature_stage_{stage}"] == 0 for stage in range(3))  # the crops share no position
    assert output.terms["contrastive"] > 0


def test_features_of_crops_are_compared_where_they_overlap(make_swin, images: Tensor) -> None:
    method = randomize_both(make_ddmim(make_swin()))
    method.views = TwoViews(crops=lambda pictures: (View(pictures, WHOLE), View(pictures, LEFT)))
    mask = method.mask_generator(images)
    student = method._encode_by_student(images, mask)
    teacher = method._encode_by_teacher(images)
    terms = method.train()(images, mask).terms
    for stage in range(3):
        features = student.feature_points[stage]
        columns = slice(0, features.shape[2] // 2)  # the teacher's map lies on the student's left half, twice as fine
        pairs = teacher.feature_points[stage].unflatten(2, (-1, 2)).mean(dim=3)
        a, b = (F.layer_norm(x, x.shape[-1:], eps=1e-6) for x in (features[:, :, columns], pairs))
        torch.testing.assert_close(terms[f"feature_stage_{stage}"], F.smooth_l1_loss(a, b))


def test_effective_rank_counts_the_directions() -> None:
    basis = torch.linalg.qr(torch.randn(64, 64)).Q
    centered = torch.cat([basis[:5], -basis[:5]])
    assert effective_rank(centered).item() == pytest.approx(5.0, rel=1e-4)
    assert effective_rank(torch.ones(10, 8)).item() == pytest.approx(1.0)
    assert effective_rank(
        torch.full((10, 8), torch.inf)
    ).isnan()  # of a network that has exploded, which is said elsewhere


def test_a_collapsed_stream_is_seen(method: DDMIM, images: Tensor) -> None:
    mask = method.mask_generator(images)
    healthy = method(images, mask).monitors
    with torch.no_grad():
        method.teacher["backbone"].swin.norm.weight.zero_()
    collapsed = method(images, mask).monitors
    assert collapsed["teacher_std"] < 1e-6 < healthy["teacher_std"]
    assert collapsed["teacher_rank_fraction"] < 0.5 < healthy["teacher_rank_fraction"]
    assert collapsed["student_rank_fraction"] == healthy["student_rank_fraction"]


# --- sizes of the published network ---


def test_the_published_network_has_the_published_sizes() -> None:
    with torch.device("meta"):
        backbone = TimmSwin(name=V2, image_size=224, patch_size=4, window_size=7)
        head = PixelShuffleHead(in_channels=768, stride=32)
    assert sum(p.numel() for p in backbone.parameters()) == 27_578_154
    assert sum(p.numel() for p in head.parameters()) == 2_362_368
    assert sum(p.numel() for p in backbone.parameters()) + 787_456 == 28_365_610


# --- in training ---


class _Batches(lightning.LightningDataModule):
    def __init__(self, images: Tensor, batch_size: int) -> None:
        super().__init__()
        self.images, self.batch_size = images, batch_size

    def train_dataloader(self) -> DataLoader:
        return self._loader()

    def val_dataloader(self) -> DataLoader:
        return self._loader()

    def _loader(self) -> DataLoader:
        samples = [(image, -1, index) for index, image in enumerate(self.images)]
        return DataLoader(samples, batch_size=self.batch_size, collate_fn=_as_batch)


def _as_batch(samples: list) -> ImageBatch:
    images, labels, index = zip(*samples, strict=True)
    return ImageBatch(torch.stack(images), torch.tensor(labels), torch.tensor(index))


def fit(method: DDMIM, images: Tensor, *, batch_size: int, callbacks: list | None = None, **settings: Any) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        **{"max_epochs": 1} | settings,
    )
    trainer.fit(method, datamodule=_Batches(images, batch_size))


class _Weights(lightning.Callback):
    """Keeps the student's first weight after each optimizer step."""

    def __init__(self) -> None:
        self.history: dict[int, Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        self.history[trainer.global_step] = _first_weight(module.backbone).clone()
        assert module.training
        assert not any(part.training for part in module.teacher.modules())


def _first_weight(backbone: nn.Module) -> Tensor:
    return backbone.swin.patch_embed.proj.weight.detach()


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 1), (2, 2)])
def test_the_teacher_follows_each_optimizer_step_by_its_images(make_swin, batch_size: int, accumulate: int) -> None:
    method, weights = make_ddmim(make_swin()), _Weights()
    images = torch.randn(16, 3, 64, 64)
    fit(method, images, batch_size=batch_size, accumulate_grad_batches=accumulate, callbacks=[weights])
    assert sorted(weights.history)[-1] == 4
    kept = math.exp(-4 / 100.0)
    expected = weights.history[1]
    for step in (2, 3, 4):
        expected = kept * expected + (1 - kept) * weights.history[step]
    torch.testing.assert_close(_first_weight(method.teacher["backbone"]), expected)


@pytest.mark.parametrize(
    ("teacher", "advice"),
    [
        ({"time_constant": 6.4}, None),  # of which the run's 32 images are five
        (
            {"time_constant": 6.5},
            "over 6 images, and this run has 32, .* set method.teacher.time_constant=4, about",
        ),
        ({"momentum": 0.0}, None),
        (
            {"momentum": 0.9, "every_n_steps": 2},
            "over 76 images, .* set method.teacher.momentum=null method.teacher.every_n_steps=1 method.teacher.time_",
        ),
    ],
)
def test_a_teacher_too_slow_for_the_run_is_named(
    make_swin, caplog: pytest.LogCaptureFixture, teacher: dict[str, float], advice: str | None
) -> None:
    method = make_ddmim(make_swin(), teacher=partial(EMATeacher, **teacher))
    fit(method, torch.randn(16, 3, 64, 64), batch_size=2, accumulate_grad_batches=2, max_epochs=2)
    warnings = [record.getMessage() for record in caplog.records if "teacher averages" in record.getMessage()]
    assert len(warnings) == (advice is not None)
    assert advice is None or re.search(advice, warnings[0])


def _loss_of_rank(rank: int, method_state: dict, images: Tensor, port: int, results: Any) -> None:
    import os  # noqa: PLC0415

    import torch.distributed as dist  # noqa: PLC0415

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    method = method_state["build"]()
    method.load_state_dict(method_state["weights"])
    share = len(images) // 2
    mine = slice(rank * share, (rank + 1) * share)
    mask = PatchMask(method_state["masked"][mine], 16, 8)
    results[rank] = method.train()(images[mine], mask).loss.item()
    dist.destroy_process_group()


def _small_ddmim() -> DDMIM:
    torch.manual_seed(0)
    backbone = TimmSwin(
        name="swin_tiny_patch4_window7_224",
        image_size=64,
        window_size=4,
        embed_dim=24,
        depths=(1, 1, 1),
        num_heads=(3, 3, 3),
    )
    return make_ddmim(backbone, contrast={"temperature": 0.5})


@pytest.mark.slow
def test_the_loss_of_two_processes_is_that_of_one_on_the_whole_batch(images: Tensor) -> None:
    import socket  # noqa: PLC0415

    import torch.multiprocessing as mp  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    method = randomize_both(_small_ddmim())
    mask = method.mask_generator(images)
    state = {"build": _small_ddmim, "weights": method.state_dict(), "masked": mask.masked}
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(functools.partial(_loss_of_rank), (state, images, port, results), nprocs=2)
        of_two = sum(results.values()) / 2
    assert of_two == pytest.approx(method.train()(images, mask).loss.item(), rel=1e-5)


def test_branches_that_start_open_do_so_in_student_and_teacher_and_their_gradients_are_bounded(make_swin) -> None:
    method = make_ddmim(make_swin(name=V2), mask_value="learned", zero_init_residual=False).train()

    gains = {name: weight for name, weight in method.named_parameters() if re.search(r"\.norm[12]\.weight$", name)}
    assert {name.split(".")[0] for name in gains} == {"backbone", "teacher"}
    assert all(torch.equal(gain, torch.ones_like(gain)) for gain in gains.values())
    method(torch.randn(4, 3, 64, 64)).loss.backward()
    gradients = [weight.grad.norm() for weight in method.backbone.parameters() if weight.grad is not None]
    assert max(gradients) < 1e6  # on masked tokens of 0 they are beyond 1e15
