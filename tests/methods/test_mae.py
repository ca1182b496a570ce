import re
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import HieraConfig, HieraForPreTraining, ViTMAEConfig, ViTMAEForPreTraining

from unmask.backbones.timm_vit import TimmViT
from unmask.heads.mae_decoder import MAEDecoder
from unmask.masking.random import RandomMaskGenerator
from unmask.methods.mae import MAE
from unmask.optim.schedules import constant
from unmask.patches import PatchMask, patchify
from unmask.types import ImageBatch

TINY_DECODER = partial(MAEDecoder, embed_dim=16, depth=2, num_heads=2)


def make_mae(
    backbone: nn.Module,
    *,
    patch_size: int = 8,
    cell: int | None = None,
    decoder=TINY_DECODER,
    norm_pix_loss: bool = True,
    **changes,
) -> MAE:
    return MAE(
        backbone=backbone,
        decoder=decoder,
        norm_pix_loss=norm_pix_loss,
        mask_generator=RandomMaskGenerator(ratio=0.75, patch_size=patch_size, cell=cell),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        schedule=constant,
        **changes,
    )


@pytest.fixture(params=[True, False], ids=["normalized", "raw"])
def method(request, make_vit, randomize) -> MAE:
    return randomize(make_mae(make_vit(), norm_pix_loss=request.param))


# Either spelling of a transformers parameter, and our name for it; `#` is the part of the fused projection.
_HF_TO_OURS: list[tuple[str, str]] = [
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "backbone.vit.patch_embed.proj."),
    (r"^vit\.embeddings\.position_embeddings$", "backbone.vit.pos_embed"),
    (r"^vit\.embeddings\.cls_token$", "backbone.vit.cls_token"),
    (r"^vit\.layernorm\.", "backbone.vit.norm."),
    (r"^vit\.(?:encoder\.layer|layers)\.", "backbone.vit.blocks."),
    (r"^decoder\.decoder_layers\.", "decoder.blocks."),
    (r"^decoder\.decoder_embed\.", "decoder.embed."),
    (r"^decoder\.decoder_norm\.", "decoder.norm."),
    (r"^decoder\.decoder_pred\.", "decoder.predict."),
    (r"^decoder\.decoder_pos_embed$", "decoder.pos_embed"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.query|q_proj)\.(\w+)$", r".attn.qkv.\1#0"),
    (r"\.attention\.(?:attention\.key|k_proj)\.(\w+)$", r".attn.qkv.\1#1"),
    (r"\.attention\.(?:attention\.value|v_proj)\.(\w+)$", r".attn.qkv.\1#2"),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
]


def hf_weight(key: str, method: MAE) -> Tensor:
    """Finds what our method holds under a name of transformers."""
    for pattern, replacement in _HF_TO_OURS:
        key = re.sub(pattern, replacement, key)
    name, _, third = key.partition("#")
    weight = method.state_dict()[name]
    return weight.chunk(3)[int(third)] if third else weight


def as_transformers(method: MAE) -> ViTMAEForPreTraining:
    config = ViTMAEConfig(
        image_size=32,
        patch_size=8,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=96,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        layer_norm_eps=1e-6,
        norm_pix_loss=method.norm_pix_loss,
        mask_ratio=0.75,
    )
    model = ViTMAEForPreTraining(config).eval()
    model.load_state_dict({key: hf_weight(key, method) for key in model.state_dict()})
    return model


def test_loss_and_predictions_equal_transformers(method: MAE) -> None:
    images = torch.randn(3, 3, 32, 32)
    mask = method.mask_generator(images)
    # transformers keeps the patches of the lowest noise, so the masked ones get the higher.
    noise = mask.masked.flatten(1) + 0.5 * torch.rand(3, 16)
    with torch.no_grad():
        ours = method(images, mask)
        predicted = method.predict_patches(images, mask)
        theirs = as_transformers(method)(images, noise=noise)
    assert torch.equal(theirs.mask.bool(), mask.masked.flatten(1))
    assert abs(ours.loss / theirs.loss - 1).item() < 1e-5
    assert ((predicted - theirs.logits).abs().max() / theirs.logits.abs().max()).item() < 1e-5


