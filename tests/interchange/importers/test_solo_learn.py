import torch


def test_its_vits_have_twelve_heads(timm_vit, converted, require_loads_as) -> None:
    theirs = timm_vit(embed_dim=192, num_heads=12)
    weights = {f"backbone.{n}": w for n, w in theirs.state_dict().items() if not n.startswith("head.")}
    decoder = {"decoder.decoder_embed.weight": torch.randn(8, 192), "decoder.mask_token": torch.randn(1, 1, 8)}
    classifier = {"classifier.weight": torch.randn(5, 192)}
    content = {"state_dict": weights | decoder | classifier}
    conversion = converted(content)
    assert conversion.source_format == "solo-learn's MAE"
    assert torch.equal(conversion.heads["decoder.embed.weight"], decoder["decoder.decoder_embed.weight"])
    assert list(conversion.left_out) == ["classifier.weight"]
    require_loads_as(content, lambda images: theirs.forward_features(images)[:, 1:])
