"""How a training follows the number of its images, where neither the user nor a published recipe says otherwise.

The published recipes were made for 1.3 million images. On a set of some thousands their batches make a few steps an
epoch, and their rates, scaled down with the batch, leave the weights where they began. Below `SMALL` images therefore
one rule holds; all of its constants are ours (docs/LOG.md says what was measured):

- images: those whose shorter side (the median of the set) is below 160 px are served at the nearest of 32, 64, 96 and
  128 px, however many there are; patches, stages and windows of every backbone fit these sides;
- batch: the power of two that makes at least 32 steps an epoch, within 16 and 128, and at most half the set;
- epochs: 10, or as many as make 3,000 steps;
- warm-up: a tenth of the epochs, of the steps where the user counts in steps;
- peak rate: 2e-3 at a batch of 128 and a backbone of at most 128 channels, as the square root of the batch (Adam's
  rule, arXiv:2205.10287) and from there as one over the width (arXiv:2203.03466); the published peaks of ViT-B and
  Swin-B lie near it;
- teacher: it averages over a four-hundredth of a run of those epochs, and over 12 steps at least;
- DDMIM's reconstruction: 20 times its published weight, beside which the contrast leads (conf/method/ddmim.yaml);
- the pixels that SimMIM and DDMIM predict are normalized over half an image about each, and the residual branches of
  their Swin V2 start open;
- DDMIM's masked tokens are learned ones;
- linear probe: the power of two that makes at least 16 steps an epoch, within 16 and 1,024; 90 epochs, or as many as
  make 1,000 steps.
"""

import math

SMALL = 300_000  # training images: from here on everything is as published
USUAL_SIDE = 160  # px: images of this size and more are served as published

_SIDES = (32, 64, 96, 128)  # px
_BATCH_SIZES = (16, 128)  # smallest and largest; smaller ones waste a processor, larger ones steps
_STEPS_AN_EPOCH = 32
_EPOCHS, _STEPS = 10, 3000  # a run has both at least
_PEAK_LR, _PEAK_BATCH_SIZE, _PEAK_WIDTH = 2e-3, 128, 128
_WARMUP = 0.1
_TEACHERS_PART, _TEACHERS_STEPS = 1 / 400, 12
_PROBE_BATCH_SIZES, _PROBE_STEPS_AN_EPOCH = (16, 1024), 16
_PROBE_EPOCHS, _PROBE_STEPS = 90, 1000  # MAE A.2 Table 10; ours


def is_small(num_images: int | None) -> bool:
    """Whether the rule holds for a set; None is a set that nobody has counted."""
    return num_images is not None and num_images < SMALL


def image_size_for(median_side: int | None) -> int | None:
    """Side, pixels, at which small images are served; None for usual ones and where nobody has measured them.

    Args:
        median_side: Median of the shorter sides of the training images, pixels.
    """
    if median_side is None or median_side >= USUAL_SIDE:
        return None
    return min(_SIDES, key=lambda side: abs(side - median_side))


def batch_size_for(num_images: int) -> int:
    """Images an optimizer step of pre-training or fine-tuning takes."""
    return _batch_size(num_images, _STEPS_AN_EPOCH, _BATCH_SIZES)


def epochs_for(num_images: int, batch_size: int, *, num_steps: int | None = None) -> int:
    """Epochs of a training.

    Args:
        num_images: Of the training split.
        batch_size: Images an optimizer step takes; what does not fill a batch is left to the next epoch.
        num_steps: Steps that the user asked for in place of the rule's.
    """
    steps_an_epoch = max(1, num_images // batch_size)
    if num_steps is not None:
        return math.ceil(num_steps / steps_an_epoch)
    return max(_EPOCHS, math.ceil(_STEPS / steps_an_epoch))


def steps_of(num_images: int, batch_size: int, *, max_epochs: float | None, max_steps: int | None) -> int | None:
    """Optimizer steps of a run, by Lightning's limits of epochs and steps (None and -1 are none); None is endless."""
    limits = [] if max_epochs is None or max_epochs < 0 else [int(max_epochs * (num_images // batch_size))]
    return min([*limits, *([] if max_steps is None or max_steps < 0 else [max_steps])], default=None)


def peak_lr_for(batch_size: int, width: int) -> float:
    """Peak of AdamW's rate in pre-training.

    Args:
        batch_size: Images an optimizer step takes.
        width: Channels of the backbone's last stage.
    """
    return _PEAK_LR * math.sqrt(batch_size / _PEAK_BATCH_SIZE) * min(1.0, _PEAK_WIDTH / width)


def warmup_steps_for(num_steps: int) -> float:
    """Steps of a run in which the rate rises."""
    return _WARMUP * num_steps


def time_constant_for(num_images: int, batch_size: int) -> float:
    """Images over which a teacher averages its student's weights.

    It does not depend on the length that the user chose, or a run could not be continued for longer.
    """
    steps = epochs_for(num_images, batch_size) * max(1, num_images // batch_size)
    return batch_size * max(_TEACHERS_PART * steps, float(_TEACHERS_STEPS))


def probe_batch_size_for(num_images: int) -> int:
    """Images a step of a linear probe on cached features takes."""
    return _batch_size(num_images, _PROBE_STEPS_AN_EPOCH, _PROBE_BATCH_SIZES)


def probe_epochs_for(num_images: int, batch_size: int) -> int:
    """Epochs of a linear probe on cached features."""
    return max(_PROBE_EPOCHS, math.ceil(_PROBE_STEPS / max(1, num_images // batch_size)))


def _batch_size(num_images: int, steps_an_epoch: int, limits: tuple[int, int]) -> int:
    smallest, largest = limits
    wanted = min(max(_power_of_two(num_images / steps_an_epoch), smallest), largest)
    return min(wanted, _power_of_two(num_images / 2))


def _power_of_two(number: float) -> int:
    """The largest power of two that is not above a number; 1 at least."""
    return 1 << math.floor(math.log2(max(number, 1.0)))