def test_loss_equals_a_loop_over_the_masked_patches(method: MAE) -> None:
    images = 2.0 * torch.randn(2, 3, 32, 32) + 1.0
    mask = method.mask_generator(images)
    predicted = method.predict_patches(images, mask)
    errors = []
    for image in range(2):
        for row, col in mask.masked[image].nonzero().tolist():
            target = images[image, :, 8 * row : 8 * row + 8, 8 * col : 8 * col + 8].permute(1, 2, 0).flatten()
            if method.norm_pix_loss:
                target = (target - target.mean()) / (target.var(correction=1) + 1e-6).sqrt()
            errors.append((predicted[image, 4 * row + col] - target).square().mean())
    output = method(images, mask)
    torch.testing.assert_close(output.loss, torch.stack(errors).mean())
    assert output.terms == {"pixel_mse": output.loss}


def test_oblong_patches_are_predicted_where_they_lie(make_vit, randomize) -> None:
    method = randomize(make_mae(make_vit(patch_size=[16, 4]), patch_size=[16, 4], norm_pix_loss=False))
    images = torch.randn(2, 3, 32, 32)
    output = method(images)
    masked = output.mask.at_pixels().expand_as(images)
    assert masked.float().mean() == 0.75
    torch.testing.assert_close(output.loss, (output.prediction - images)[masked].square().mean())
    predicted = method.predict_patches(images, output.mask)
    for row, col in [(0, 0), (0, 7), (1, 3)]:
        shown = output.prediction[:, :, 16 * row : 16 * row + 16, 4 * col : 4 * col + 4].permute(0, 2, 3, 1)
        assert torch.equal(shown.flatten(1), predicted[:, 8 * row + col])
    with pytest.raises(ValueError, match=r"blocks of 8 px are not a whole .* 16x4 px units; set .*patch_size=\[16,4\]"):
        make_mae(make_vit(patch_size=[16, 4]), patch_size=8)


def test_masked_pixels_cannot_reach_the_prediction_and_visible_ones_do(method: MAE, refill_masked) -> None:
    images = torch.randn(2, 3, 32, 32)
    mask = method.mask_generator(images)
    predicted = method.predict_patches(images, mask)
    assert torch.equal(method.predict_patches(refill_masked(images, mask), mask), predicted)
    visible = PatchMask(~mask.masked, mask.patch_size)
    changed = method.predict_patches(refill_masked(images, visible), mask)
    assert (changed != predicted).any(dim=2).all()


@pytest.mark.parametrize("reconstruction_mean", ["masked", "all"])
def test_training_leaves_out_what_serves_the_picture_alone(make_vit, randomize, reconstruction_mean: str) -> None:
    method = randomize(make_mae(make_vit(), reconstruction_mean=reconstruction_mean))
    images = torch.randn(2, 3, 32, 32)
    mask = method.mask_generator(images)
    lengths: list[int] = []
    method.decoder.predict.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    outcomes = []
    for compute in (method, method.training_output):
        output = compute(images, mask)
        assert (output.prediction is None) == (compute is not method)
        trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        outcomes.append([output.loss, *torch.autograd.grad(output.loss, trained)])
    for alone, among_others in zip(*outcomes, strict=True):
        torch.testing.assert_close(alone, among_others, rtol=1e-5, atol=1e-6)
    assert lengths == [16, 12]


def test_visible_predictions_get_no_gradient(method: MAE) -> None:
    predictions = []
    method.decoder.register_forward_hook(lambda _, inputs, predicted: predictions.append(predicted))
    output = method(torch.randn(2, 3, 32, 32))
    (gradient,) = torch.autograd.grad(output.loss, predictions)
    is_pulled = (gradient != 0).any(dim=2)
    assert torch.equal(is_pulled, output.mask.masked.flatten(1))


def test_encoder_sees_a_quarter_of_the_patches_and_the_class_token(method: MAE) -> None:
    lengths = []
    method.backbone.vit.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    method(torch.randn(2, 3, 32, 32))
    assert lengths == [1 + 4]


def test_drawn_prediction_lies_in_the_space_of_the_image(method: MAE) -> None:
    """A decoder that predicts the target exactly is drawn as the image, normalized targets or not."""
    images = 2.0 * torch.randn(2, 3, 32, 32) + 1.0
    patches = patchify(images, 8)
    mean, deviation = patches.mean(dim=2, keepdim=True), (patches.var(dim=2, keepdim=True) + 1e-6).sqrt()
    perfect = (patches - mean) / deviation if method.norm_pix_loss else patches
    method.decoder.register_forward_hook(lambda _, inputs, predicted: perfect)
    output = method(images)
    torch.testing.assert_close(output.prediction, images)
    assert output.loss < 1e-10
    borrowed = method.borrowed_statistics(images)
    if not method.norm_pix_loss:
        assert borrowed is None
    else:
        torch.testing.assert_close(patchify(borrowed.mean, 8), mean.expand_as(patches))
        torch.testing.assert_close(patchify(borrowed.std, 8), deviation.expand_as(patches))


