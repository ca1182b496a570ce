# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

CPU = torch.device("cpu")
TINY = [
    "method=mae",
    "model=vit_mini",
    "model.embed_dim=24",
    "model.depth=2",
    "method.decoder.embed_dim=24",
    "method.decoder.depth=1",
    "method.decoder.num_heads=3",
]


def test_the_picture_is_what_the_method_makes_of_the_given_images(
    pictures: Path, point_at, tmp_path, monkeypatch, caplog
) -> None:
    import unmask
    from unmask.inference import reconstruct as module

    drawn = {}
    panel = module.reconstruction_panel
    monkeypatch.setattr(
        module, "reconstruction_panel", lambda shown, **text: drawn.update(text, shown=shown) or panel(shown, **text)
    )
    method = unmask.build_method(TINY).eval()
    backbone = method.exported_backbone
    shown = point_at(pictures, pixel_mean=backbone.pixel_mean, pixel_std=backbone.pixel_std)

    def run(seed: int) -> torch.Tensor:
        inference = module.Reconstruct(image="given", num_images=2, seed=seed)
        with torch.inference_mode():
            inference.run(method, lambda path, split: shown, run_dir=tmp_path, device=CPU)
        return drawn["shown"].mask.masked

    with caplog.at_level("INFO"):
        masks = [run(seed) for seed in (3, 4, 3)]
    assert drawn["title"] == "MAE: 2 image(s)"
    assert drawn["subtitle"].startswith("75% of each image masked  ·  seed 3  ·  loss ")
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0][0], masks[0][1])
    assert f"row 2: {shown.name(2)}" in caplog.text
    assert drawn["shown"].estimated_prediction is not None  # the target is normalized patch by patch
    images = drawn["shown"].image
    colors = torch.tensor([[10, 250, 10], [10, 10, 250]]) / 255.0  # the first and third of five, in order of names
    torch.testing.assert_close(images.mean(dim=(2, 3)), colors, atol=1e-3, rtol=0)
    masked = drawn["shown"].mask.at_pixels().expand_as(images)
    assert masked.float().mean() == pytest.approx(0.75, abs=0.02)
    assert torch.equal(drawn["shown"].composite[~masked], images[~masked])
    with torch.inference_mode():
        normalized = shown.data.statistics.pixels.normalize_(255 * images)
        again = method(normalized, drawn["shown"].mask).prediction
    predicted = (
        again * torch.tensor(backbone.pixel_std)[:, None, None] + torch.tensor(backbone.pixel_mean)[:, None, None]
    )
    torch.testing.assert_close(drawn["shown"].prediction[masked], predicted.clamp(0, 1)[masked], atol=1e-4, rtol=0)
    assert (tmp_path / "reconstruction.png").stat().st_size > 1000


def test_images_are_chosen_evenly() -> None:
    from unmask.inference.reconstruct import evenly_spaced

    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(3, 8) == [0, 1, 2]


@pytest.mark.parametrize("method", ["mae", "supervised"])
def test_a_classifier_is_refused_and_one_image_is_enough(method: str) -> None:
    import unmask
    from unmask.inference.base import Checkpoint
    from unmask.inference.reconstruct import Reconstruct

    module = unmask.build_method(TINY if method == "mae" else ["method=supervised", "model=vit_mini", "model.depth=1"])
    checkpoint = Mock(spec=Checkpoint, path="a.ckpt")
    checkpoint.load_module.return_value = module
    inference = Reconstruct(image=None, num_images=1)
    if method == "mae":
        assert inference.load(checkpoint) == (module, module.exported_backbone)
    else:
        with pytest.raises(ValueError, match=r"a\.ckpt holds a classifier, which masks nothing"):
            inference.load(checkpoint)
    with pytest.raises(ValueError, match=r"eval\.num_images must be at least 1, got 0"):
        Reconstruct(image=None, num_images=0)
