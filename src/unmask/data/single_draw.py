"""The crop of MAE's linear probe."""

from jaxtyping import Float
from torch import Tensor

from unmask.data.resizing import Boxes
from unmask.data.transforms import Augmentation, box_sides


class SingleDrawAugmentation(Augmentation):
    """Random resized crop of one draw: a box too large for the image is cut to it instead of being drawn again.

    So MAE's code crops for its linear probe, after TensorFlow: crops as large as the image, whatever its aspect ratio,
    come up more often than under torchvision's ten attempts. Arguments and errors are those of `Augmentation`.
    """

    def choose_boxes(self, draws: Float[Tensor, "b n"], height: int, width: int) -> Boxes:
        area, aspect, top, left = draws[:, :4].unbind(1)
        heights, widths = box_sides(area, aspect, height * width, self.scale, self.ratio)
        heights = heights.clamp(1, height)  # Pillow would refuse a crop of no pixel, as MAE's code leaves one to be
        widths = widths.clamp(1, width)
        return Boxes(
            top=(top * (height - heights + 1)).long(),
            left=(left * (width - widths + 1)).long(),
            height=heights,
            width=widths,
        )
