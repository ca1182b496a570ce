"""Classifiers of other programs give the logits that their programs compute."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import unmask
from unmask.interchange.classifier import take_classifier
from unmask.interchange.detect_format import convert
from unmask.interchange.files import read_weights
from unmask.runtime.checkpoint import load_module

Weights = Mapping[str, Tensor]
OriginalFile = Callable[..., tuple[Path, dict[str, Tensor]]]


def require_same_logits(path: Path, images: Tensor, expected: Tensor, **changes: Any) -> Any:
    module, outputs, _ = load_module(path, **changes)
    expected = expected.detach()
    with torch.no_grad():
        logits = module(images)
    assert not module.training
    assert outputs.num == expected.shape[1]
    assert (logits - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    return outputs


# ---- in plain torch, after the equations and by the names of the original programs


class Network:
    """Layers by the names of a file."""

    def __init__(self, weights: Weights, prefix: str = "") -> None:
        self.weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[name]

    def linear(self, place: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{place}.bias")
        return x @ self[f"{place}.weight"].T + (0.0 if bias is None else bias)

    def layer_norm(self, place: str, x: Tensor, eps: float) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        return (
            centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() * self[f"{place}.weight"]
            + self[f"{place}.bias"]
        )

    def batch_norm(self, place: str, x: Tensor, eps: float) -> Tensor:
        normalized = (x - self[f"{place}.running_mean"]) / (self[f"{place}.running_var"] + eps).sqrt()
        if f"{place}.weight" not in self.weights:
            return normalized
        return normalized * self[f"{place}.weight"] + self[f"{place}.bias"]

    def mlp(self, place: str, x: Tensor) -> Tensor:
        return self.linear(f"{place}.fc2", F.gelu(self.linear(f"{place}.fc1", x)))

    def patches(self, images: Tensor) -> Tensor:
        """Cuts and embeds patches by hand, [b rows cols d]."""
        kernel = self["patch_embed.proj.weight"]
        side = kernel.shape[-1]
        cut = images.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3)
        return cut @ kernel.flatten(1).T + self["patch_embed.proj.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0, scale: Tensor | float | None = None) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale) + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def heads_of(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)


def plain_vit(net: Network, images: Tensor, *, positions: Tensor, num_heads: int, eps: float) -> Tensor:
    """Tokens in front of the final norm (arXiv:2010.11929)."""
    tokens = net.patches(images).flatten(1, 2)
    tokens = torch.cat([net["cls_token"].expand(len(images), -1, -1), tokens], dim=1) + positions
    depth = sum(name.endswith(".attn.qkv.weight") for name in net.weights)
    for block in range(depth):
        place = f"blocks.{block}"
        q, k, v = heads_of(net.linear(f"{place}.attn.qkv", net.layer_norm(f"{place}.norm1", tokens, eps)), num_heads)
        tokens = tokens + net.linear(f"{place}.attn.proj", attend(q, k, v))
        tokens = tokens + net.mlp(f"{place}.mlp", net.layer_norm(f"{place}.norm2", tokens, eps))
    return tokens


def relative_index(side: int) -> Tensor:
    """Row of a table of relative positions for each pair of a square of tokens."""
    places = [(row, col) for row in range(side) for col in range(side)]
    rows = [[(a[0] - b[0] + side - 1) * (2 * side - 1) + a[1] - b[1] + side - 1 for b in places] for a in places]
    return torch.tensor(rows)


def plain_beit(net: Network, images: Tensor, num_heads: int) -> Tensor:
    """SimMIM's ViT: biases of queries and values, a table a block, scaled branches; no positions."""
    patches = net.patches(images).flatten(1, 2)
    tokens = torch.cat([net["cls_token"].expand(len(images), -1, -1), patches], dim=1)
    side = math.isqrt(patches.shape[1])
    index = torch.full((side * side + 1,) * 2, (2 * side - 1) ** 2)  # the class token to a patch,
    index[1:, 0] = (2 * side - 1) ** 2 + 1  # a patch to it,
    index[0, 0] = (2 * side - 1) ** 2 + 2  # it to itself
    index[1:, 1:] = relative_index(side)
    for block in range(sum(name.endswith("gamma_1") for name in net.weights)):
        place = f"blocks.{block}"
        bias = torch.cat([net[f"{place}.attn.q_bias"], torch.zeros(tokens.shape[-1]), net[f"{place}.attn.v_bias"]])
        q, k, v = heads_of(
            net.linear(f"{place}.attn.qkv", net.layer_norm(f"{place}.norm1", tokens, 1e-6)) + bias, num_heads
        )
        table = net[f"{place}.attn.relative_position_bias_table"][index].permute(2, 0, 1)
        tokens = tokens + net[f"{place}.gamma_1"] * net.linear(f"{place}.attn.proj", attend(q, k, v, table))
        inner = net.mlp(f"{place}.mlp", net.layer_norm(f"{place}.norm2", tokens, 1e-6))
        tokens = tokens + net[f"{place}.gamma_2"] * inner
    return tokens


