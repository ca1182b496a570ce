import pytest
import torch

from unmask.heads.mae_decoder import MAEDecoder
from unmask.positions import sincos_positions


def make_decoder(**changes) -> MAEDecoder:
    settings = {"encoder_dim": 12, "num_prefix_tokens": 1, "grid": (2, 3), "patch_size": 2}
    return MAEDecoder(**settings | {"embed_dim": 16, "depth": 2, "num_heads": 2} | changes).eval()


@pytest.mark.parametrize("num_prefix_tokens", [1, 2])
def test_tokens_enter_in_their_places_with_the_mask_token_elsewhere(num_prefix_tokens: int) -> None:
    decoder = make_decoder(num_prefix_tokens=num_prefix_tokens)
    encoded = torch.randn(2, num_prefix_tokens + 2, 12)
    visible = torch.tensor([[1, 4], [5, 0]])
    entered = []
    decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    decoder(encoded, visible)
    embedded = decoder.embed(encoded)
    positions = sincos_positions(16, (2, 3), num_prefix_tokens=num_prefix_tokens)[0]
    for image in range(2):
        for place in range(num_prefix_tokens):
            assert torch.equal(entered[0][image, place], embedded[image, place] + positions[place])
        for patch in range(6):
            if patch in visible[image]:
                token = embedded[image, num_prefix_tokens + visible[image].tolist().index(patch)]
            else:
                token = decoder.mask_token[0, 0]
            place = num_prefix_tokens + patch
            assert torch.equal(entered[0][image, place], token + positions[place])


def test_predictions_do_not_depend_on_the_order_of_the_visible_patches() -> None:
    decoder = make_decoder()
    encoded = torch.randn(1, 4, 12)
    order = torch.tensor([2, 0, 1])
    shuffled = torch.cat([encoded[:, :1], encoded[:, 1:][:, order]], dim=1)
    visible = torch.tensor([[5, 1, 2]])
    assert torch.equal(decoder(encoded, visible), decoder(shuffled, visible[:, order]))


def test_the_patches_asked_for_are_predicted_in_that_order_and_nothing_else_is_computed() -> None:
    decoder = make_decoder()
    encoded, visible = torch.randn(2, 3, 12), torch.tensor([[1, 4], [5, 0]])
    everything = decoder(encoded, visible)
    lengths = []
    for part in (decoder.blocks[0].mlp, decoder.blocks[1].mlp, decoder.predict):
        part.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    some = decoder(encoded, visible, predicted=torch.tensor([[3, 0, 2], [4, 1, 2]]))
    torch.testing.assert_close(some, torch.stack([everything[0, [3, 0, 2]], everything[1, [4, 1, 2]]]))
    assert lengths == [1 + 6, 3, 3]


def test_positions_are_fixed_but_stored() -> None:
    decoder = make_decoder()
    assert not decoder.pos_embed.requires_grad
    assert "pos_embed" in decoder.state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 20, "num_heads": 3}, "20 does not split into num_heads 3"),
        ({"embed_dim": 18, "num_heads": 2}, "divisible by 4, got 18"),
    ],
)
def test_widths_that_do_not_split_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_decoder(**changes)


@pytest.mark.parametrize(
    ("encoder_dim", "sizes"),
    [
        (1280, (512, 8, 16)),  # ViT-H, -L and -B: the paper's
        (1024, (512, 8, 16)),
        (768, (512, 8, 16)),
        (384, (256, 8, 8)),
        (192, (128, 4, 4)),
        (128, (64, 2, 2)),
        (24, (64, 1, 2)),
    ],
)
def test_the_decoder_follows_its_encoder(encoder_dim: int, sizes: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        decoder = MAEDecoder(encoder_dim=encoder_dim, num_prefix_tokens=1, grid=(2, 2), patch_size=4)

    heads = decoder.blocks[0].attn.num_heads
    assert (decoder.embed.out_features, len(decoder.blocks), heads) == sizes


@pytest.mark.parametrize("embed_dim", [12, 36, 48, 100, 196])
def test_heads_fit_whatever_width_is_given(embed_dim: int) -> None:
    with torch.device("meta"):
        decoder = MAEDecoder(encoder_dim=128, num_prefix_tokens=1, grid=(2, 2), patch_size=4, embed_dim=embed_dim)

    heads = decoder.blocks[0].attn.num_heads
    assert embed_dim % heads == 0
    assert embed_dim < 32 or embed_dim // heads >= 32
    assert len(decoder.blocks) == 2
