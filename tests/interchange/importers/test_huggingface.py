import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    Swinv2Config,
    Swinv2ForMaskedImageModeling,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from unmask.interchange.detect_format import convert
from unmask.interchange.files import read_weights
from unmask.runtime.checkpoint import load_backbone

VIT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
VIT |= {"image_size": 32, "patch_size": 8}
DECODER = {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 3}
DECODER |= {"decoder_intermediate_size": 96}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 24, "depths": [2, 1], "num_heads": [2, 3], "window_size": 4}
MODELS = {
    "ViTMAE": lambda: ViTMAEForPreTraining(ViTMAEConfig(**VIT, **DECODER, mask_ratio=0.0)),
    "ViT": lambda: ViTForImageClassification(ViTConfig(**VIT, num_labels=5)),
    "ViT alone": lambda: ViTModel(ViTConfig(**VIT)),
    "ViT, SimMIM": lambda: ViTForMaskedImageModeling(ViTConfig(**VIT, encoder_stride=8)),
    "Swin, SimMIM": lambda: SwinForMaskedImageModeling(SwinConfig(**SWIN, encoder_stride=8)),
    "Swin": lambda: SwinForImageClassification(SwinConfig(**SWIN, num_labels=5)),
    "Swin V2, SimMIM": lambda: Swinv2ForMaskedImageModeling(Swinv2Config(**SWIN, encoder_stride=8)),
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest, randomize) -> PreTrainedModel:
    return randomize(MODELS[request.param]())


def tokens_of(model: PreTrainedModel, images: torch.Tensor) -> torch.Tensor:
    """The patches behind the final norm, in raster order."""
    base = model.base_model
    if model.config.model_type == "vit_mae":
        places = torch.arange(16.0).expand(len(images), -1)  # noise that keeps the order
        tokens = base(images, noise=places).last_hidden_state
    else:
        tokens = base(images).last_hidden_state
    return tokens[:, 1:] if model.config.model_type.startswith("vit") else tokens


@pytest.mark.parametrize("spelling", ["in memory", "in files"])
def test_features_equal_those_of_transformers(model, spelling, images, tmp_path: Path, require_same_features) -> None:
    model.save_pretrained(tmp_path)  # writes the classic names
    if spelling == "in memory":
        save_file(model.state_dict(), tmp_path / "model.safetensors")
    backbone = load_backbone(tmp_path)
    require_same_features(backbone, tokens_of(model, images))


def test_a_bare_file_has_transformers_own_epsilon(images, tmp_path: Path, require_same_features) -> None:
    torch.manual_seed(2)
    model = MODELS["ViTMAE"]().eval()
    for parameter in model.parameters():
        parameter.data.mul_(1e-2)  # small activations, in whose variance an epsilon counts
    model.vit.layernorm.weight.data.fill_(1.0)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    backbone = load_backbone(tmp_path / "pytorch_model.bin")
    assert backbone.settings["norm_eps"] == 1e-12
    require_same_features(backbone, tokens_of(model, images))


@pytest.mark.parametrize("decoder_name", ["decoder_layers", "decoder_encoder.layer"])
def test_the_decoder_of_vitmae_goes_to_the_method(randomize, tmp_path: Path, decoder_name: str) -> None:
    model = randomize(MODELS["ViTMAE"]())
    weights = {re.sub("decoder_layers", decoder_name, name): w for name, w in model.state_dict().items()}
    torch.save(weights, tmp_path / "weights.bin")
    heads = convert(read_weights(tmp_path / "weights.bin")).heads
    attention = model.decoder.decoder_layers[0].attention
    assert torch.equal(
        heads["decoder.blocks.0.attn.qkv.weight"],
        torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]),
    )
    assert torch.equal(heads["decoder.predict.bias"], model.decoder.decoder_pred.bias)
    assert len(heads) == 4 + 2 * 2 + 12


def test_what_has_no_place_is_named_with_its_reason(randomize, tmp_path: Path) -> None:
    for model, reasons in (
        (MODELS["ViT"](), {"a classifier of 5 classes"}),
        (MODELS["ViT alone"](), {"the layer behind the class token"}),
    ):
        torch.save(model.state_dict(), tmp_path / "weights.bin")
        conversion = convert(read_weights(tmp_path / "weights.bin"))
        assert set(conversion.left_out.values()) == reasons
        assert len(conversion.left_out) == 2


def test_statistics_of_the_images_come_from_the_folder(tmp_path: Path) -> None:
    MODELS["ViT"]().save_pretrained(tmp_path)
    described = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.4, 0.4, 0.4], "do_resize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
    backbone = load_backbone(tmp_path)
    assert (backbone.pixel_mean, backbone.pixel_std) == ((0.5,) * 3, (0.4,) * 3)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described | {"do_normalize": False}))
    backbone = load_backbone(tmp_path)
    assert (backbone.pixel_mean, backbone.pixel_std) == ((0.0,) * 3, (1.0,) * 3)


def test_windows_of_the_pretraining_are_kept(randomize, images, tmp_path: Path, require_same_features) -> None:
    config = Swinv2Config(**SWIN, encoder_stride=8, pretrained_window_sizes=[2, 2])
    model = randomize(Swinv2ForMaskedImageModeling(config))
    model.save_pretrained(tmp_path)
    require_same_features(load_backbone(tmp_path), tokens_of(model, images))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ViT", {"hidden_act": "relu"}, "hidden_act=relu is not computed here, GELU alone is"),
        ("Swin", {"layer_norm_eps": 1e-3}, "layer_norm_eps=0.001 is not computed here in a Swin"),
    ],
)
def test_what_is_not_computed_here_is_refused(tmp_path: Path, name, change, message) -> None:
    MODELS[name]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path)
