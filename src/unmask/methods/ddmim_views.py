"""The two views of a batch that DDMIM's student and teacher see in training."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from unmask.types import Images, View

Boxes = tuple[Float[Tensor, "b 4"], Float[Tensor, "b 4"]]
"""Where the student and where the teacher look, each as `View.box`."""


class Views(NamedTuple):
    """What the two networks see of a batch."""

    target: Images  # what the student predicts
    student: Images
    teacher: Images
    boxes: Boxes | None  # None: both see the whole image


class TwoViews:
    """Makes the student's and the teacher's view of each image of a batch.

    Args:
        crops: Cuts two crops out of each image, the student's and the teacher's; None shows both the whole image.
        student, teacher: Changes a network's view pixel by pixel in place, such as its colors. The target of the
            reconstruction stays as it was before. None changes nothing.

    Raises:
        ValueError: All three are None.
    """

    def __init__(
        self,
        *,
        crops: Callable[[Images], tuple[View, View]] | None = None,
        student: Callable[[Images], Images] | None = None,
        teacher: Callable[[Images], Images] | None = None,
    ) -> None:
        if crops is None and student is None and teacher is None:
            raise ValueError("method.views changes neither view; set method.views=null")
        self.crops = crops
        self.student = student
        self.teacher = teacher

    def __call__(self, images: Images) -> Views:
        target, shown, boxes = images, images, None
        if self.crops is not None:
            (target, student_box), (shown, teacher_box) = self.crops(images)
            boxes = student_box, teacher_box
        student = self.student(target) if self.student is not None else target
        teacher = self.teacher(shown) if self.teacher is not None else shown
        return Views(target, student, teacher, boxes)


def whole_images(images: Images) -> Views:
    """Shows both networks the images as they are, as in validation."""
    return Views(images, images, images, None)
