import pytest
import torch
from torch import nn

from unmask.heads.transposed_decoder import TransposedConvDecoder
from unmask.patches import unpatchify
from unmask.positions import sinusoid_positions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def decoder() -> TransposedConvDecoder:
    decoder = TransposedConvDecoder(
        pixel_mean=MEAN,
        pixel_std=STD,
        encoder_dim=12,
        num_prefix_tokens=1,
        grid=(2, 3),
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
    )
    nn.init.normal_(decoder.mask_embed.bias)
    return decoder.eval()


def test_masked_places_get_the_embedding_of_a_gray_patch_read_across_its_channels(decoder) -> None:
    gray_image = torch.full((1, 3, 8, 12), 127 / 255)
    normalized = (gray_image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    embedded = nn.functional.conv2d(normalized, decoder.mask_embed.weight, decoder.mask_embed.bias, stride=4)
    expected = embedded.reshape(1, -1, 16)[0, 0]  # 16 channels of 6 places, read as 6 places of 16 channels
    torch.testing.assert_close(decoder.mask_token_for(6)[0, 0], expected)
    assert len(expected.unique()) == 3


def test_tokens_enter_in_their_places_under_sinusoids(decoder) -> None:
    encoded, visible = torch.randn(2, 3, 12), torch.tensor([[1, 4], [5, 0]])
    entered = []
    decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    decoder(encoded, visible)
    tokens = entered[0] - sinusoid_positions(16, 7)
    torch.testing.assert_close(tokens[:, 0], decoder.embed(encoded)[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens[1, 1 + 5], decoder.embed(encoded)[1, 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens[1, 1 + 3], decoder.mask_token_for(6)[0, 0], atol=1e-5, rtol=1e-5)


def test_the_prediction_is_a_transposed_convolution_of_normalized_tokens(decoder) -> None:
    encoded, visible = torch.randn(2, 3, 12), torch.tensor([[1, 4], [5, 0]])
    decoded = []
    decoder.blocks[-1].register_forward_hook(lambda _, inputs, output: decoded.append(output))
    predicted = decoder(encoded, visible)
    widen, norm, last = decoder.predict
    tokens = nn.functional.layer_norm(widen(decoded[0][:, 1:]), (48,), norm.weight, norm.bias, eps=1e-12)
    grid = tokens.transpose(1, 2).reshape(2, 48, 2, 3)
    expected = nn.functional.conv_transpose2d(grid, last.convolution.weight, last.convolution.bias, stride=4)
    torch.testing.assert_close(unpatchify(predicted, 4, (2, 3)), expected, atol=1e-5, rtol=1e-4)


def test_everything_but_the_positions_learns(decoder) -> None:
    decoder(torch.randn(2, 3, 12), torch.tensor([[1, 4], [5, 0]])).square().mean().backward()
    frozen = {name for name, parameter in decoder.named_parameters() if parameter.grad is None}
    assert frozen == {"pos_embed"}


def test_every_number_of_a_buffer_has_its_own_memory(decoder) -> None:
    """Several processes write each other's buffers, which expanded ones refuse."""
    for buffer in decoder.buffers():
        assert buffer.untyped_storage().nbytes() == buffer.nbytes
