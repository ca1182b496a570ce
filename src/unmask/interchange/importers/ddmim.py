"""Lightning checkpoints of DDMIM v9 (SVC-WSY/ddmim) and of its classifier."""

from unmask.interchange import infer_config
from unmask.interchange.classifier import take_classifier
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.importers.microsoft import microsoft_swin_to_timm, sizes_in_buffers
from unmask.interchange.renaming import Rules, split, without_buffers

_HEAD: Rules = [
    (r"^model\.encoder\.head\.", "0."),
    (r"^mlp_head\.0\.", "1."),
    (r"^mlp_head\.1\.", "2."),
    (r"^mlp_head\.3\.", "4."),
]
_TEACHER = "modelEMA.module."
_PARTS = ("modelEMA.", "projection_head.", "mlp_head.")  # its classifier has the last alone


def matches(file: WeightFile) -> bool:
    names = {name.removeprefix("model.") for name in file.weights}
    return "encoder.patch_embed.proj.weight" in names and any(name.startswith(_PARTS) for name in names)


def convert(file: WeightFile) -> Conversion:
    """The student is the backbone, as in its authors' fine-tuning; the teacher goes beside it as `averaged`.

    Its classifier keeps no teacher and no projector: its authors replace both by an identity before fine-tuning. The
    linear layer behind the encoder is the first of the classifier, whose last output, the 1001st, is no class.

    The linear layer behind the encoder, there called its head, is the first of a `DDMIM` method's projector with
    `representation_features`.
    """
    classifier, weights = take_classifier(file.weights, _HEAD, num_unused={1001: 1})
    pretrained, others = split(weights, "model.")
    if not pretrained:
        pretrained, others = weights, {}
    left_out = dict.fromkeys(others, "not part of the backbone")
    encoder, others = split(pretrained, "encoder.")
    teacher, others = split(others, _TEACHER)
    representation, encoder = split(encoder, "head.")
    decoder, others = split(others, "decoder.0.")
    projector, others = split(others, "projection_head.")
    behind_teacher, teacher = split(teacher, "head.")
    heads = {f"reconstruction.head.project.{name}": weight for name, weight in decoder.items()}
    heads |= {f"contrast.projector.layers.0.{name}": weight for name, weight in representation.items()}
    # There the second part counts linear, GELU, linear from 0; here one layer stands before it.
    heads |= {f"contrast.projector.layers.{int(name[0]) + 1}{name[1:]}": weight for name, weight in projector.items()}
    left_out |= dict.fromkeys(others, "not part of the backbone")
    left_out |= {f"{_TEACHER}head.{name}": "the layer behind the teacher" for name in behind_teacher}
    return infer_config.swin(
        "DDMIM v9",
        microsoft_swin_to_timm(encoder),
        averaged=microsoft_swin_to_timm(teacher),
        heads=heads,
        classifier=classifier,
        left_out=left_out,
        trained_names=[f"encoder.{name}" for name in without_buffers(encoder)] if teacher else (),
        averaged_names=[f"{_TEACHER}{name}" for name in without_buffers(teacher)],
        **sizes_in_buffers(encoder, encoder["patch_embed.proj.weight"].shape[-1]),
    )
