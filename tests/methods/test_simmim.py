import re
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import SwinConfig, SwinForMaskedImageModeling

from unmask.backbones.timm_swin import TimmSwin
from unmask.heads.pixel_shuffle import PixelShuffleHead
from unmask.masking.random import RandomMaskGenerator
from unmask.methods.simmim import SimMIM
from unmask.optim.schedules import constant
from unmask.patches import PatchMask
from unmask.targets.local import local_statistics, normalize_locally


def make_simmim(backbone: nn.Module, patch_size: int = 16, **changes) -> SimMIM:
    return SimMIM(
        backbone=backbone,
        head=PixelShuffleHead,
        mask_generator=RandomMaskGenerator(ratio=0.6, patch_size=patch_size),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        schedule=constant,
        **changes,
    )


@pytest.fixture(params=["swin", "swin v2", "vit", "beit"])
def method(request, make_swin, make_vit, make_beit, randomize) -> SimMIM:
    backbone = {
        "swin": make_swin,
        "swin v2": partial(make_swin, name="swinv2_tiny_window8_256"),
        "vit": partial(make_vit, image_size=64, patch_size=16),
        "beit": partial(make_beit, image_size=64, patch_size=16),
    }[request.param]()
    return randomize(make_simmim(backbone))


# Either spelling of a transformers parameter, and where it comes from: timm's name, part of the fused projection.
_HF_TO_TIMM: list[tuple[str, str]] = [
    (r"^swin\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^swin\.embeddings\.norm\.", "patch_embed.norm."),
    (r"^swin\.layernorm\.", "norm."),
    (r"^swin\.encoder\.layers\.", "layers."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:self\.query|q_proj)\.(\w+)$", r".attn.qkv.\1#0"),
    (r"\.attention\.(?:self\.key|k_proj)\.(\w+)$", r".attn.qkv.\1#1"),
    (r"\.attention\.(?:self\.value|v_proj)\.(\w+)$", r".attn.qkv.\1#2"),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (
        r"\.attention\.(?:self|relative_position_bias)\.relative_position_bias_table$",
        ".attn.relative_position_bias_table",
    ),
    (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
]


def hf_weight(key: str, method: SimMIM) -> Tensor:
    """Finds what our method holds under a name of transformers."""
    if key == "swin.embeddings.mask_token":
        return method.mask_token.detach().view(1, 1, -1)
    if key.startswith("decoder.0."):
        return method.head.project.state_dict()[key.removeprefix("decoder.0.")]
    for pattern, replacement in _HF_TO_TIMM:
        key = re.sub(pattern, replacement, key)
    # There a merging closes a stage; in timm it opens the next one.
    key = re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", key)
    name, _, third = key.partition("#")
    weight = method.backbone.swin.state_dict()[name]
    return weight.chunk(3)[int(third)] if third else weight


def as_transformers(method: SimMIM) -> SwinForMaskedImageModeling:
    config = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=24,
        depths=[2, 1, 1],
        num_heads=[3, 3, 3],
        window_size=4,
        drop_path_rate=0.0,
        encoder_stride=16,
        layer_norm_eps=1e-5,
    )
    model = SwinForMaskedImageModeling(config).eval()
    keys = [key for key in model.state_dict() if not key.endswith("relative_position_index")]
    missing, unexpected = model.load_state_dict({key: hf_weight(key, method) for key in keys}, strict=False)
    assert not unexpected
    assert all(key.endswith("relative_position_index") for key in missing)
    return model


def test_loss_and_prediction_equal_transformers(make_swin, randomize) -> None:
    method = randomize(make_simmim(make_swin()))
    images = torch.randn(3, 3, 64, 64)
    mask = method.mask_generator(images)
    with torch.no_grad():
        ours = method(images, mask)
        theirs = as_transformers(method)(images, bool_masked_pos=mask.at_stride(4).flatten(1))
    assert abs(ours.loss / theirs.loss - 1).item() < 1e-5
    largest = theirs.reconstruction.abs().max()
    assert ((ours.prediction - theirs.reconstruction).abs().max() / largest).item() < 1e-5


