import warnings

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM, MaskedVisionTransformerTorchvision


def wrapped(backbone: nn.Module, decoder: nn.Module | None = None) -> nn.Module:
    """A method as lightly's tutorials build it."""
    method = nn.Module()
    method.backbone = backbone
    if decoder is not None:
        method.decoder = decoder
    return method.eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_mae_around_timm(timm_vit, randomize, converted, require_loads_as) -> None:
    sizes = {"embed_dim": 128, "decoder_embed_dim": 24, "decoder_depth": 1, "decoder_num_heads": 3}
    decoder = MAEDecoderTIMM(num_patches=16, patch_size=8, **sizes)
    method = randomize(wrapped(MaskedVisionTransformerTIMM(vit=timm_vit()), decoder))
    content = {"state_dict": method.state_dict()}
    conversion = converted(content)
    assert conversion.source_format == "lightly's MAE"
    assert torch.equal(conversion.heads["decoder.predict.weight"], decoder.decoder_pred.weight)
    assert torch.equal(conversion.heads["decoder.mask_token"], decoder.mask_token)
    assert len(conversion.heads) == len(decoder.state_dict())
    require_loads_as(content, lambda images: method.backbone.encode(images)[:, 1:])


def test_a_backbone_around_torchvision(randomize, require_loads_as) -> None:
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 128, "mlp_dim": 256}
    backbone = MaskedVisionTransformerTorchvision(vit=VisionTransformer(**sizes, num_classes=5))
    method = randomize(wrapped(backbone))
    require_loads_as(method.state_dict(), lambda images: method.backbone.encode(images)[:, 1:])
