import timm
import torch


def decoder(width: int) -> dict[str, torch.Tensor]:
    return {"decoder.0.weight": torch.randn(192, width, 1, 1), "decoder.0.bias": torch.randn(192)}


def test_a_pretrained_swin(timm_swin, microsoft_weights, prefixed, converted, require_loads_as) -> None:
    theirs, token = timm_swin(), torch.randn(1, 1, 24)
    weights = prefixed("encoder.", microsoft_weights(theirs)) | {"encoder.mask_token": token} | decoder(48)
    content = {"model": weights, "max_accuracy": 0.0}
    conversion = converted(content)
    assert conversion.source_format == "SimMIM's Swin, pre-trained"
    assert torch.equal(conversion.heads["mask_token"], token.flatten())
    assert torch.equal(conversion.heads["head.project.weight"], weights["decoder.0.weight"])
    assert conversion.left_out.keys() == {name for name in weights if name.endswith(("_index", "_mask"))}
    assert conversion.assumed == {}  # buffers tell window and image
    require_loads_as(content, theirs.forward_features)


def test_buffers_tell_an_image_of_many_windows(timm_swin, microsoft_weights, converted) -> None:
    theirs = timm_swin(img_size=64)
    assert converted({"model": microsoft_weights(theirs)}).settings["image_size"] == 64


def test_a_fine_tuned_swin(timm_swin, microsoft_weights, converted, require_loads_as) -> None:
    theirs = timm_swin()
    content = {"model": microsoft_weights(theirs) | {"head.weight": torch.zeros(7, 48), "head.bias": torch.zeros(7)}}
    left_out = converted(content).left_out
    assert {name for name, why in left_out.items() if why == "a classifier of 7 classes"} == {
        "head.weight",
        "head.bias",
    }
    require_loads_as(content, theirs.forward_features)


def test_a_pretrained_vit_shares_its_table(randomize, prefixed, converted, require_loads_as) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
    form = {
        "use_abs_pos_emb": False,
        "use_shared_rel_pos_bias": True,
        "use_rel_pos_bias": False,
        "global_pool": "token",
    }
    theirs = randomize(timm.create_model("beit_base_patch16_224", **sizes, **form))
    buffers = {"rel_pos_bias.relative_position_index": torch.zeros(17, 17)}
    weights = prefixed("encoder.", theirs.state_dict() | buffers) | {"encoder.mask_token": torch.zeros(1, 1, 24)}
    content = {"model": weights | decoder(24)}
    assert converted(content).source_format == "SimMIM's ViT, pre-trained"
    backbone = require_loads_as(content, lambda images: theirs.forward_features(images)[:, 1:])
    assert (backbone.settings["relative_bias"], backbone.image_size) == ("shared", (32, 32))


def test_a_fine_tuned_vit_has_a_table_a_block(timm_beit, images, converted, load) -> None:
    theirs = timm_beit()
    buffers = {f"blocks.{block}.attn.relative_position_index": torch.zeros(17, 17) for block in range(2)}
    content = {"model": theirs.state_dict() | buffers}
    assert converted(content).source_format == "SimMIM's ViT, fine-tuned"
    expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(load(content).forward_pooled(images), expected, rtol=0, atol=1e-5)
