"""ViT, ViTMAE, Swin and Swin V2 of Hugging Face's transformers, under the names of its files and those of version 5."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from unmask.interchange import infer_config
from unmask.interchange.classifier import take_classifier
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.importers.decoder import take_mae_decoder
from unmask.interchange.importers.microsoft import microsoft_swin_to_timm, simmim_heads
from unmask.interchange.preprocessing import huggingface_preprocessing
from unmask.interchange.renaming import Rules, fuse_qkv, rename, split

_STEM = "embeddings.patch_embeddings.projection.weight"
_MODELS = ("vit.", "swin.", "swinv2.")  # in front of a backbone with a head; a bare one has nothing in front
_VIT_EPS, _SWIN_EPS = 1e-12, 1e-5  # of LayerNorm where no configuration says otherwise
_EMBEDDINGS: Rules = [
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^layernorm\.", "norm."),
]
_BLOCKS: Rules = [
    (r"^encoder\.layer\.", "blocks."),
    (r"^encoder\.layers\.(\d+)\.(blocks|downsample)\.", r"layers.\1.\2."),
    (r"^layers\.(\d+)\.(?!blocks|downsample)", r"blocks.\1."),
    (r"^(?:decoder_encoder\.layer|decoder_layers)\.", "decoder_blocks."),
    (r"\.attention\.(?:attention\.|self\.)(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(?:self|relative_position_bias)\.relative_position", ".attn.relative_position"),
    (r"\.attention\.self\.continuous_position_bias_mlp\.", ".attn.cpb_mlp."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
]
_SEPARATE_BIASES: Rules = [(r"\.attn\.query\.bias$", ".attn.q_bias"), (r"\.attn\.value\.bias$", ".attn.v_bias")]


def matches(file: WeightFile) -> bool:
    return any(name in (_STEM, *(f"{model}{_STEM}" for model in _MODELS)) for name in file.weights)


def convert(file: WeightFile) -> Conversion:
    """Reads sizes that weights do not tell from `config.json`, image statistics from `preprocessor_config.json`.

    A ViT's classifier reads the class token, a Swin's the mean; `id2label` names its classes.

    Raises:
        ValueError: The configuration asks for a computation the backbones here do not have.
    """
    config = file.config
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"{file.path}: hidden_act={config['hidden_act']} is not computed here, GELU alone is")
    model = next((model for model in _MODELS if f"{model}{_STEM}" in file.weights), "")
    is_vit = f"{model}embeddings.cls_token" in file.weights
    classifier, weights = take_classifier(
        file.weights,
        [(r"^classifier\.", "linear.")],
        pooling="cls" if is_vit else "mean",
        class_names=config.get("id2label"),
    )
    backbone, others = split(weights, model)
    decoder, others = split(others, "decoder.")
    pooler, backbone = split(backbone, "pooler.")
    left_out = {f"{model}pooler.{name}": "the layer behind the class token" for name in pooler}
    left_out |= dict.fromkeys(others, "not part of the backbone")
    backbone = rename(backbone, [*_EMBEDDINGS, *_BLOCKS])
    convert_model = _vit if is_vit else _swin
    return replace(
        convert_model(file, backbone, decoder, left_out),
        classifier=classifier,
        preprocessing=huggingface_preprocessing(file.preprocessing, "its preprocessor_config.json"),
    )


def _vit(
    file: WeightFile, weights: dict[str, Tensor], decoder: Mapping[str, Tensor], left_out: Mapping[str, str]
) -> Conversion:
    mask_token = weights.pop("mask_token", None)
    heads = simmim_heads(mask_token, split(decoder, "0.")[0])
    source_format = "Hugging Face's ViT"
    if "decoder_embed.weight" in decoder:
        source_format = "Hugging Face's ViTMAE"
        heads, _ = take_mae_decoder(fuse_qkv(rename(decoder, _BLOCKS)))
    return infer_config.vit(
        source_format,
        fuse_qkv(weights),
        heads=heads,
        left_out=left_out,
        num_heads=file.config.get("num_attention_heads"),
        norm_eps=file.config.get("layer_norm_eps", _VIT_EPS),
        **_statistics(file),
    )


def _swin(
    file: WeightFile, weights: dict[str, Tensor], decoder: Mapping[str, Tensor], left_out: Mapping[str, str]
) -> Conversion:
    eps = file.config.get("layer_norm_eps", _SWIN_EPS)
    if eps != _SWIN_EPS:
        raise ValueError(f"{file.path}: layer_norm_eps={eps} is not computed here in a Swin, {_SWIN_EPS} alone is")
    is_v2 = any(name.endswith(".attn.logit_scale") for name in weights)
    if is_v2:
        weights = rename(weights, _SEPARATE_BIASES)
    heads = simmim_heads(weights.pop("mask_token", None), split(decoder, "0.")[0])
    pretrained_windows = file.config.get("pretrained_window_sizes")
    is_changed = is_v2 and any(pretrained_windows or ())
    settings: dict[str, Any] = {"pretrained_window_sizes": pretrained_windows} if is_changed else {}
    return infer_config.swin(
        f"Hugging Face's Swin{' V2' if is_v2 else ''}",
        microsoft_swin_to_timm(fuse_qkv(weights)),
        heads=heads,
        left_out=left_out,
        image_size=file.config.get("image_size"),
        window_size=file.config.get("window_size"),
        **settings,
        **_statistics(file),
    )


def _statistics(file: WeightFile) -> dict[str, Any]:
    if file.preprocessing.get("do_normalize") is False:  # means and deviations may stand beside it, unused
        return {"pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
    names = {"image_mean": "pixel_mean", "image_std": "pixel_std"}
    return {ours: file.preprocessing[theirs] for theirs, ours in names.items() if theirs in file.preprocessing}
