"""Pictures made by rule: one object of ten shapes, everything but its surface drawn without regard to the shape.

A picture is a function of its key and label, whatever the batch it is rendered in: pixels are computed with
operations that IEEE 754 rounds exactly (+ - * / sqrt floor min max) and never with a matrix product or a library's
sine, whose last bit may change with the length of the tensor.

Lengths are shares of the picture's short side, so a key shows the same scene at every size; only the sharpest edges
and the grain belong to the pixels.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from unmask.data.datamodule import ImageDataModule
from unmask.data.dataset import ImageDataset, InMemoryDataset
from unmask.data.files.splits import Split
from unmask.randomness import keyed_uniform, sample_keys

Plane = Float[Tensor, "b height width"]  # a number for every pixel
PerPicture = Float[Tensor, "b 1 1"]
Color = Float[Tensor, "b 3 1 1"]  # RGB, black 0 and white 1

_MAX_MEMORY_FRACTION = 0.5  # of this machine's, that a split may take
_SMALLEST_SIDE = 16  # pixels; below, the shapes cannot be told apart
_CHUNK_PIXELS = 2**16  # rendered at a time, so that planes stay in a core's cache
_MOST_DRAWS = 64  # numbers one part of a scene may use
_LATTICE = 8  # random values a side of a noise field, repeated beyond

# Each part of a scene has draws of its own: its keys are the picture's, combined with one of these.
_POSE, _EDGE, _COLORS, _GROUND, _LATTICE_VALUES, _SURFACE = range(1, 7)
_DISTRACTORS, _SHADOW, _LIGHT, _GRAIN, _PIXELS = range(7, 12)

_NUM_DISTRACTORS = 5
_DISTRACTOR_SIDES = (0.015, 0.09)  # half of them
_SHADOW_REACH = (0.03, 0.1)
_PERIODS = (3.5, 7.0)  # of a drawn texture along the short side
_OWN_PERIODS = 1.2  # of a shape's own texture along the radius


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The ranges a picture is drawn from; all are ours, tuned until the figures in `Synthetic`'s docstring came out."""

    radius: tuple[float, float]  # of the disc with the object's area
    freedom: float  # fraction of the way to the border that the object may go
    turns: tuple[float, float]  # of the object, in whole turns
    edge_width: tuple[float, float]  # blur of every outline, at least one pixel
    contrast: float  # least difference in lightness between ground and object; black to white is 1
    tint: float  # largest difference between a channel and the lightness
    ground_relief: tuple[float, float]  # least and largest difference in lightness between the ground's two colors
    surface_relief: tuple[float, float]  # and between the surface's
    ground_cells: tuple[float, float]  # of the noise field along the short side
    distractor_fraction: float  # of the pictures show any one of them
    shadow_depth: float  # largest fraction of the light taken away
    ramp: float  # largest change of the light over one short side
    grain_depth: tuple[float, float]  # largest deviation of a channel
    has_own_surfaces: bool  # each shape its own, turned with it; else one of six, drawn and turned apart


HARD = Scene(
    radius=(0.17, 0.26),
    freedom=0.5,
    turns=(0.0, 1.0),
    edge_width=(0.0, 0.08),
    contrast=0.3,
    tint=0.2,
    ground_relief=(0.0, 0.4),
    surface_relief=(0.0, 0.4),
    ground_cells=(3.0, 8.0),
    distractor_fraction=0.7,
    shadow_depth=0.5,
    ramp=0.6,
    grain_depth=(0.02, 0.18),
    has_own_surfaces=False,
)
EASY = Scene(
    radius=(0.24, 0.38),
    freedom=0.8,
    turns=(-0.125, 0.125),
    edge_width=(0.0, 0.03),
    contrast=0.3,
    tint=0.2,
    ground_relief=(0.0, 0.15),
    surface_relief=(0.3, 0.6),
    ground_cells=(2.0, 4.0),
    distractor_fraction=0.0,
    shadow_depth=0.0,
    ramp=0.2,
    grain_depth=(0.0, 0.0),
    has_own_surfaces=True,
)
_SCENES = {"easy": EASY, "hard": HARD}