def test_loss_equals_a_loop_over_the_hidden_pixels(method: SimMIM) -> None:
    images = torch.randn(2, 3, 64, 64)
    mask = method.mask_generator(images)
    output = method(images, mask)
    errors = []
    for image in range(2):
        for row, col in mask.masked[image].nonzero().tolist():
            box = (image, slice(None), slice(16 * row, 16 * row + 16), slice(16 * col, 16 * col + 16))
            errors.append((output.prediction[box] - images[box]).abs().mean())
    torch.testing.assert_close(output.loss, torch.stack(errors).mean())
    assert output.terms == {"pixel_l1": output.loss}


def test_oblong_tokens_are_hidden_and_predicted_where_they_lie(make_vit, randomize, refill_masked) -> None:
    method = randomize(make_simmim(make_vit(patch_size=[8, 4]), patch_size=[16, 8]))
    images = torch.randn(2, 3, 32, 32)
    output = method(images)
    masked = output.mask.at_pixels().expand_as(images)
    torch.testing.assert_close(output.loss, (output.prediction - images)[masked].abs().mean())
    assert torch.equal(method(refill_masked(images, output.mask), output.mask).prediction, output.prediction)
    with pytest.raises(ValueError, match="patches of 16x6 px are not a whole number of the backbone's 8x4 px tokens"):
        make_simmim(make_vit(image_size=(32, 48), patch_size=[8, 4]), patch_size=[16, 6])


def test_hidden_pixels_cannot_reach_the_prediction_and_visible_ones_do(method: SimMIM, refill_masked) -> None:
    images = torch.randn(2, 3, 64, 64)
    mask = method.mask_generator(images)
    prediction = method(images, mask).prediction
    assert torch.equal(method(refill_masked(images, mask), mask).prediction, prediction)
    visible = PatchMask(~mask.masked, mask.patch_size)
    changed = method(refill_masked(images, visible), mask).prediction
    assert (changed != prediction).any(dim=1).all()


def test_visible_predictions_get_no_gradient(method: SimMIM) -> None:
    output = method(torch.randn(2, 3, 64, 64))
    output.prediction.retain_grad()
    output.loss.backward()
    is_pulled = output.prediction.grad != 0
    assert torch.equal(is_pulled, output.mask.at_pixels().expand_as(is_pulled))