@pytest.mark.parametrize(
    ("name", "patch_size", "expected"),
    [
        ("vit_base_patch16_224", 16, 111_907_840),
        ("vit_large_patch16_224", 16, 329_541_888),
        ("vit_huge_patch14_224", 14, 657_074_508),
    ],
)
def test_parameters_of_the_published_models_are_counted(name: str, patch_size: int, expected: int) -> None:
    with torch.device("meta"):
        backbone = TimmViT(name=name, image_size=224, patch_size=patch_size)
        method = make_mae(backbone, patch_size=patch_size, decoder=MAEDecoder)
    assert sum(parameter.numel() for parameter in method.parameters()) == expected


def test_construction_initializes_as_mae(make_vit) -> None:
    method = make_mae(make_vit())
    for name, parameter in method.named_parameters():
        if name.endswith(("qkv.weight", "fc1.weight", "decoder.embed.weight", "patch_embed.proj.weight")):
            bound = (6 / sum(parameter.flatten(1).shape)) ** 0.5  # Xavier's uniform range
            assert 0.95 * bound < parameter.abs().max() <= bound, name


def test_mask_unit_must_be_the_backbones_patch(make_vit) -> None:
    with pytest.raises(ValueError, match=r"blocks of 4 px are not .* 8 px units; set .*patch_size=8 or a multiple"):
        make_mae(make_vit(), patch_size=4)
    method = make_mae(make_vit())
    with pytest.raises(ValueError, match=r"blocks of 4 px"):
        method(torch.zeros(1, 3, 32, 32), PatchMask(torch.ones(1, 8, 8, dtype=torch.bool), 4))


def test_blocks_of_several_patches_are_masked_as_those_patches(make_vit, randomize) -> None:
    method = randomize(make_mae(make_vit(), patch_size=16))
    images = torch.randn(3, 3, 32, 32)
    blocks = method.mask_generator(images)
    patches = blocks.masked.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    ours, expected = method(images, blocks), method(images, PatchMask(patches, 8))
    assert blocks.masked.flatten(1).sum(dim=1).tolist() == [3, 3, 3]
    assert torch.equal(ours.loss, expected.loss)
    assert torch.equal(ours.prediction, expected.prediction)
    assert torch.equal(ours.mask.masked, blocks.masked)
    assert method.patch_mask(blocks).num_masked == 12  # known without asking the device


def test_a_backbone_that_cannot_skip_tokens_is_refused(make_beit) -> None:
    with pytest.raises(ValueError, match="which a ViT, Hiera, Swin or Swin V2 can do; use model=vit_tiny"):
        make_mae(make_beit(), patch_size=8)


def test_a_mean_over_all_pixels_is_the_masked_one_times_the_masked_fraction(make_vit, randomize) -> None:
    masked = randomize(make_mae(make_vit()))
    everything = make_mae(make_vit(), reconstruction_mean="all").eval()
    everything.load_state_dict(masked.state_dict())
    images = torch.randn(2, 3, 32, 32)
    mask = masked.mask_generator(images)
    torch.testing.assert_close(everything(images, mask).loss, 0.75 * masked(images, mask).loss)


def test_an_unknown_mean_is_refused(make_vit) -> None:
    with pytest.raises(ValueError, match="must be 'masked' or 'all', got 'some'"):
        make_mae(make_vit(), reconstruction_mean="some")


def test_shared_masks_are_one_a_step_for_all_devices_and_parts_of_it(make_vit, monkeypatch) -> None:
    method = make_mae(make_vit(), shared_masks=True)
    monkeypatch.setattr(MAE, "current_epoch", 1)

    def drawn(step: int, index: list[int]) -> Tensor:
        monkeypatch.setattr(MAE, "global_step", step)
        batch = ImageBatch(
            torch.zeros(len(index), 3, 32, 32), torch.zeros(len(index), dtype=torch.long), torch.tensor(index)
        )
        return method.training_mask(batch).masked

    here, there, later = drawn(7, [3, 0, 9]), drawn(7, [5, 6]), drawn(8, [3])
    assert torch.equal(here, here[:1].expand_as(here))
    assert torch.equal(here[0], there[0])
    assert not torch.equal(here[0], later[0])
    method.shared_masks = False
    own = drawn(7, [3, 0, 9])
    assert not torch.equal(own[0], own[1])
    assert torch.equal(own[1:2], drawn(8, [0]))