def windows(side: int, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """The tokens of each shifted window, [windows n], and which pairs were neighbors before, [windows n n]."""
    members: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for row in range(side):
        for col in range(side):
            source_row, source_col = (row + shift) % side, (col + shift) % side
            wrapped = 2 * (source_row < row) + (source_col < col)
            members.setdefault((row // window, col // window), []).append((source_row, source_col, wrapped))
    index = torch.tensor([[row * side + col for row, col, _ in each] for each in members.values()])
    part = torch.tensor([[wrapped for _, _, wrapped in each] for each in members.values()])
    return index, part[:, :, None] == part[:, None, :]


class MicrosoftSwin(Network):
    """Swin, or Swin V2 as DDMIM has it, by Microsoft's names: a merging closes its stage."""

    def __call__(self, images: Tensor, *, heads: tuple[int, ...], window: int) -> Tensor:
        is_v2 = any("cpb_mlp" in name for name in self.weights)
        x = self.layer_norm("patch_embed.norm", self.patches(images), 1e-5)
        for stage, num_heads in enumerate(heads):
            depth = sum(name.startswith(f"layers.{stage}.") and name.endswith("qkv.weight") for name in self.weights)
            for block in range(depth):
                side = x.shape[1]
                place = f"layers.{stage}.blocks.{block}"
                shift = window // 2 if block % 2 and side > window else 0
                if is_v2:  # the norm behind each branch
                    attended = self.attention_v2(f"{place}.attn", x, num_heads, window, shift)
                    x = x + self.layer_norm(f"{place}.norm1", attended, 1e-5)
                    x = x + self.layer_norm(f"{place}.norm2", self.mlp(f"{place}.mlp", x), 1e-5)
                else:
                    normed = self.layer_norm(f"{place}.norm1", x, 1e-5)
                    x = x + self.attention(f"{place}.attn", normed, num_heads, window, shift)
                    x = x + self.mlp(f"{place}.mlp", self.layer_norm(f"{place}.norm2", x, 1e-5))
            if stage < len(heads) - 1:
                merged = torch.cat([x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)], dim=-1)
                place = f"layers.{stage}.downsample"
                if is_v2:
                    x = self.layer_norm(f"{place}.norm", self.linear(f"{place}.reduction", merged), 1e-5)
                else:
                    x = self.linear(f"{place}.reduction", self.layer_norm(f"{place}.norm", merged, 1e-5))
        return self.layer_norm("norm", x, 1e-5).mean(dim=(1, 2))

    def attention(self, place: str, x: Tensor, num_heads: int, window: int, shift: int) -> Tensor:
        bias = self[f"{place}.relative_position_bias_table"][relative_index(window)].permute(2, 0, 1)
        return self.in_windows(place, self.qkv(place, x, num_heads), windows(x.shape[1], window, shift), bias)

    def attention_v2(self, place: str, x: Tensor, num_heads: int, window: int, shift: int) -> Tensor:
        offsets = torch.arange(1 - window, window) * 8 / (window - 1)
        grid = torch.cartesian_prod(offsets, offsets)
        coordinates = grid.sign() * (grid.abs() + 1).log2() / math.log2(8)  # arXiv:2111.09883, eq. 4
        hidden = self.linear(f"{place}.cpb_mlp.0", coordinates).relu()
        table = 16 * (hidden @ self[f"{place}.cpb_mlp.2.weight"].T).sigmoid()
        bias = table[relative_index(window)].permute(2, 0, 1)
        scale = self[f"{place}.logit_scale"].clamp(max=math.log(100)).exp()
        zeros = torch.zeros(x.shape[-1])
        biases = torch.cat([self[f"{place}.q_bias"], zeros, self[f"{place}.v_bias"]])
        q, k, v = self.qkv(place, x, num_heads, biases)
        q, k = F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)
        return self.in_windows(place, torch.stack([q, k, v]), windows(x.shape[1], window, shift), bias, scale=1.0)

    def qkv(self, place: str, x: Tensor, num_heads: int, biases: Tensor | float = 0.0) -> Tensor:
        return heads_of(self.linear(f"{place}.qkv", x.flatten(1, 2)) + biases, num_heads)

    def in_windows(
        self, place: str, qkv: Tensor, found: tuple[Tensor, Tensor], bias: Tensor, scale: float | None = None
    ) -> Tensor:
        num_tokens = qkv.shape[3]
        out = torch.zeros(qkv.shape[1], num_tokens, qkv.shape[2] * qkv.shape[4])
        for members, pairs in zip(*found, strict=True):
            q, k, v = qkv[:, :, :, members]
            hidden = torch.where(pairs, 0.0, -100.0)
            out[:, members] = self.linear(f"{place}.proj", attend(q, k, v, bias + hidden, scale))
        side = math.isqrt(num_tokens)
        return out.unflatten(1, (side, side))


# ---- files as the original programs write them


def test_mae_reads_the_mean_in_front_of_its_norm(original_file: OriginalFile) -> None:
    path, weights = original_file("mae-finetuned")
    net, images = Network(weights), torch.randn(2, 3, 64, 64)
    tokens = plain_vit(net, images, positions=net["pos_embed"], num_heads=3, eps=1e-6)
    pooled = net.layer_norm("fc_norm", tokens[:, 1:].mean(dim=1), 1e-6)
    require_same_logits(path, images, net.linear("head", pooled))


def test_mae_with_a_class_token_reads_it_behind_its_norm(original_file: OriginalFile) -> None:
    """Fine-tuned by `--cls_token`: `norm` in place of `fc_norm`, and `args` to tell it by."""
    path, weights = original_file("mae-finetuned")
    content = torch.load(path, weights_only=False)
    content["args"].global_pool = False
    content["model"] = {name.replace("fc_norm", "norm"): weight for name, weight in weights.items()}
    torch.save(content, path)
    net, images = Network(content["model"]), torch.randn(2, 3, 64, 64)
    tokens = plain_vit(net, images, positions=net["pos_embed"], num_heads=3, eps=1e-6)
    expected = net.linear("head", net.layer_norm("norm", tokens[:, 0], 1e-6))
    require_same_logits(path, images, expected)
    assert unmask.load_backbone(path).pooling == "mean"  # features stay those of every other file


def test_maes_linear_probe_normalizes_the_class_token(original_file: OriginalFile) -> None:
    width, probe = 192, {"head.0.running_mean": torch.randn(192), "head.0.running_var": torch.rand(192)}
    probe |= {"head.0.num_batches_tracked": torch.tensor(5)}
    probe |= {"head.1.weight": torch.randn(10, width), "head.1.bias": torch.randn(10)}
    path, weights = original_file("mae-encoder", weights=probe)
    net, images = Network(weights), torch.randn(2, 3, 64, 64)
    tokens = plain_vit(net, images, positions=net["pos_embed"], num_heads=3, eps=1e-6)
    pooled = net.batch_norm("head.0", net.layer_norm("norm", tokens[:, 0], 1e-6), 1e-6)
    require_same_logits(path, images, net.linear("head.1", pooled))


def test_simmims_swin_reads_the_mean_behind_its_norm(original_file: OriginalFile) -> None:
    path, weights = original_file("simmim-swin-finetuned")
    images = torch.randn(1, 3, 224, 224)
    net = MicrosoftSwin(weights)
    require_same_logits(path, images, net.linear("head", net(images, heads=(1, 2, 4, 8), window=7)))


def test_simmims_vit_reads_the_mean_in_front_of_its_norm(original_file: OriginalFile) -> None:
    path, weights = original_file("simmim-vit-finetuned")
    net, images = Network(weights), torch.randn(1, 3, 224, 224)
    pooled = plain_beit(net, images, num_heads=4)[:, 1:].mean(dim=1)
    require_same_logits(path, images, net.linear("head", net.layer_norm("fc_norm", pooled, 1e-6)))


def test_flyegle_reads_the_class_token(original_file: OriginalFile) -> None:
    path, weights = original_file("flyegle-tiny-classifier")
    net, images = Network(weights, "module.model."), torch.randn(1, 3, 224, 224)
    angle = torch.arange(197)[:, None] / 10000 ** (2 * (torch.arange(192) // 2) / 192)[None].double()
    positions = torch.where(torch.arange(192) % 2 == 0, angle.sin(), angle.cos()).float()
    tokens = plain_vit(net, images, positions=positions, num_heads=3, eps=1e-5)
    require_same_logits(path, images, net.linear("class_head", net.layer_norm("norm", tokens[:, 0], 1e-5)))


def test_ddmims_classifier_is_four_layers_behind_the_mean(original_file: OriginalFile) -> None:
    path, weights = original_file("ddmim-v9-classifier")
    images = torch.randn(1, 3, 224, 224)
    encoder = MicrosoftSwin(weights, "model.encoder.")
    representation = encoder.linear("head", encoder(images, heads=(3, 6, 12, 24), window=7))
    net = Network(weights, "mlp_head.")
    hidden = F.gelu(net.linear("1", net.batch_norm("0", representation, 1e-5)))
    outputs = require_same_logits(path, images, net.linear("3", hidden))
    assert (outputs.num, outputs.num_unused) == (1001, 1)


def mmpretrain_names(name: str) -> str:
    name = name.replace("patch_embed.proj.", "patch_embed.projection.").replace("blocks.", "layers.")
    name = name.replace(".norm", ".ln").replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")
    name = name.replace("fc_norm.", "ln2.")
    return f"backbone.{'ln1.' + name.removeprefix('norm.') if name.startswith('norm.') else name}"


@pytest.mark.parametrize("form", ["mean", "class token", "class token, probe"])
def test_mmpretrains_vit_reads_what_its_norms_tell(form: str, original_file: OriginalFile, tmp_path: Path) -> None:
    _, weights = original_file("mae-finetuned")
    own = {name: weight for name, weight in weights.items() if not name.startswith("head")}
    if form != "mean":
        own = {name.replace("fc_norm", "norm"): weight for name, weight in own.items()}
    net, images = Network(own), torch.randn(2, 3, 64, 64)
    tokens = plain_vit(net, images, positions=net["pos_embed"], num_heads=3, eps=1e-6)
    pooled = net.layer_norm("norm", tokens[:, 0], 1e-6) if form != "mean" else None
    if pooled is None:
        pooled = net.layer_norm("fc_norm", tokens[:, 1:].mean(dim=1), 1e-6)
    content = {mmpretrain_names(name): weight for name, weight in own.items()}
    if form == "class token, probe":
        neck = {"neck.bn.running_mean": torch.randn(192), "neck.bn.running_var": torch.rand(192)}
        content |= neck | {"neck.bn.num_batches_tracked": torch.tensor(3)}
        pooled = Network(neck).batch_norm("neck.bn", pooled, 1e-6)
    place = "head.layers.head" if form == "class token" else "head.fc"  # of VisionTransformerClsHead, LinearClsHead
    content |= {f"{place}.weight": weights["head.weight"], f"{place}.bias": weights["head.bias"]}
    names = [f"{number}, a bird" for number in range(10)]
    torch.save({"state_dict": content, "meta": {"dataset_meta": {"classes": names}}}, tmp_path / "mm.pth")
    outputs = require_same_logits(tmp_path / "mm.pth", images, Network(weights).linear("head", pooled))
    assert list(outputs.class_names) == names


# ---- the peers' own classes


TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
TIMM_SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 1), "num_heads": (2, 3)}
TIMM_BEIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
TIMM_HIERA = {"img_size": 32, "stages": (1, 1, 1, 1), "embed_dim": 96}
TIMM = {
    "a ViT's class token": ("vit_tiny_patch16_224", TIMM_VIT),
    "a ViT's mean behind the norm": ("vit_tiny_patch16_224", TIMM_VIT | {"global_pool": "avg", "fc_norm": False}),
    "a ViT's mean in front of it": ("vit_tiny_patch16_224", TIMM_VIT | {"global_pool": "avg"}),
    "Swin": ("swin_tiny_patch4_window7_224", TIMM_SWIN),
    "Swin V2": ("swinv2_tiny_window8_256", TIMM_SWIN),
    "BEiT": ("beit_base_patch16_224", TIMM_BEIT),
    "Hiera": ("hiera_tiny_224", TIMM_HIERA),
}


def timm_folder(folder: Path, name: str, arguments: Mapping[str, Any], model: Any, **described: Any) -> Path:
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    told = {"architecture": name, "model_args": arguments, "num_classes": 7, **described}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize("form", TIMM)
def test_timms_models_keep_their_logits(form: str, randomize: Any, tmp_path: Path) -> None:
    name, arguments = TIMM[form]
    theirs = randomize(timm.create_model(name, num_classes=7, **arguments))
    images, names = torch.randn(2, 3, 32, 32), [f"n{number}" for number in range(7)]
    described = {"label_names": names} if form != "Swin" else {"pretrained_cfg": {"label_names": names}}
    folder = timm_folder(tmp_path / "model", name, arguments, theirs, **described)
    outputs = require_same_logits(folder, images, theirs(images))
    assert list(outputs.class_names) == names


@pytest.mark.parametrize("form", [form for form in TIMM if form != "a ViT's mean behind the norm"])
def test_timms_bare_weights_are_read_by_timms_defaults(
    form: str, randomize: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, arguments = TIMM[form]
    theirs = randomize(timm.create_model(name, num_classes=7, **arguments))
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    images = torch.randn(2, 3, 32, 32)
    changes = {"image_size": 32, "window_size": 4} if form == "Swin V2" else {}
    with caplog.at_level("INFO", logger="unmask"):
        outputs = require_same_logits(tmp_path / "model.pth", images, theirs(images), **changes)
    assert outputs.class_names == ()
    assert ("not stated in the file: pooling" in caplog.text) == (form == "a ViT's class token")
    assert "differs:" not in caplog.text


def test_a_pooling_that_a_file_does_not_state_can_be_said(randomize: Any, tmp_path: Path) -> None:
    name, arguments = TIMM["a ViT's mean behind the norm"]
    theirs = randomize(timm.create_model(name, num_classes=7, **arguments))
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    images = torch.randn(2, 3, 32, 32)
    require_same_logits(tmp_path / "model.pth", images, theirs(images), pooling="mean")


@pytest.mark.parametrize(("pooling", "said"), [("max", "reads neither"), ([1], "reads neither"), ("avg", None)])
def test_a_pooling_that_is_not_computed_here_is_refused(
    pooling: Any, said: str | None, randomize: Any, tmp_path: Path
) -> None:
    theirs = randomize(timm.create_model("vit_tiny_patch16_224", num_classes=7, **TIMM_VIT))
    folder = timm_folder(tmp_path / "model", "vit_tiny_patch16_224", TIMM_VIT, theirs, global_pool=pooling)
    if said is None:
        assert unmask.load_method(folder).backbone.pooling == "mean"
        return
    with pytest.raises(ValueError, match=said):
        unmask.load_method(folder)
    unmask.load_backbone(folder)


SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 24, "depths": [2, 1], "num_heads": [2, 3], "window_size": 4}
VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
HUGGING_FACE: dict[str, Callable[[], Any]] = {
    "ViT": lambda: ViTForImageClassification(ViTConfig(**VIT, num_attention_heads=4, num_labels=7)),
    "Swin": lambda: SwinForImageClassification(SwinConfig(**SWIN, num_labels=7)),
    "Swin V2": lambda: Swinv2ForImageClassification(Swinv2Config(**SWIN, num_labels=7)),
}


@pytest.mark.parametrize("form", HUGGING_FACE)
def test_models_of_hugging_face_keep_their_logits(form: str, randomize: Any, tmp_path: Path) -> None:
    theirs = randomize(HUGGING_FACE[form]())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(images).logits
    theirs.save_pretrained(tmp_path / "unnamed")
    assert require_same_logits(tmp_path / "unnamed", images, expected).class_names == ()  # LABEL_0 is no name
    names = ["tench", "gold fish", "shark", "ray", "cock", "hen", "ostrich"]
    theirs.config.id2label = dict(enumerate(names))
    theirs.save_pretrained(tmp_path / "named")
    assert list(require_same_logits(tmp_path / "named", images, expected).class_names) == names


# ---- what is no classifier


def test_a_file_without_a_classifier_says_so(original_file: OriginalFile) -> None:
    path, _ = original_file("mae-pretrain")
    with pytest.raises(
        ValueError, match=r"mae-pretrain.pth \(MAE, encoder and decoder\) .* holds no classifier; use its"
    ):
        unmask.load_method(path)


@pytest.mark.parametrize(
    "extra",
    [
        {"head.2.weight": torch.zeros(3, 3)},
        {"head.weight": torch.zeros(10, 192, 1)},
        {"pre_logits.fc.bias": torch.zeros(3)},
    ],
)
def test_a_head_of_another_form_is_left_out_with_a_reason(original_file: OriginalFile, extra: Weights) -> None:
    path, _ = original_file("mae-finetuned", weights=extra)
    conversion = convert(read_weights(path))
    assert conversion.classifier is None or "pre_logits" in str(extra)
    assert all("another form" in conversion.left_out[name] for name in extra)


def test_a_classifier_leaves_nothing_of_its_file_behind(original_file: OriginalFile, caplog: Any) -> None:
    path, weights = original_file("mae-finetuned")
    with caplog.at_level("INFO", logger="unmask"):
        module = unmask.load_method(path)
    assert torch.equal(module.head.linear.weight, weights["head.weight"])
    assert "heads: 2 tensors loaded (head.weight, head.bias)" in caplog.text
    assert "left out" not in caplog.text


@pytest.mark.parametrize(
    "names", [{"0": "a"}, {"0": 1, "1": 2}, "ab", ["a", "b", "c"], [["a"], ["b"]], {"zero": "a", "one": "b"}, 5]
)
def test_names_that_are_not_one_an_output_are_no_names(names: Any) -> None:
    weights = {"head.weight": torch.zeros(2, 3), "head.bias": torch.zeros(2)}
    classifier, _ = take_classifier(weights, [(r"^head\.", "linear.")], class_names=names)
    assert classifier is not None
    assert classifier.class_names == ()
    named, _ = take_classifier(weights, [(r"^head\.", "linear.")], class_names={"1": "b\x1b[2J", "0": "a"})
    assert named is not None
    assert named.class_names == ("a", "b?[2J")
