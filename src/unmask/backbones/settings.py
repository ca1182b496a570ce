"""Settings of a backbone, written once: they are checked here, build timm's network, are saved and are exported."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from unmask.patches import patch_grid, patch_sides

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)

# Far beyond any network there is. They keep a file of unknown origin from filling the memory by its numbers alone.
_MAX_SIZES = {
    "image_size": 2**16,
    "patch_size": 2**12,
    "window_size": 2**6,
    "embed_dim": 2**15,
    "depth": 2**10,
    "depths": 2**10,
    "num_heads": 2**10,
    "num_stages": 2**10,
    "in_channels": 2**12,
    "mlp_ratio": 2**8,
}
_MAX_TOKENS = 2**20
_LEAST_DEVIATION, _LARGEST_STATISTIC = 1e-6, 1e6  # of pixels in 0..1, with room for other scales

Constructor = TypeVar("Constructor", bound=Callable[..., None])


@dataclass(frozen=True, kw_only=True)
class TimmSettings:
    """What every backbone of timm can be told; see the backbones for what each setting means.

    Raises:
        ValueError: A size is beyond any network, or the statistics are not one number a channel, finite and, of
            deviations, above 0.
    """

    name: str
    image_size: int | Sequence[int]
    patch_size: int | Sequence[int] = 16
    mlp_ratio: float | None = None
    drop_path_rate: float = 0.0
    in_channels: int = 3
    pixel_mean: Sequence[float] = IMAGENET_MEAN
    pixel_std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name, largest in _MAX_SIZES.items():
            _require_sizes(name, getattr(self, name, None), largest)
        if not 0.0 <= self.drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate must lie in [0, 1), got {self.drop_path_rate}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, pixels."""
        return as_size(self.image_size)

    @property
    def means(self) -> tuple[float, ...]:
        return as_statistic("pixel_mean", self.pixel_mean, self.in_channels, least=-_LARGEST_STATISTIC)

    @property
    def deviations(self) -> tuple[float, ...]:
        return as_statistic("pixel_std", self.pixel_std, self.in_channels, least=_LEAST_DEVIATION)

    def as_record(self) -> dict[str, Any]:
        """All settings as numbers, strings, None and lists of them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def timm_sizes(self) -> Mapping[str, Any]:
        """The arguments of `timm.create_model` that decide the sizes of the weights; JSON can hold them."""
        settings = self.as_record()
        replaced = ("embed_dim", "depth", "depths", "num_heads", "mlp_ratio", "window_size", "pretrained_window_sizes")
        return {
            "img_size": settings["image_size"],
            "patch_size": settings["patch_size"],
            **{name: settings[name] for name in replaced if settings.get(name) is not None},
            "in_chans": self.in_channels,
        }

    def timm_arguments(self) -> Mapping[str, Any]:
        """The arguments of `timm.create_model` beside the name, for the network as it is trained here."""
        sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in self.timm_sizes().items()}
        return {**sizes, "img_size": self.size, "drop_path_rate": self.drop_path_rate}

    def require_few_tokens(self, patch_size: int | tuple[int, int], most: int = _MAX_TOKENS) -> None:
        """Refuses more tokens than any network takes."""
        rows, cols = patch_grid(self.size, patch_sides(patch_size))
        if rows * cols > most:
            raise ValueError(
                f"an image of {rows} x {cols} patches is too large for any network; use fewer pixels a side"
            )


def takes(settings: type[TimmSettings]) -> Callable[[Constructor], Constructor]:
    """Gives a constructor that makes `settings` of its keyword arguments their names, types and defaults to show."""

    def sign(constructor: Constructor) -> Constructor:
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [own, *inspect.signature(settings).parameters.values()]
        constructor.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return constructor

    return sign


def as_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Reads a side length or a (height, width) pair."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def as_statistic(name: str, values: Sequence[float], in_channels: int, *, least: float) -> tuple[float, ...]:
    """Reads one number a channel.

    Raises:
        ValueError: There are more or fewer, or one is out of range, by which images would become no numbers.
    """
    if len(values) != in_channels:
        raise ValueError(
            f"model.in_channels={in_channels}, but the statistics of its pixels have {len(values)} number(s); "
            "give one a channel"
        )
    if not all(least <= value <= _LARGEST_STATISTIC for value in values):
        raise ValueError(f"model.{name} must be numbers from {least:g} to {_LARGEST_STATISTIC:g}, got {list(values)}")
    return tuple(values)


def require_square_patch(patch_size: Any) -> None:
    """Refuses a patch given as a pair, where windows or tables of relative positions count tokens by one side."""
    if not isinstance(patch_size, int):
        raise ValueError(
            f"this backbone has square patches; model.patch_size must be one number of pixels, got {patch_size}; "
            "model=vit_* takes [height, width]"
        )


def require_pooling(pooling: Any) -> None:
    """Refuses a pooling of a sequence other than the two that classifiers of published files read."""
    if pooling not in ("mean", "cls"):
        raise ValueError(f"model.pooling must be 'mean' or 'cls', got {pooling!r}")


def _require_sizes(name: str, value: Any, largest: int) -> None:
    for size in value if isinstance(value, list | tuple) else [value]:
        if size is not None and not 0 < size <= largest:
            raise ValueError(f"model.{name} must lie in 1..{largest}, got {size}")
