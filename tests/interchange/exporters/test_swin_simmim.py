from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, SwinForMaskedImageModeling, SwinModel

from unmask.interchange.exporters.folder import write_export
from unmask.interchange.exporters.swin_simmim import SwinSimMIMExporter

SIMMIM = ["method=simmim", "model=swin_mini", "model.embed_dim=12", "model.depths=[2,2]", "model.num_heads=[1,2]"]


def exported(make_source, method: Any, folder: Path) -> Path:
    write_export(SwinSimMIMExporter(), make_source(method.backbone, classifier=None, method=method), folder)
    return folder


@torch.no_grad()
def test_losses_are_ours_under_the_same_mask(make_method, make_source, tmp_path: Path) -> None:
    method = make_method(*SIMMIM)
    folder = exported(make_source, method, tmp_path / "export")
    model, loading = SwinForMaskedImageModeling.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    pixels = torch.rand(3, 3, 32, 32)
    images = AutoImageProcessor.from_pretrained(folder)(pixels, do_rescale=False, return_tensors="pt")["pixel_values"]
    mask = method.mask_generator(images)
    theirs = model.eval()(images, bool_masked_pos=mask.at_stride(4).flatten(1))
    ours = method(images, mask)
    assert theirs.loss.item() == pytest.approx(ours.loss.item(), rel=1e-6, abs=1e-6)
    torch.testing.assert_close(theirs.reconstruction, ours.prediction, rtol=0, atol=1e-5)
    pooled = SwinModel.from_pretrained(folder).eval()(images).pooler_output
    torch.testing.assert_close(pooled, method.backbone.forward_pooled(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model=vit_mini", "model.embed_dim=12", "model.depth=1", "model.num_heads=1"], "this is SimMIM on TimmViT"),
        (["model=swinv2_mini", *SIMMIM[2:]], "has no place for the weight .* of this network"),
        ([*SIMMIM[1:3], "model.depths=[1,1,1]", "model.num_heads=[1,1,1]"], "windows of 4x4, 2x2 tokens"),
        ([*SIMMIM[1:], "image_size=[32,64]"], "square images alone, this network takes 32x64 px"),
    ],
)
def test_what_transformers_has_no_class_for_is_refused(
    make_method, make_source, overrides: list[str], sentence: str, tmp_path: Path
) -> None:
    method = make_method("method=simmim", *overrides)
    with pytest.raises(ValueError, match=sentence):
        exported(make_source, method, tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_a_backbone_alone_is_refused(make_swin, make_source, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whose head it includes; this is a backbone alone"):
        write_export(SwinSimMIMExporter(), make_source(make_swin(), classifier=None), tmp_path / "export")
