import pytest
import torch


@pytest.fixture
def student(timm_swin):
    return timm_swin("swinv2_tiny_window8_256")


@pytest.fixture
def teacher(timm_swin):
    return timm_swin("swinv2_tiny_window8_256")


@pytest.fixture
def weights(student, teacher, microsoft_weights, prefixed) -> dict[str, torch.Tensor]:
    representation = {"head.weight": torch.randn(64, 48), "head.bias": torch.randn(64)}
    return {
        **prefixed("encoder.", microsoft_weights(student) | representation),
        **prefixed("modelEMA.module.", microsoft_weights(teacher) | representation),
        "modelEMA.n_averaged": torch.tensor(3),
        "decoder.0.weight": torch.randn(192, 48, 1, 1),
        "decoder.0.bias": torch.randn(192),
        "projection_head.0.weight": torch.randn(32, 64),
        "projection_head.0.bias": torch.randn(32),
        "projection_head.2.weight": torch.randn(32, 32),
        "projection_head.2.bias": torch.randn(32),
    }


def test_the_student_is_taken_unless_the_teacher_is_asked_for(student, teacher, weights, require_loads_as) -> None:
    content = {"state_dict": weights, "epoch": 48, "pytorch-lightning_version": "1.5.8"}
    require_loads_as(content, student.forward_features)
    require_loads_as(content, teacher.forward_features, use_ema_weights=True)


def test_the_heads_are_those_of_a_method_with_a_representation(weights, converted) -> None:
    heads = converted({"state_dict": weights}).heads
    assert torch.equal(heads["contrast.projector.layers.0.weight"], weights["encoder.head.weight"])
    assert torch.equal(heads["contrast.projector.layers.1.bias"], weights["projection_head.0.bias"])
    assert torch.equal(heads["contrast.projector.layers.3.weight"], weights["projection_head.2.weight"])
    assert torch.equal(heads["reconstruction.head.project.bias"], weights["decoder.0.bias"])
    assert len(heads) == 8


def test_its_classifier_is_left_out(weights, prefixed, student, converted, require_loads_as) -> None:
    """Which has neither teacher nor projector: fine-tuning replaces both by an identity."""
    classifier = {"mlp_head.1.weight": torch.zeros(64, 64), "mlp_head.1.bias": torch.zeros(64)}
    classifier |= {f"mlp_head.0.{part}": torch.zeros(64) for part in ("weight", "bias", "running_mean", "running_var")}
    classifier |= {"mlp_head.0.num_batches_tracked": torch.tensor(1)}
    classifier |= {"mlp_head.3.weight": torch.zeros(1001, 64), "mlp_head.3.bias": torch.zeros(1001)}
    kept = {name: weight for name, weight in weights.items() if name.startswith(("encoder.", "decoder."))}
    content = {"state_dict": prefixed("model.", kept) | classifier}
    left_out = converted(content).left_out
    assert {name: left_out[name] for name in classifier} == dict.fromkeys(classifier, "a classifier of 1001 classes")
    require_loads_as(content, student.forward_features)


def test_other_windows_count_in_those_of_the_pretraining(weights, load) -> None:
    backbone = load({"state_dict": weights}, image_size=64, window_size=8)
    assert backbone.settings["pretrained_window_sizes"] == [4, 4]


def test_a_file_without_a_teacher_says_so(timm_vit, load) -> None:
    with pytest.raises(ValueError, match=r"weights.pth \(timm's ViT\) contains no averaged teacher beside its weights"):
        load(timm_vit().state_dict(), use_ema_weights=True)