class Synthetic(ImageDataModule):
    """Pictures of ten shapes, rendered when a split is first read; nothing is downloaded.

    Picture i of a split shows shape i % 10. A picture is a function of (picture_seed, split, i), so a larger split
    begins with the pictures of a smaller one, and no two splits share a picture.

    Size, place, turn, colors, light and blur are drawn without regard to the shape, and all shapes of one size have
    one area, so that colors do not tell the class (`benchmarks/floors.py`).

    Easy pictures show a large object on a smooth ground, turned by up to an eighth either way, and each shape has a
    surface of its own that goes with it: what is visible of an object tells how the rest continues, which is what
    masked modeling learns from. Hard pictures turn the object freely and draw its surface, distractors, a shadow and
    grain without regard to the shape, so that the outline alone tells it. Of hard ones was measured once, at 32 px,
    seed 0, 4,000 training and 1,000 test pictures: logistic regression on mean, deviation and five quantiles of each
    channel 10.4 % (chance is 10 %); 10 nearest neighbors by cosine of pixels less the picture's mean 34.9 %; a CNN of
    three 3x3 convolutions (24, 48, 96 channels; batch norm, ReLU, max pooling) after 15 epochs of AdamW, one-cycle
    rate up to 0.002, batches of 64, mirrored half the time, 67.1 %.

    Args:
        num_train, num_val, num_test: Pictures in each split.
        render_size: Side, or (height, width), of the stored pictures, in pixels; None renders at `image_size`.
        picture_seed: Key of all pictures; not the run's seed, so that runs of any seed and their evaluation agree.
        difficulty: "easy" or "hard".
        shared: See `ImageDataModule`.

    Raises:
        ValueError: A split is empty, a side is shorter than 16 px, or the difficulty is unknown.
    """

    holds_images_in_memory = True

    def __init__(
        self,
        *,
        num_train: int = 4000,
        num_val: int = 500,
        num_test: int = 1000,
        render_size: int | Sequence[int] | None = None,
        picture_seed: int = 0,
        difficulty: str = "easy",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.picture_seed = picture_seed
        if difficulty not in _SCENES:
            raise ValueError(f"data.difficulty must be one of {', '.join(_SCENES)}, got {difficulty!r}")
        self.scene = _SCENES[difficulty]
        self.num_images: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}
        for split, count in self.num_images.items():
            if count < 1:
                raise ValueError(f"data.num_{split} must be at least 1 picture, got {count}")
        render_size = self.image_size if render_size is None else render_size
        height, width = (render_size, render_size) if isinstance(render_size, int) else render_size
        if min(height, width) < _SMALLEST_SIDE:
            raise ValueError(
                f"synthetic pictures of {height}x{width} px are too small to show a shape; "
                f"set data.render_size (by default image_size) to at least {_SMALLEST_SIDE}"
            )
        largest = max(self.num_images.values()) * 3 * height * width
        if largest > _MAX_MEMORY_FRACTION * _memory_bytes():
            raise ValueError(
                f"synthetic pictures are kept in memory, and a split of data.num_train={num_train} or the like of "
                f"{height}x{width} px takes {largest / 2**30:,.1f} GiB of {_memory_bytes() / 2**30:,.1f}; lower it or "
                "data.render_size"
            )
        self.render_size = (height, width)

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES

    @property
    def num_train_images(self) -> int:
        return len(self.dataset("train")) if "train" in self.loaded_splits else self.num_images["train"]

    def load_split(self, split: Split) -> ImageDataset:
        index = torch.arange(self.num_images[split])
        keys, labels = sample_keys(self.picture_seed, f"synthetic-{split}", 0, index), index % len(CLASS_NAMES)
        height, width = self.render_size
        chunk = max(1, _CHUNK_PIXELS // (height * width))
        images = torch.empty(len(index), 3, height, width, dtype=torch.uint8)
        for start in range(0, len(index), chunk):
            part = slice(start, start + chunk)
            images[part] = render(keys[part], labels[part], self.render_size, self.scene)
        return InMemoryDataset(images, labels, CLASS_NAMES)


def _memory_bytes() -> int:
    """Of this machine; where the system does not say, enough for any pictures."""
    names = getattr(os, "sysconf_names", {})
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in names else 2**40


def render(
    keys: Int[Tensor, " b"], labels: Int[Tensor, " b"], size: tuple[int, int], scene: Scene
) -> UInt8[Tensor, "b 3 height width"]:
    """Draws ground, distractors, shadow, object, one distractor before it, light and grain, in this order.

    Args:
        keys: One hash a picture, as `sample_keys` makes them; every factor but the shape depends on it alone.
        labels: The shapes' places in `CLASS_NAMES`.
        size: (height, width) in pixels.
        scene: The ranges the scene is drawn from: `EASY` or `HARD`.
    """
    canvas = _Canvas(size, keys.device)
    colors = _draw_colors(keys, scene)
    distractors = _distractors(keys, canvas, scene) if scene.distractor_fraction else []
    picture = _mix(*colors.ground, _ground_pattern(keys, canvas, scene)[:, None])
    for color, coverage in distractors[1:]:
        picture = _mix(picture, color, coverage[:, None])
    if scene.shadow_depth:
        picture = picture * (1.0 - _shadow(keys, labels, canvas, scene))[:, None]
    if scene.has_own_surfaces:
        pattern = _own_surface_pattern(keys, labels, canvas, scene)
    else:
        pattern = _drawn_surface_pattern(keys, canvas, scene)
    surface = _mix(*colors.surface, pattern[:, None])
    picture = _mix(picture, surface, object_coverage(keys, labels, size, scene)[:, None])
    for color, coverage in distractors[:1]:
        picture = _mix(picture, color, coverage[:, None])
    picture = picture * _lighting(keys, canvas, scene)[:, None]
    if any(scene.grain_depth):
        picture = picture + _grain(keys, size, scene)
    return (picture.clamp(0.0, 1.0) * 255.0 + 0.5).floor().to(torch.uint8)


def object_coverage(
    keys: Int[Tensor, " b"], labels: Int[Tensor, " b"], size: tuple[int, int], scene: Scene
) -> Float[Tensor, "b height width"]:
    """Tells the fraction of each pixel, in 0..1, that the object of `render`'s picture takes.

    The distractor that may lie before the object is not taken off.
    """
    canvas = _Canvas(size, keys.device)
    return _covered(_object_distance(keys, labels, canvas, scene), _edge_width(keys, canvas, scene))


class _Canvas:
    """The pixels' centers, measured from the middle of the picture."""

    x: Float[Tensor, "1 1 width"]
    y: Float[Tensor, "1 height 1"]

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        height, width = size
        self.pixel = 1.0 / min(size)
        self.half_height, self.half_width = height * self.pixel / 2, width * self.pixel / 2
        self.x = ((torch.arange(width, device=device) + 0.5) * self.pixel - self.half_width)[None, None, :]
        self.y = ((torch.arange(height, device=device) + 0.5) * self.pixel - self.half_height)[None, :, None]


class _Draws:
    """Gives the numbers of one part of each scene, one after another."""

    def __init__(self, keys: Int[Tensor, " b"], part: int) -> None:
        self._numbers = iter(keyed_uniform(keys ^ part, _MOST_DRAWS).unbind(1))

    def between(self, low: float, high: float) -> PerPicture:
        return next(self._numbers)[:, None, None] * (high - low) + low

    def color(self, low: float, high: float) -> Color:
        return torch.stack([self.between(low, high) for _ in range(3)], dim=1)

    def direction(self, low: float = 0.0, high: float = 1.0) -> tuple[PerPicture, PerPicture]:
        """Cosine and sine of an angle in turns; taken in float64, so that rounding hides the library's last bit."""
        angle = self.between(low, high).double() * math.tau
        return angle.cos().float(), angle.sin().float()

    def point(self, canvas: _Canvas, *, margin: PerPicture | float, freedom: float) -> tuple[PerPicture, PerPicture]:
        """A place at least `margin` from the border; `freedom` is the fraction of the way there that is used."""
        reach_x, reach_y = (canvas.half_width - margin) * freedom, (canvas.half_height - margin) * freedom
        return self.between(-1.0, 1.0) * reach_x, self.between(-1.0, 1.0) * reach_y


# Surfaces. Each function maps points, in periods of the texture, to a signed distance from the edge between the
# surface's two colors.


def _plain(u: Plane, _: Plane) -> Plane:
    return torch.full_like(u, math.inf)


def _stripes(u: Plane, _: Plane) -> Plane:
    return _wave(u)


def _layers(_: Plane, v: Plane) -> Plane:
    return _wave(v)


def _checks(u: Plane, v: Plane) -> Plane:
    """Inside where exactly one of two stripes is."""
    u, v = _wave(u), _wave(v)
    return torch.maximum(torch.minimum(u, -v), torch.minimum(-u, v))


def _dots(u: Plane, v: Plane) -> Plane:
    return 0.3 - _length(_wave(u) + 0.25, _wave(v) + 0.25)


def _rings(u: Plane, v: Plane) -> Plane:
    return _wave(_length(u, v))


def _zigzag(u: Plane, v: Plane) -> Plane:
    return _wave(u + 2.0 * _wave(v)) * math.sqrt(0.2)


def _sectors(u: Plane, v: Plane) -> Plane:
    """Eight sectors about the middle, every second one inside."""
    nearest, side = torch.full_like(u, math.inf), torch.ones_like(u)
    for line in range(4):
        turn = math.pi * (line + 0.5) / 4
        distance = u * math.cos(turn) + v * math.sin(turn)
        nearest = torch.minimum(nearest, distance.abs())
        side = torch.where(distance < 0, -side, side)
    return nearest * side


def _halves(u: Plane, _: Plane) -> Plane:
    return u


def _middle(u: Plane, v: Plane) -> Plane:
    return 0.75 - _length(u, v)


_TEXTURES = (_plain, _stripes, _checks, _dots, _rings, _zigzag)


# Shapes. Each function gives the distance to the outline, negative inside, for points in the shape's own unit; off
# the outline it may be a lower bound of the distance.


def _disc(x: Plane, y: Plane) -> Plane:
    return _length(x, y) - 1.0


def _ring(x: Plane, y: Plane) -> Plane:
    return (_length(x, y) - 0.8).abs() - 0.2


def _square(x: Plane, y: Plane) -> Plane:
    return _box(x, y, 1.0, 1.0)


def _bar(x: Plane, y: Plane) -> Plane:
    return _box(x, y, 1.0, 0.3)


def _cross(x: Plane, y: Plane) -> Plane:
    return torch.minimum(_box(x, y, 1.0, 0.3), _box(x, y, 0.3, 1.0))


def _triangle(x: Plane, y: Plane) -> Plane:
    largest, _ = _two_largest(x, y, sides=3)
    return largest - 1.0


def _star(x: Plane, y: Plane) -> Plane:
    """Five lines cross in a pentagram; its points are within at least four of them."""
    _, second = _two_largest(x, y, sides=5)
    return second - 1.0


def _heart(x: Plane, y: Plane) -> Plane:
    """A square on its corner with a disc on each upper side."""
    x = x.abs()
    square = (x + y.abs()) * math.sqrt(0.5) - 1.0
    disc = _length(x - math.sqrt(0.5), y + math.sqrt(0.5)) - 1.0
    return torch.minimum(square, disc)


def _crescent(x: Plane, y: Plane) -> Plane:
    return torch.maximum(_length(x, y) - 1.0, 0.8 - _length(x - 0.5, y))


def _bow_tie(x: Plane, y: Plane) -> Plane:
    return torch.maximum(x.abs() - 1.0, (y.abs() - x.abs() - 0.15) * math.sqrt(0.5))


def _two_largest(x: Plane, y: Plane, *, sides: int) -> tuple[Plane, Plane]:
    """The two largest distances to the lines through a regular polygon's sides, plus the polygon's inner radius 1."""
    largest = second = torch.full_like(x, -math.inf)
    for side in range(sides):
        turn = math.tau * side / sides
        distance = x * math.cos(turn) + y * math.sin(turn)
        second = torch.maximum(second, torch.minimum(largest, distance))
        largest = torch.maximum(largest, distance)
    return largest, second


def _box(x: Plane, y: Plane, half_width: float | Tensor, half_height: float | Tensor) -> Plane:
    beyond_x, beyond_y = x.abs() - half_width, y.abs() - half_height
    outside = _length(beyond_x.clamp(min=0.0), beyond_y.clamp(min=0.0))
    return outside + torch.maximum(beyond_x, beyond_y).clamp(max=0.0)


class _Shape(NamedTuple):
    distance: Callable[[Plane, Plane], Plane]
    area: float  # in the shape's own unit; all objects of one size are scaled to the same area
    surface: Callable[[Plane, Plane], Plane]  # its own, of points along and across it


_SHAPES = {
    "disc": _Shape(_disc, math.pi, _rings),
    "ring": _Shape(_ring, 0.64 * math.pi, _sectors),
    "square": _Shape(_square, 4.0, _checks),
    "bar": _Shape(_bar, 1.2, _stripes),
    "cross": _Shape(_cross, 2.04, _middle),
    "triangle": _Shape(_triangle, 3.0 * math.sqrt(3.0), _layers),
    "star": _Shape(_star, 11.7557, _sectors),
    "heart": _Shape(_heart, 4.0 + math.pi, _dots),
    "crescent": _Shape(_crescent, 1.5295, _zigzag),
    "bow tie": _Shape(_bow_tie, 2.6, _halves),
}
CLASS_NAMES = tuple(_SHAPES)


def _object_distance(
    keys: Int[Tensor, " b"],
    labels: Int[Tensor, " b"],
    canvas: _Canvas,
    scene: Scene,
    shift: tuple[PerPicture, PerPicture] | tuple[float, float] = (0.0, 0.0),
) -> Plane:
    """The distance to the outline of the object after it was moved by `shift`, negative inside."""
    radius, along, across = _object_axes(keys, canvas, scene, shift)
    distance = torch.empty_like(along)
    for number, shape in enumerate(_SHAPES.values()):
        members = (labels == number).nonzero().squeeze(1)
        unit = radius[members] * math.sqrt(math.pi / shape.area)
        distance[members] = shape.distance(along[members] / unit, across[members] / unit) * unit
    return distance


def _object_axes(
    keys: Int[Tensor, " b"],
    canvas: _Canvas,
    scene: Scene,
    shift: tuple[PerPicture, PerPicture] | tuple[float, float] = (0.0, 0.0),
) -> tuple[PerPicture, Plane, Plane]:
    """The radius of the object's disc and each pixel's place along and across the object, from its middle."""
    pose = _Draws(keys, _POSE)
    radius = pose.between(*scene.radius)
    center_x, center_y = pose.point(canvas, margin=radius, freedom=scene.freedom)
    shifted = canvas.x - (center_x + shift[0]), canvas.y - (center_y + shift[1])
    return radius, *_turned(*shifted, pose.direction(*scene.turns))


def _shadow(keys: Int[Tensor, " b"], labels: Int[Tensor, " b"], canvas: _Canvas, scene: Scene) -> Plane:
    """The fraction of its light that the ground beside the object loses."""
    draws = _Draws(keys, _SHADOW)
    reach = draws.between(*_SHADOW_REACH)
    away_x, away_y = draws.direction()
    distance = _object_distance(keys, labels, canvas, scene, shift=(away_x * reach, away_y * reach))
    return _covered(distance, _edge_width(keys, canvas, scene) + reach) * draws.between(0.0, scene.shadow_depth)


def _own_surface_pattern(keys: Int[Tensor, " b"], labels: Int[Tensor, " b"], canvas: _Canvas, scene: Scene) -> Plane:
    """The fraction of the surface's second color in each pixel; the texture is the shape's own and goes with it."""
    radius, along, across = _object_axes(keys, canvas, scene)
    period = radius / _OWN_PERIODS
    u, v = along / period, across / period
    distance = torch.empty_like(u)
    for number, shape in enumerate(_SHAPES.values()):
        members = (labels == number).nonzero().squeeze(1)
        distance[members] = shape.surface(u[members], v[members])
    return _covered(distance * period, _edge_width(keys, canvas, scene))


def _drawn_surface_pattern(keys: Int[Tensor, " b"], canvas: _Canvas, scene: Scene) -> Plane:
    """As `_own_surface_pattern`, of a texture that is drawn and turned without regard to the object."""
    draws = _Draws(keys, _SURFACE)
    kind = draws.between(0.0, float(len(_TEXTURES))).long().flatten()
    periods = draws.between(*_PERIODS)
    u, v = _turned(canvas.x, canvas.y, draws.direction())
    u, v = u * periods + draws.between(0.0, 1.0), v * periods + draws.between(0.0, 1.0)
    distance = torch.empty_like(u)
    for number, texture in enumerate(_TEXTURES):
        members = (kind == number).nonzero().squeeze(1)
        distance[members] = texture(u[members], v[members])
    return _covered(distance, _edge_width(keys, canvas, scene) * periods)


def _ground_pattern(keys: Int[Tensor, " b"], canvas: _Canvas, scene: Scene) -> Plane:
    """The fraction of the ground's second color in each pixel: smooth noise between random values on a lattice."""
    draws = _Draws(keys, _GROUND)
    cells = draws.between(*scene.ground_cells)
    left, way_x = _lattice_place(canvas.x * cells + draws.between(0.0, float(_LATTICE)))
    top, way_y = _lattice_place(canvas.y * cells + draws.between(0.0, float(_LATTICE)))
    values = keyed_uniform(keys ^ _LATTICE_VALUES, _LATTICE**2)

    def value(row: Int[Tensor, "b height 1"], col: Int[Tensor, "b 1 width"]) -> Plane:
        number = row % _LATTICE * _LATTICE + col % _LATTICE
        return values.gather(1, number.flatten(1)).view_as(number)

    upper = _mix(value(top, left), value(top, left + 1), way_x)
    lower = _mix(value(top + 1, left), value(top + 1, left + 1), way_x)
    return _mix(upper, lower, way_y)


def _lattice_place(position: Plane) -> tuple[Int[Tensor, "b height width"], Plane]:
    """The lattice point before each position and the way to the next, slow at both ends."""
    before = position.floor()
    way = position - before
    return before.long(), way * way * (3.0 - 2.0 * way)


class _Distractor(NamedTuple):
    color: Color
    coverage: Plane


def _distractors(keys: Int[Tensor, " b"], canvas: _Canvas, scene: Scene) -> list[_Distractor]:
    """Rounded boxes, from bars to discs, anywhere in the picture."""
    draws = _Draws(keys, _DISTRACTORS)
    edge = _edge_width(keys, canvas, scene)
    distractors = []
    for _ in range(_NUM_DISTRACTORS):
        is_there = draws.between(0.0, 1.0) < scene.distractor_fraction
        center_x, center_y = draws.point(canvas, margin=0.0, freedom=1.0)
        along, across = _turned(canvas.x - center_x, canvas.y - center_y, draws.direction())
        half_width, half_height = draws.between(*_DISTRACTOR_SIDES), draws.between(*_DISTRACTOR_SIDES)
        rounding = torch.minimum(half_width, half_height) * draws.between(0.0, 1.0)
        distance = _box(along, across, half_width - rounding, half_height - rounding) - rounding
        distractors.append(_Distractor(draws.color(0.0, 1.0), _covered(distance, edge) * is_there))
    return distractors


class _Colors(NamedTuple):
    ground: tuple[Color, Color]
    surface: tuple[Color, Color]


def _draw_colors(keys: Int[Tensor, " b"], scene: Scene) -> _Colors:
    """Two colors each for ground and object; which is the lighter of the two is a matter of chance."""
    draws = _Draws(keys, _COLORS)
    ground = draws.between(0.0, 1.0)
    # On a circle of lightnesses, a step of at least c and at most 1 - c leaves a difference of at least c.
    surface = ground + draws.between(scene.contrast, 1.0 - scene.contrast)
    surface = surface - surface.floor()
    return _Colors(
        _draw_pair(draws, ground, scene.ground_relief, scene.tint),
        _draw_pair(draws, surface, scene.surface_relief, scene.tint),
    )


def _draw_pair(draws: _Draws, lightness: PerPicture, reliefs: tuple[float, float], tint: float) -> tuple[Color, Color]:
    least, largest = reliefs
    beyond_least = draws.between(least - largest, largest - least)
    relief = (beyond_least + beyond_least.sign() * least) / 2
    first, second = lightness + relief, lightness - relief
    return first[:, None] + draws.color(-tint, tint), second[:, None] + draws.color(-tint, tint)


def _lighting(keys: Int[Tensor, " b"], canvas: _Canvas, scene: Scene) -> Plane:
    """What the light multiplies each pixel by: a ramp in a free direction, 1 in the middle of the picture."""
    draws = _Draws(keys, _LIGHT)
    along, _ = _turned(canvas.x, canvas.y, draws.direction())
    return along * draws.between(0.0, scene.ramp) + 1.0


def _grain(keys: Int[Tensor, " b"], size: tuple[int, int], scene: Scene) -> Float[Tensor, "b 3 height width"]:
    """Uniform noise in each pixel and channel."""
    height, width = size
    depth = _Draws(keys, _GRAIN).between(*scene.grain_depth)
    noise = keyed_uniform(keys ^ _PIXELS, 3 * height * width).view(-1, 3, height, width)
    return (noise * 2.0 - 1.0) * depth[:, None]


def _edge_width(keys: Int[Tensor, " b"], canvas: _Canvas, scene: Scene) -> PerPicture:
    """The picture's blur: how far every outline is smeared, at least one pixel."""
    return _Draws(keys, _EDGE).between(*scene.edge_width).clamp(min=canvas.pixel)


def _covered(distance: Plane, edge: PerPicture) -> Plane:
    """Turns distances into shares of a pixel: 1 inside the outline, 0 outside, a ramp of width `edge` between."""
    return (0.5 - distance / edge).clamp(0.0, 1.0)


def _mix(
    first: Float[Tensor, "*#shape"], second: Float[Tensor, "*#shape"], fraction: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """Goes from `first` to `second` as `fraction` goes from 0 to 1; unlike `torch.lerp`, without fused operations."""
    return first + (second - first) * fraction


def _turned(
    x: Float[Tensor, "#b #height #width"],
    y: Float[Tensor, "#b #height #width"],
    direction: tuple[PerPicture, PerPicture],
) -> tuple[Plane, Plane]:
    cosine, sine = direction
    return x * cosine + y * sine, y * cosine - x * sine


def _wave(u: Plane) -> Plane:
    """A zigzag of slope 1 and period 1, between -1/4 and 1/4."""
    return (u - u.floor() - 0.5).abs() - 0.25


def _length(x: Plane, y: Plane) -> Plane:
    # torch's own root of float32 goes through MKL, which on Intel's processors does not always round to the nearest; of
    # float64 it may err likewise, but by too little to reach another float32.
    return (x * x + y * y).double().sqrt().float()
