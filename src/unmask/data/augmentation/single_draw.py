"""The crop of MAE's linear probe."""

from collections.abc import Sequence

from unmask.data.augmentation.boxes import Attempts, Box, Boxes, first_cut, first_cut_of_one
from unmask.data.augmentation.transforms import Augmentation


class SingleDrawAugmentation(Augmentation):
    """Random resized crop of one draw: a box too large for the image is cut to it instead of being drawn again.

    So MAE's code crops for its linear probe, after TensorFlow: crops as large as the image, whatever its aspect ratio,
    come up more often than under torchvision's ten attempts. Arguments and errors are those of `Augmentation`.
    """

    def choose_boxes(self, attempts: Attempts, height: int, width: int) -> Boxes:
        return first_cut(attempts, height, width)

    def choose_box(self, attempts: Sequence[Sequence[float]], height: int, width: int) -> Box:
        return first_cut_of_one(attempts, height, width)