@pytest.fixture
def hierarchical(make_hiera, randomize) -> MAE:
    return randomize(make_mae(make_hiera(), norm_pix_loss=False))


def test_patches_of_a_masked_unit_are_predicted_where_they_lie(hierarchical: MAE) -> None:
    """A decoder that adds nothing of its own passes on which unit and which part of it a token came from."""
    images = torch.randn(2, 3, 32, 32)
    mask = hierarchical.mask_generator(images)
    entered: list[tuple[Tensor, Tensor]] = []
    hierarchical.decoder.register_forward_pre_hook(lambda _, inputs: entered.append(inputs))
    output = hierarchical(images, mask)
    encoded, visible = entered[0]
    units = [(~mask.masked[image]).nonzero().tolist() for image in range(2)]
    places = [[(2 * row + r) * 8 + 2 * col + c for row, col in each for r in (0, 1) for c in (0, 1)] for each in units]
    assert visible.tolist() == places
    assert encoded.shape == (2, 4 * 4, 32)

    masked = mask.at_pixels().expand_as(images)
    torch.testing.assert_close(output.loss, (output.prediction - images)[masked].square().mean())
    predicted = hierarchical.predict_patches(images, mask)
    for row, col in [(0, 0), (0, 7), (5, 2)]:
        shown = output.prediction[:, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4].permute(0, 2, 3, 1)
        assert torch.equal(shown.flatten(1), predicted[:, 8 * row + col])
    assert hierarchical.patch_mask(mask).num_masked == 12 * 4


@pytest.fixture(params=["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"], ids=["v1", "v2"])
def windowed(request, make_swin, randomize) -> MAE:
    return randomize(make_mae(make_swin(name=request.param), cell=2, norm_pix_loss=False))


