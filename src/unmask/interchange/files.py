"""Reads files of weights without running anything they ask for."""

import json
import os
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unmask.interchange.record import printable, shown

DESCRIPTION_KEY = "timm"  # in the header of a safetensors file: what timm's `config.json` says in a folder
_WEIGHTS_OF_FOLDERS = ("model.safetensors", "pytorch_model.bin")  # of Hugging Face and timm, the safe one first
_CONTAINERS = ("state_dict", "model", "module", "model_state_dict")  # keys under which checkpoints keep their weights
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
_UNSAFE_LOADING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_SPARE_BYTES = 2**26  # for small weights that repeat a number
_MAX_JSON = 16_000_000  # characters
_MAX_SAID = 200  # characters of a library's own sentence
_DAMAGED = (
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    UnicodeDecodeError,
    TypeError,
    AttributeError,
    ArithmeticError,
    struct.error,
    zipfile.BadZipFile,
)
_NONSENSE = (*_DAMAGED, AssertionError, MemoryError)  # also NotImplementedError and RecursionError, by their base
_OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # of files by torch before 1.6
_ZIP_START = b"PK"


class _LeftUnread:
    """Stands where a file holds an object that is no weight; takes whatever it is given and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Settings and statistics that training programs leave beside the weights. Nothing of those programs is imported or
# called: a mapping is read as a plain one, everything else is dropped.
_MAPPINGS = (
    "argparse.Namespace",  # MAE's own runs
    "yacs.config.CfgNode",  # SimMIM
    "pytorch_lightning.utilities.parsing.AttributeDict",  # DDMIM, solo-learn
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "mmengine.config.config.ConfigDict",
)
_UNREAD = (
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.str",
    "collections.defaultdict",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "models.ddmimv9.DDMIMV9",  # a class among the settings of DDMIM's classifier
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "typing.Any",
)


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """What a file of weights holds, before anyone asks whose it is."""

    path: Path
    weights: Mapping[str, Tensor]  # by the names of the program that wrote them
    num_bytes: int = 0  # the weights fill, counted once where they share memory
    content: Mapping[str, Any] = field(default_factory=dict)  # everything in a pickled checkpoint
    metadata: Mapping[str, str] = field(default_factory=dict)  # header of a safetensors file
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json of a folder, or the same in a header
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # preprocessor_config.json of a folder


def read_weights(path: str | Path) -> WeightFile:
    """Reads a checkpoint, a safetensors file, or a folder as Hugging Face and timm write them.

    Raises:
        ValueError: There is no such file, it is cut short, of another kind, or asks to run code.
    """
    require_safe_loading()
    require_local(path)
    place = Path(path).expanduser()
    if not place.is_dir():
        return _read_file(_require_file(path))
    found = [place / name for name in _WEIGHTS_OF_FOLDERS if (place / name).is_file()]
    if not found:
        raise ValueError(
            f"{path} is a folder; name a file in it, such as checkpoints/last.ckpt (a folder of Hugging Face "
            f"or timm holds {' or '.join(_WEIGHTS_OF_FOLDERS)})"
        )
    file = _read_file(found[0])
    return WeightFile(
        path=place,
        weights=file.weights,
        num_bytes=file.num_bytes,
        content=file.content,
        metadata=file.metadata,
        config=_read_json(place / "config.json") or file.config,
        preprocessing=_read_json(place / "preprocessor_config.json"),
    )


def require_local(path: str | Path) -> None:
    """Refuses a URL.

    Raises:
        ValueError: The path names a file of another machine.
    """
    if "://" in str(path):
        raise ValueError(f"{path} is a URL, and URLs are not fetched; download the file and give its local path")


def require_safe_loading() -> None:
    """Refuses an environment that would let files run code.

    Raises:
        ValueError: The variable by which torch unpickles anything is set.
    """
    if os.environ.get(_UNSAFE_LOADING):
        raise ValueError(
            f"{_UNSAFE_LOADING} is set, by which a file of weights could run code when it is opened; unset it"
        )


@contextmanager
def refusing_nonsense(path: str | Path) -> Iterator[None]:
    """Turns what sizes and settings that fit nothing make constructors and torch raise into one sentence.

    Raises:
        ValueError: Something inside failed over what the file says.
    """
    try:
        yield
    except _NONSENSE as error:
        said = printable(str(error).split("\n")[0])[:_MAX_SAID]
        raise ValueError(f"{path} does not describe a network that can be built and loaded: {said}") from error


def parse_json(text: str, place: str) -> dict[str, Any]:
    """Reads a JSON object; an empty one where the text holds something else.

    Raises:
        ValueError: The text is not valid JSON, names a key twice, or is nested or long beyond reason.
    """
    if len(text) > _MAX_JSON:
        raise ValueError(f"{place} has {len(text):,} characters, which is too long for a configuration; refused")
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not valid JSON: {str(error)[:_MAX_SAID]}") from error
    return content if isinstance(content, dict) else {}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an object has a duplicate key")
    return content


def _read_file(file: Path) -> WeightFile:
    with file.open("rb") as opened:
        start = opened.read(9)
    if file.suffix == ".safetensors" or start[8:9] == b"{":
        return _read_safetensors(file)
    content = _read_pickled(file, start)
    weights = _weights_in(content)
    _require_whole(weights, file)
    return WeightFile(path=file, content=content, weights=weights, num_bytes=_num_bytes(weights))


def _read_safetensors(file: Path) -> WeightFile:
    try:
        with safe_open(str(file), framework="pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read as safetensors: {error}") from error
    described = parse_json(metadata[DESCRIPTION_KEY], f"{file}'s header") if DESCRIPTION_KEY in metadata else {}
    return WeightFile(path=file, weights=weights, num_bytes=_num_bytes(weights), metadata=metadata, config=described)


def _read_pickled(file: Path, start: bytes) -> Mapping[str, Any]:
    if not _is_zip(file) and not start.startswith(_OLD_START):
        cut = "its final index is missing: the file is truncated, download or copy it again"
        reason = cut if start.startswith(_ZIP_START) else "it is a file of another kind"
        raise ValueError(f"{file} is not a complete checkpoint ({reason})")
    _require_stored(file)
    stand_ins = [(OrderedDict, name) for name in _MAPPINGS] + [(_LeftUnread, name) for name in _UNREAD]
    try:
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(_refusal(file, str(error))) from error
    except _NONSENSE as error:
        raise ValueError(f"{file} cannot be read, it may be damaged: {error}".split("\n")[0]) from error
    return content if isinstance(content, Mapping) else {}


def _is_zip(file: Path) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # it says it goes on in another file
        return False


def _require_stored(file: Path) -> None:
    """Refuses a checkpoint that was compressed: torch writes none, and a small one could fill the memory."""
    if not _is_zip(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{file} is not a complete checkpoint ({error})") from error
    if unpacked > file.stat().st_size:
        raise ValueError(f"{file} would unpack to {unpacked:,} bytes, which is too large for a checkpoint; refused")


def _require_whole(weights: Mapping[str, Tensor], file: Path) -> None:
    """Refuses weights that are no plain numbers, or that claim far more numbers than the file holds of them."""
    for name, weight in weights.items():
        is_plain = weight.layout == torch.strided and weight.device.type == "cpu" and not weight.is_nested
        if not is_plain or weight.is_quantized or weight.is_complex():
            raise ValueError(
                f"{file} holds {shown(name)}, which is not a plain tensor; save its weights as dense tensors"
            )
    claimed = sum(weight.numel() * weight.element_size() for weight in weights.values())
    if claimed > 2 * _num_bytes(weights) + _SPARE_BYTES:
        raise ValueError(f"{file} claims weights of {claimed:,} bytes but does not contain them; refused")


def _num_bytes(weights: Mapping[str, Tensor]) -> int:
    storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in weights.values()}
    return sum(storages.values())


def _refusal(file: Path, reason: str) -> str:
    asked_for = re.search(r"GLOBAL (\S+)", reason)
    if asked_for is None:
        return f"{file} cannot be read, it may be damaged or not a checkpoint: {reason}".split("\n")[0]
    return (
        f"{file} contains Python objects besides weights and is refused: {asked_for[1]} would be run to read it. "
        "If you trust the file, save only its weights: python -c \"import torch; whole = torch.load('FILE', "
        "weights_only=False); torch.save(whole['model'], 'weights.pth')\" (or whole['state_dict'])"
    )


def _weights_in(content: Mapping[str, Any]) -> dict[str, Tensor]:
    for holder in (*(content.get(key) for key in _CONTAINERS), content):
        if isinstance(holder, Mapping):
            weights = {str(name): value for name, value in holder.items() if isinstance(value, Tensor)}
            if weights:
                return _unwrapped(weights)
    return {}


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): weight for name, weight in weights.items()}
    return weights


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    if file.stat().st_size > _MAX_JSON:
        raise ValueError(f"{file} is too large for a configuration; refused")
    try:
        return parse_json(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text: {error}") from error


def _require_file(path: str | Path) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{path} does not exist (looked in {Path.cwd()})")
    return file