def test_hidden_tokens_are_the_mask_token_as_they_enter(make_swin, randomize) -> None:
    method = randomize(make_simmim(make_swin()))
    images = torch.randn(2, 3, 64, 64)
    entered = []
    method.backbone.swin.layers[0].blocks[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    output = method(images)
    embedded = method.backbone.swin.patch_embed(images)
    for image in range(2):
        for row in range(16):
            for col in range(16):
                is_hidden = output.mask.masked[image, row // 4, col // 4]
                expected = method.mask_token if is_hidden else embedded[image, row, col]
                assert torch.equal(entered[0][image, row, col], expected)


def test_parameters_of_the_published_swin_b_are_counted() -> None:
    with torch.device("meta"):
        backbone = TimmSwin(name="swin_base_patch4_window7_224", image_size=192, window_size=6)
        method = make_simmim(backbone, patch_size=32)
    assert sum(parameter.numel() for parameter in method.parameters()) == 89_874_104


def test_mask_unit_must_hold_whole_tokens(make_swin) -> None:
    with pytest.raises(ValueError, match=r"masked patches of 2 px .* 4 px tokens; set .* to a multiple of 4"):
        make_simmim(make_swin(), patch_size=2)


def test_every_weight_of_the_official_vit_learns(make_beit, randomize) -> None:
    method = randomize(make_simmim(make_beit(image_size=64, patch_size=16)))
    method(torch.randn(2, 3, 64, 64)).loss.backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_locally_normalized_targets_are_what_the_loss_compares_with(make_swin, randomize) -> None:
    """A prediction that is right is shown as the image itself, and a wrong one costs what it is off."""
    method = randomize(make_simmim(make_swin(), normalize_window=5))
    images = torch.randn(2, 3, 64, 64)
    mask = method.mask_generator(images)
    output = method(images, mask)
    target = normalize_locally(images, 5)
    predicted = normalize_locally(images, 5) + (output.prediction - images) / local_statistics(images, 5).std
    expected = (predicted - target).abs()[mask.at_pixels().expand_as(images)].mean()
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    borrowed = method.borrowed_statistics(images)
    torch.testing.assert_close(target * borrowed.std + borrowed.mean, images)
    assert make_simmim(make_swin()).borrowed_statistics(images) is None


def test_training_measures_the_surroundings_of_pixels_once(make_swin, randomize, monkeypatch) -> None:
    """For the target; a second time they serve the picture alone."""
    method = randomize(make_simmim(make_swin(), normalize_window=5))
    images = torch.randn(2, 3, 64, 64)
    mask = method.mask_generator(images)
    windows: list[int] = []

    def measure(images: Tensor, window: int):
        windows.append(window)
        return local_statistics(images, window)

    monkeypatch.setattr("unmask.targets.local.local_statistics", measure)
    outcomes = []
    for compute, times in ((method, 2), (method.training_output, 1)):
        windows.clear()
        output = compute(images, mask)
        assert windows == times * [5]
        assert (output.prediction is None) == (compute is not method)
        outcomes.append([output.loss, *torch.autograd.grad(output.loss, [*method.parameters()])])
    assert all(torch.equal(one, other) for one, other in zip(*outcomes, strict=True))


def test_a_window_without_a_center_is_refused_before_training(make_swin) -> None:
    with pytest.raises(ValueError, match="odd side of at least 3 px, got 46"):
        make_simmim(make_swin(), normalize_window=46)


def test_the_official_vit_starts_truncated_at_one_deviation_and_swin_as_timm_starts_it(make_beit, make_swin) -> None:
    torch.manual_seed(0)
    vit = make_simmim(make_beit(image_size=64, patch_size=16))
    assert vit.backbone.beit.blocks[0].attn.qkv.weight.abs().max() <= 0.02
    assert vit.mask_token.abs().max() <= 0.02
    assert not vit.backbone.beit.patch_embed.proj.bias.any()

    torch.manual_seed(0)
    backbone = make_swin()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    swin = make_simmim(backbone)
    assert all(torch.equal(tensor, before[name]) for name, tensor in swin.backbone.state_dict().items())
    assert swin.mask_token.abs().max() > 0.02  # of 24 numbers of deviation 0.02, not truncated there


@pytest.mark.parametrize("zero_init_residual", [True, False])
def test_blocks_of_swin_v2_start_as_identities_or_at_full_strength(make_swin, zero_init_residual: bool) -> None:
    method = make_simmim(make_swin(name="swinv2_tiny_window8_256"), zero_init_residual=zero_init_residual)

    for block in method.backbone.blocks:
        tokens = torch.randn(2, *block.input_resolution, block.dim)
        assert torch.equal(block(tokens), tokens) == zero_init_residual
        if not zero_init_residual:
            assert torch.equal(block.norm1.weight, torch.ones(block.dim))
            assert torch.equal(block.norm2.weight, torch.ones(block.dim))


def test_other_backbones_start_the_same_either_way(make_swin, make_vit) -> None:
    for make in (make_swin, partial(make_vit, image_size=64, patch_size=16)):
        backbone = make()
        before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
        method = make_simmim(backbone, zero_init_residual=False)
        assert all(torch.equal(weight, before[name]) for name, weight in method.backbone.state_dict().items())