def test_each_visible_unit_of_a_swin_gets_its_own_part_of_a_token(windowed: MAE) -> None:
    """Row by row of the small image a last token is spread over 2 x 2 units, which then lie where they came from."""
    backbone, images = windowed.backbone, torch.randn(2, 3, 64, 64)
    mask = windowed.mask_generator(images)
    maps: list[Tensor] = []
    assert windowed.fusion is not None
    windowed.fusion.register_forward_pre_hook(lambda _, inputs: maps.extend(inputs[0]))
    entered: list[tuple[Tensor, Tensor]] = []
    windowed.decoder.register_forward_pre_hook(lambda _, inputs: entered.append(inputs))
    output = windowed(images, mask)
    encoded, visible = entered[0]
    weight, bias = windowed.fusion.project.weight, windowed.fusion.project.bias  # in out 2 2
    for image in range(2):
        assert visible[image].tolist() == (~mask.masked[image]).flatten().nonzero().flatten().tolist()
        for place, unit in enumerate(visible[image].tolist()):
            row, col = unit // 8 // 2, unit % 8 // 2  # of the cell
            token = maps[0][image, 0, row // 2, col // 2]
            expected = token @ weight[:, :, row % 2, col % 2] + bias
            torch.testing.assert_close(encoded[image, place], expected, rtol=1e-5, atol=1e-5)
    masked = mask.at_pixels().expand_as(images)
    torch.testing.assert_close(output.loss, (output.prediction - images)[masked].square().mean())
    assert backbone.patch_size == windowed.decoder.predict.out_features // 24 == 8


@pytest.fixture(params=["hiera", "swin v1", "swin v2"])
def staged(request, make_hiera, make_swin, randomize) -> MAE:
    if request.param == "hiera":
        return randomize(make_mae(make_hiera(), norm_pix_loss=False))
    name = {"swin v1": "swin_tiny_patch4_window7_224", "swin v2": "swinv2_tiny_window8_256"}[request.param]
    return randomize(make_mae(make_swin(name=name), cell=2, norm_pix_loss=False))


def test_masked_units_cannot_reach_the_prediction_and_visible_ones_do(staged: MAE, refill_masked) -> None:
    images = torch.randn(2, 3, *staged.backbone.image_size)
    mask = staged.mask_generator(images)
    predicted = staged.predict_patches(images, mask)
    assert torch.equal(staged.predict_patches(refill_masked(images, mask), mask), predicted)
    changed = staged.predict_patches(refill_masked(images, PatchMask(~mask.masked, mask.patch_size)), mask)
    assert (changed != predicted).any(dim=2).all()


def test_every_parameter_behind_visible_units_gets_a_gradient(staged: MAE) -> None:
    staged(torch.randn(2, 3, *staged.backbone.image_size)).loss.backward()
    trained = {name: parameter for name, parameter in staged.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()] == []
    assert any(name.startswith("fusion.") for name in trained)


@pytest.mark.parametrize(("patch_size", "cell"), [(8, None), (16, 2)])
def test_a_swin_takes_masks_with_one_visible_unit_of_each_square_alone(make_swin, patch_size, cell) -> None:
    settings = "patch_size=8 method.mask_generator.cell=2 method.mask_generator.ratio=0.75"
    with pytest.raises(ValueError, match=rf"one of each 2x2 units of 8 px is visible; set .*{settings}"):
        make_mae(make_swin(), patch_size=patch_size, cell=cell)
    method = make_mae(make_swin(), cell=2)
    with pytest.raises(ValueError, match="one of each 2x2"):
        method(torch.randn(1, 3, 64, 64), PatchMask(torch.arange(64).view(1, 8, 8) % 4 > 0, 8, 48))


def test_a_unit_is_masked_as_a_whole(make_hiera) -> None:
    with pytest.raises(ValueError, match=r"blocks of 4 px are not .* 8 px units; set .*patch_size=8 or a multiple"):
        make_mae(make_hiera(), patch_size=4)
    make_mae(make_hiera(), patch_size=16)


_HIERA_TO_OURS: list[tuple[str, str]] = [
    (r"^hiera\.embeddings\.patch_embeddings\.projection\.", "backbone.hiera.patch_embed.proj."),
    (r"^hiera\.embeddings\.position_embeddings$", "backbone.hiera.pos_embed"),
    (
        r"^hiera\.encoder\.stages\.(\d)\.layers\.(\d)\.",
        lambda found: f"backbone.hiera.blocks.{int(found[1]) + int(found[2])}.",
    ),
    (r"^encoder_norm\.", "backbone.hiera.head.norm."),
    (r"^multiscale_fusion\.multi_scale_fusion_heads\.", "fusion.project."),
    (r"^decoder\.decoder_block\.layers\.", "decoder.blocks."),
    (r"^decoder\.decoder_embeddings\.", "decoder.embed."),
    (r"^decoder\.decoder_position_embeddings$", "decoder.pos_embed"),
    (r"^decoder\.decoder_norm\.", "decoder.norm."),
    (r"^decoder\.decoder_pred\.", "decoder.predict."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
]  # one block in each stage but the last, so that the numbers of stage and layer add up


def hiera_weight(key: str, method: MAE) -> Tensor:
    """Finds what our method holds under a name of transformers, whose pixels have the channel slowest."""
    name = key
    for pattern, replacement in _HIERA_TO_OURS:
        name = re.sub(pattern, replacement, name)
    weight = method.state_dict()[name]
    return weight.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1) if "decoder_pred" in key else weight


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_and_predictions_equal_those_of_transformers_hiera(make_hiera, randomize, norm_pix_loss: bool) -> None:
    method = randomize(make_mae(make_hiera(), norm_pix_loss=norm_pix_loss))
    config = HieraConfig(
        image_size=[32, 32],
        patch_size=[3, 3],
        patch_stride=[2, 2],
        patch_padding=[1, 1],
        embed_dim=8,
        depths=[1, 1, 2],
        num_heads=[2, 4, 8],
        num_query_pool=1,
        masked_unit_size=[4, 4],
        masked_unit_attention=[True, False, False],
        decoder_hidden_size=16,
        decoder_depth=2,
        decoder_num_heads=2,
        normalize_pixel_loss=norm_pix_loss,
        mask_ratio=0.75,
    )
    theirs = HieraForPreTraining(config).eval()
    theirs.load_state_dict({key: hiera_weight(key, method) for key in theirs.state_dict()})
    images = torch.randn(3, 3, 32, 32)
    mask = method.mask_generator(images)
    with torch.no_grad():
        expected = theirs(images, noise=mask.masked.flatten(1) + 0.5 * torch.rand(3, 16))
        ours, predicted = method(images, mask), method.predict_patches(images, mask)
    assert torch.equal(~expected.bool_masked_pos, method.patch_mask(mask).masked.flatten(1))
    assert abs(ours.loss / expected.loss - 1).item() < 1e-5
    logits = expected.logits.unflatten(2, (3, -1)).transpose(2, 3).flatten(2)
    torch.testing.assert_close(predicted, logits, rtol=0, atol=1e-5 * logits.abs().max().item())
