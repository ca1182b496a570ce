from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, ViTMAEForPreTraining, ViTMAEModel

from unmask.interchange.exporters.folder import write_export
from unmask.interchange.exporters.vitmae import ViTMAEExporter

MAE = ["method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=2", "method.decoder.embed_dim=16"]
MAE += ["method.decoder.depth=1", "method.decoder.num_heads=2"]


def exported(make_source, method: Any, folder: Path, **changes: Any) -> Path:
    source = make_source(method.backbone, classifier=None, method=method, **changes)
    write_export(ViTMAEExporter(), source, folder)
    return folder


@pytest.mark.parametrize(("ratio", "is_normalized"), [(0.75, True), (0.7, False), (0.37, True)])
@torch.no_grad()
def test_losses_are_ours_under_the_same_mask(
    make_method, make_source, ratio: float, is_normalized: bool, tmp_path: Path
) -> None:
    method = make_method(*MAE, f"method.mask_generator.ratio={ratio}", f"method.norm_pix_loss={is_normalized}")
    folder = exported(make_source, method, tmp_path / "export")
    model, loading = ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    images = torch.randn(3, 3, 32, 32)
    mask = method.mask_generator(images)
    masked = mask.masked.flatten(1)
    theirs = model.eval()(images, noise=masked + 0.5 * torch.rand(masked.shape))
    ours = method(images, mask)
    assert torch.equal(theirs.mask.bool(), masked)
    assert theirs.loss.item() == pytest.approx(ours.loss.item(), rel=1e-6, abs=1e-6)
    torch.testing.assert_close(theirs.logits, method.predict_patches(images, mask), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_encoder_opens_alone_and_images_are_prepared(make_method, make_source, tmp_path: Path) -> None:
    method = make_method(*MAE)
    folder = exported(make_source, method, tmp_path / "export", crop_pct=0.8)
    pixels = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    prepared = AutoImageProcessor.from_pretrained(folder)(pixels, return_tensors="pt")["pixel_values"]
    mean, std = torch.tensor([0.1, 0.5, 0.8])[:, None, None], torch.tensor([0.2, 0.4, 0.7])[:, None, None]
    expected = ((pixels[:, 4:36, 4:36] / 255 - mean) / std)[None]  # 40 px is the size that 0.8 of it is cropped from
    torch.testing.assert_close(prepared, expected, rtol=0, atol=1e-5)
    encoder = ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
    tokens = encoder(expected, noise=torch.arange(64.0)[None]).last_hidden_state
    torch.testing.assert_close(tokens[:, 1:].mean(dim=1), method.backbone.forward_pooled(expected), rtol=0, atol=1e-5)


def test_what_is_not_mae_is_refused(make_method, make_source, make_vit, tmp_path: Path) -> None:
    simmim = make_method("method=simmim", "model=vit_mini", "model.embed_dim=24", "model.depth=1")
    with pytest.raises(ValueError, match="checkpoint of MAE, whose decoder it includes; this is SimMIM"):
        exported(make_source, simmim, tmp_path / "export")
    with pytest.raises(ValueError, match="this is a backbone alone: use format=huggingface"):
        write_export(ViTMAEExporter(), make_source(make_vit(depth=1), classifier=None), tmp_path / "export")
    oblong = make_method(*MAE, "image_size=[32,64]")
    with pytest.raises(ValueError, match="square images alone, this network takes 32x64 px"):
        exported(make_source, oblong, tmp_path / "export")
    assert not list(tmp_path.iterdir())
