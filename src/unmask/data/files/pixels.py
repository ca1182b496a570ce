"""One image as it is read."""

import io

from jaxtyping import Float32, UInt8
from torch import Tensor

OpenFile = io.BufferedReader | io.BytesIO

Pixels = UInt8[Tensor, "channels _height _width"] | Float32[Tensor, "channels _height _width"]
"""One image on the scale 0..255: uint8 of pictures, float32 of files with finer or unbounded numbers."""
