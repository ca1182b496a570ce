"""timm's RandAugment with keyed draws."""

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL.Image import Image, Resampling
from timm.data.auto_augment import posterize, rand_augment_transform
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

_POLICY = re.compile(r"rand(-(m\d+|n\d+|mstd\d+(\.\d+)?|mmax\d+|inc[01]|p\d+(\.\d+)?))*")
_RESAMPLING = {"bilinear": Resampling.BILINEAR, "bicubic": Resampling.BICUBIC}
_TRANSLATE_FRACTION = 0.45  # of the shorter side, timm's


class RandAugment:
    """Distorts single images by operations drawn at random (arXiv:1909.13719), as timm implements it.

    timm draws from the global generators of Python and numpy. They are seeded with the image's key for the length of
    a call and then put back, so that the result depends on the key alone.

    Args:
        policy: timm's string: `rand-m9-mstd0.5-inc1` takes two operations of magnitude 9, deviation 0.5, each with
            probability 0.5, from the set whose strength grows with the magnitude.
        interpolation: Of rotations and shears.

    Raises:
        ValueError: The policy is not of that form.
    """

    def __init__(self, policy: str, *, interpolation: str = "bicubic") -> None:
        if not _POLICY.fullmatch(policy):
            raise ValueError(
                f"augmentation.rand_augment={policy!r} is not a policy of timm's RandAugment; "
                "write it as rand-m9-mstd0.5-inc1"
            )
        self.policy = policy
        self.interpolation = interpolation
        self._built: dict[Any, Any] = {}  # timm's transform by what it depends on

    def __str__(self) -> str:
        return self.policy

    def __call__(
        self, image: UInt8[Tensor, "3 height width"], *, key: int, fill: Sequence[float]
    ) -> UInt8[Tensor, "3 height width"]:
        """Distorts an image.

        Args:
            image: RGB.
            key: What the draws are a function of.
            fill: Color, in 0..1, of what moves in from outside.
        """
        transform = self._transform(min(image.shape[1:]), tuple(fill))
        with _seeded_globals(key):
            distorted: Tensor = pil_to_tensor(transform(to_pil_image(image)))
        return distorted

    def _transform(self, side: int, fill: tuple[float, ...]) -> Any:
        if (side, fill) not in self._built:
            settings = {
                "translate_const": int(side * _TRANSLATE_FRACTION),
                "img_mean": tuple(min(255, round(255 * value)) for value in fill),
                "interpolation": _RESAMPLING[self.interpolation],
            }
            transform = rand_augment_transform(self.policy, settings)
            for operation in transform.ops:
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize
            self._built[side, fill] = transform
        return self._built[side, fill]


def _posterize(image: Image, bits: int, **_: Any) -> Image:
    """Keeps the highest bits of each color; 0, timm's strongest, is black, which Pillow 13 refuses."""
    return posterize(image, bits) if bits > 0 else image.point(lambda _: 0)


@contextmanager
def _seeded_globals(key: int) -> Iterator[None]:
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
