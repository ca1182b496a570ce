"""Files that try to run code, write, delete, connect or fill the memory; none may.

Every attempt is watched by an audit hook of the interpreter: whatever a loader opens for writing, removes, starts,
connects to or imports from the folder of canaries fails the test, however it came about.
"""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import copy
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

_ACTS = (
    "ftplib.connect",
    "http.client.connect",
    "os.chmod",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.link",
    "os.mkdir",
    "os.posix_spawn",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.spawn",
    "os.symlink",
    "os.system",
    "os.truncate",
    "pickle.find_class",
    "shutil.copyfile",
    "shutil.move",
    "shutil.rmtree",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "subprocess.Popen",
    "urllib.Request",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watched: list[str] | None = None  # what happened while a file was opened; None: nobody looks


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    is_write = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
    is_canary = event == "import" and str(arguments[0]).startswith("canary")
    if event in _ACTS or is_write or is_canary:
        _watched.append(f"{event} {str(arguments)[:200]}")


sys.addaudithook(_watch)  # cannot be taken back; it looks only inside `watching`


@contextmanager
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    global _watched  # noqa: PLW0603
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    _watched = happened = []
    try:
        yield happened
    finally:
        _watched = None


def test_the_watch_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "victim").touch()
    with watching(monkeypatch) as happened:
        (tmp_path / "canary").write_text("sings")
        (tmp_path / "victim").unlink()
        with pytest.raises(ModuleNotFoundError):
            __import__("canary_that_is_not_there")
        (tmp_path / "canary").read_text()
    assert [entry.split()[0] for entry in happened] == ["open", "os.remove", "import"]


def call(target: str, *arguments: Any, **settings: Any) -> dict[str, Any]:
    return {"_target_": target, "_args_": list(arguments), **settings}


CANARY = "canary.txt"
WRITE = f"__import__('pathlib').Path('{CANARY}').write_text('sings')"
NODES: dict[str, Any] = {
    "exec": call("builtins.exec", WRITE),
    "eval": call("builtins.eval", WRITE),
    "system": call("os.system", f"touch {CANARY}"),
    "popen": call("subprocess.Popen", ["touch", CANARY]),
    "path": call("pathlib.Path.write_text", call("pathlib.Path", CANARY), "sings"),
    "import": call("importlib.import_module", "canary_module"),
    "a method by its name": call("hydra.utils.get_method", "os.system"),
    "an object by its name": call("hydra.utils.get_object", "canary_module.act"),
    "a partial": call("functools.partial", call("hydra.utils.get_method", "builtins.eval"), WRITE),
    "what a trusted module imports": call("unmask.data.sources.folder.Path.write_text", CANARY, "sings"),
    "what a trusted package imports": call("torch.optim.optimizer.torch.save", [1], CANARY),
    "a writer of this package": call("unmask.atomic_write.atomic_write", CANARY),
    "a downloader": call("unmask.data.files.download.download", "http://127.0.0.1:9/x", CANARY),
    "torch.hub": call("torch.hub.load", "owner/repository", "model"),
    "torch.hub's file": call("torch.hub.download_url_to_file", "http://127.0.0.1:9/x", CANARY),
    "torch.load": call("torch.load", "evil.pkl", weights_only=False),
    "numpy.load": call("numpy.load", "evil.pkl", allow_pickle=True),
    "joblib": call("joblib.load", "evil.pkl"),
    "sympy": call("sympy.sympify", WRITE),
    "timm": call("timm.create_model", "hf-hub:owner/name", pretrained=True),
    "a callback": call("lightning.pytorch.callbacks.ModelCheckpoint", dirpath="made"),
    "a logger": call("lightning.pytorch.loggers.WandbLogger", save_dir="made"),
    "a kind with a target": {"kind": "AdamW", "_target_": "builtins.eval", "_args_": [WRITE]},
    "a kind of another place": {"kind": "ModelCheckpoint", "dirpath": "made"},
    "a dotted kind": {"kind": "os.system", "command": f"touch {CANARY}"},
    "a class kind of data": {"kind": "Hub", "root": "owner/name"},
    "hydra's switches": {"kind": "AdamW", "_partial_": False, "_recursive_": True, "_convert_": "all"},
}
TEXTS: dict[str, Any] = {
    "evaluated": WRITE,
    "from the environment": "${oc.env:HOME}",
    "created": "${oc.create:{_target_:builtins.eval,_args_:[" + WRITE + "]}}",
    "a reference": "${method.seed}",
    "an absolute path": "/etc/passwd",
    "a relative path": "../../victim",
    "a home": "~/victim",
    "a URL": "http://127.0.0.1:9/model",
    "a hub": "hf-hub:owner/name",
    "a folder of timm": "local-dir:made",
    "a terminal's": "\x1b[2J\x1b]0;title\x07",
    "a null byte": "a\0b",
    "an endless one": "a" * 100_000,
}
OTHERS: dict[str, Any] = {
    "a huge number": 10**9,
    "a larger one": 10**30,
    "a negative number": -1,
    "zero": 0,
    "no number": float("nan"),
    "infinity": float("inf"),
    "a Boolean": True,
    "a list": [1, 2, 3],
    "a list of nodes": [call("builtins.eval", WRITE)],
    "a list of lists": [[[[1]]]],
    "an empty mapping": {},
    "a tensor": torch.zeros(2),
    "nothing": None,
}
GADGETS = NODES | TEXTS | OTHERS


def nested(depth: int) -> Any:
    """Lists within lists, and lists that refer to the same one twice: 2**depth values when written out."""
    node: Any = [1]
    for _ in range(depth):
        node = [node, node]
    return node


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of a good checkpoint of MAE."""
    import unmask
    from unmask.runtime.builders import resolve_config
    from unmask.runtime.config import compose_config
    from unmask.runtime.run_record import describe_run

    overrides = ["method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=1", "method.decoder.embed_dim=24"]
    overrides += ["method.decoder.depth=1", "method.decoder.num_heads=3", "data=folder", "data.root=photos"]
    overrides += ["image_size=32", "name=x", "paths.run_dir=x"]
    plain = resolve_config(compose_config("run", overrides))
    method = unmask.build_method([entry for entry in overrides if not entry.startswith("data")])
    entry = {
        "format": 1,
        "record": describe_run(plain, num_classes=2, class_names=["a", "b"]),
        "backbone": dict(method.backbone.settings),
        "versions": {"unmask": "0.1.0"},
        "git": {"commit": "0" * 40, "is_dirty": False},
        "images_seen": 4,
    }
    return {"state_dict": method.state_dict(), "global_step": 3, "unmask": entry}


def places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key of nested mappings."""
    for key, value in node.items():
        yield (*place, key)
        if isinstance(value, dict):
            yield from places(value, (*place, key))


def replaced(content: dict[str, Any], place: Sequence[Any], value: Any) -> dict[str, Any]:
    changed = {**content, "unmask": copy.deepcopy(content["unmask"])}
    node = changed["unmask"]
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return changed


def loaders() -> dict[str, Callable[[Path], Any]]:
    import unmask
    from unmask.inference.images import SelectedImages  # noqa: F401 (imported before anyone watches)
    from unmask.runtime.checkpoint import find_run, read_checkpoint, read_weights
    from unmask.runtime.export import checkpoint_source
    from unmask.runtime.inference import _data_of
    from unmask.runtime.run_record import own_data

    def data(path: Path) -> Any:
        saved = find_run(read_weights(path))
        assert saved is not None
        return own_data(saved.record, {"root": "photos"}, path)

    return {
        "load_backbone": unmask.load_backbone,
        "load_method": unmask.load_method,
        "read_checkpoint": read_checkpoint,
        "export": checkpoint_source,
        "data of an evaluation": data,
        "data of an inference": lambda path: _data_of(str(path)),
    }


def attempt(load: Callable[[Path], Any], path: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Opens a file under watch; returns the sentence of its refusal, None where it was taken."""
    started = time.monotonic()
    with watching(monkeypatch) as happened:
        try:
            load(path)
            said = None
        except ValueError as error:
            said = str(error)
    assert not happened, happened
    assert not Path(CANARY).exists()
    assert time.monotonic() - started < 60
    if said is not None:
        assert len(said) < 900
        assert "\n" not in said.strip()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", said)
    return said


@pytest.fixture(autouse=True)
def _cage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("canary_module.py").write_text(f"open({CANARY!r}, 'w').write('sings')\ndef act(*_): pass\n")
    Path("photos").mkdir()


@pytest.fixture(scope="module", autouse=True)
def _warm(good: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Opens the good file once, so that modules imported late are there."""
    path = tmp_path_factory.mktemp("good") / "good.ckpt"
    torch.save(good, path)
    for load in loaders().values():
        load(path)


READ_BY = {
    "backbone": ["load_backbone"],
    "method": ["load_method"],
    "data": ["data of an evaluation", "data of an inference"],
}
FIELDS = [
    ("backbone",),
    ("backbone", "kind"),
    ("backbone", "name"),
    ("backbone", "image_size"),
    ("backbone", "depth"),
    ("backbone", "embed_dim"),
    ("backbone", "positions"),
    ("backbone", "pixel_mean"),
    ("record",),
    ("record", "method"),
    ("record", "method", "kind"),
    ("record", "method", "mask_generator"),
    ("record", "method", "mask_generator", "kind"),
    ("record", "method", "decoder"),
    ("record", "method", "decoder", "depth"),
    ("record", "method", "optimizer"),
    ("record", "method", "optimizer", "lr"),
    ("record", "method", "schedule"),
    ("record", "method", "seed"),
    ("record", "method", "init_from"),
    ("record", "method", "callbacks"),
    ("record", "data"),
    ("record", "data", "kind"),
    ("record", "data", "root"),
    ("record", "data", "cache_dir"),
    ("record", "data", "augmentation"),
    ("record", "data", "background"),
    ("record", "run"),
    ("record", "places"),
    ("record", "training"),
    ("record", "num_classes"),
    ("record", "class_names"),
    ("format",),
    ("versions",),
    ("git",),
    ("images_seen",),
]


@pytest.mark.parametrize("field", FIELDS, ids=".".join)
def test_no_gadget_in_a_checkpoint_acts(
    field: tuple[str, ...], good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reads that field refuses every node; the fuzzing below tries the other loaders too."""
    opening = loaders()
    reading = next((how for part, how in READ_BY.items() if part in field), ["read_checkpoint"])
    for name, gadget in GADGETS.items():
        torch.save(replaced(good, field, gadget), "evil.ckpt")
        said = [attempt(opening[how], Path("evil.ckpt"), monkeypatch) for how in reading]
        if "_target_" in str(gadget):
            assert any(said), name


@pytest.mark.parametrize("gadget", list(NODES | TEXTS))
def test_no_gadget_in_the_header_of_an_export_acts(
    gadget: str, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {n.removeprefix("backbone."): w for n, w in good["state_dict"].items() if n.startswith("backbone.")}
    settings = good["unmask"]["backbone"]
    for changed in [GADGETS[gadget], *({**settings, key: GADGETS[gadget]} for key in settings)]:
        described = json.dumps({"format": 1, "backbone": changed})
        save_file(weights, "evil.safetensors", metadata={"unmask": described})
        for load in (loaders()["load_backbone"], loaders()["export"]):
            assert attempt(load, Path("evil.safetensors"), monkeypatch), gadget


def timm_file(good: dict[str, Any], described: Any, *, as_folder: bool) -> Path:
    names = {n.removeprefix("backbone.vit."): w for n, w in good["state_dict"].items() if n.startswith("backbone.vit.")}
    if not as_folder:
        save_file(names, "evil.safetensors", metadata={"timm": json.dumps(described)})
        return Path("evil.safetensors")
    folder = Path("evil")
    folder.mkdir(exist_ok=True)
    save_file(names, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("as_folder", [False, True], ids=["header", "folder"])
@pytest.mark.parametrize(
    "key",
    [
        "architecture",
        "model_args",
        "checkpoint_path",
        "pretrained_cfg",
        "url",
        "file",
        "img_size",
        "mean",
        "image_mean",
    ],
)
def test_no_gadget_in_what_timm_and_transformers_describe_acts(
    key: str, as_folder: bool, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = loaders()["load_backbone"]
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 4}
    described = {"architecture": "vit_tiny_patch16_224", "model_args": sizes, "pretrained_cfg": {}}
    assert attempt(load, timm_file(good, described, as_folder=as_folder), monkeypatch) is None
    for gadget in ["evil.pkl", NODES["exec"], NODES["torch.load"], [1, 2, 3], 10**9, -1, True, {}, *TEXTS.values()]:
        changed = copy.deepcopy(described)
        if key in ("architecture", "model_args", "pretrained_cfg", "image_std"):
            changed[key] = gadget
        elif key in ("url", "file", "mean"):
            changed["pretrained_cfg"][key] = gadget
        else:
            changed["model_args"][key] = gadget
        attempt(load, timm_file(good, changed, as_folder=as_folder), monkeypatch)


@pytest.mark.parametrize(
    "said",
    [
        {"auto_map": {"AutoModel": "canary_module.Act", "AutoConfig": "owner/name--canary_module.Act"}},
        {"trust_remote_code": True, "_name_or_path": "http://127.0.0.1:9/x"},
        {"quantization_config": {"quant_method": "canary_module", "path": "/etc/passwd"}},
        {"backbone": "hf-hub:owner/name", "use_timm_backbone": True, "use_pretrained_backbone": True},
        {"architectures": ["../../canary_module.Act"], "model_type": "canary_module", "torch_dtype": WRITE},
    ],
    ids=lambda said: next(iter(said)),
)
def test_nothing_that_transformers_would_follow_is_followed(
    said: dict[str, Any], good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 4}
    described = {"architecture": "vit_tiny_patch16_224", "model_args": sizes, "pretrained_cfg": {}, **said}
    folder = timm_file(good, described, as_folder=True)
    for name in ("canary_module.py", "modeling_evil.py", "configuration_evil.py"):
        (folder / name).write_text(f"open({CANARY!r}, 'w').write('sings')\n")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "http://127.0.0.1:9/x"}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../../victim"}}))
    attempt(loaders()["load_backbone"], folder, monkeypatch)


def test_a_model_argument_that_names_a_file_is_not_passed_on(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm below 1.0.31 unpickled what `checkpoint_path` names, and later ones still open it."""
    arguments = {"checkpoint_path": "evil.pkl", "pretrained_cfg_overlay": {"file": "evil.pkl"}, "num_heads": 4}
    described = {"architecture": "vit_tiny_patch16_224", "model_args": arguments}
    opened = []
    monkeypatch.setattr(torch, "load", lambda *names, **_: opened.append(names))
    attempt(loaders()["load_backbone"], timm_file(good, described, as_folder=False), monkeypatch)
    assert not opened


def test_structural_fuzzing_of_a_good_record_acts_on_nothing(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    everywhere = list(places(good["unmask"]))
    opening = loaders()
    refused = 0
    for _ in range(200):
        content = good
        for place in draw.sample(everywhere, draw.choice([1, 1, 2, 3])):
            change = draw.choice([*GADGETS.values(), nested(2), good["unmask"]["record"], good["unmask"]["backbone"]])
            try:
                content = replaced(content, place, change)
            except (KeyError, TypeError, IndexError):  # a place within what was replaced already
                continue
        torch.save(content, "evil.ckpt")
        how = draw.choice(list(opening))
        refused += attempt(opening[how], Path("evil.ckpt"), monkeypatch) is not None
    assert refused > 60


@pytest.mark.parametrize("place", [("backbone", "depths"), ("record", "method", "extra"), ("record", "training", "x")])
def test_references_that_unfold_without_end_are_refused_at_once(
    place: tuple[str, ...], good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(replaced(good, place, nested(60)), "evil.ckpt")
    assert "nested too deeply" in str(attempt(loaders()["load_method"], Path("evil.ckpt"), monkeypatch))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("backbone", "depth"), 10**9),
        (("backbone", "depth"), 1000),
        (("backbone", "embed_dim"), 2**16),
        (("backbone", "image_size"), 10**9),
        (("backbone", "image_size"), 2**16),
        (("backbone", "mlp_ratio"), 1e9),
        (("backbone", "num_stages"), 10**9),
        (("record", "method", "decoder", "depth"), 10**9),
        (("record", "method", "decoder", "embed_dim"), 2**17),
        (("record", "num_classes"), 10**12),
    ],
)
def test_sizes_that_would_fill_the_memory_are_refused(
    place: tuple[str, ...], value: Any, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.save(replaced(good, place, value), "evil.ckpt")
    assert attempt(loaders()["load_method"], Path("evil.ckpt"), monkeypatch)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20  # KiB


@pytest.fixture(scope="module")
def box(good: dict[str, Any]) -> dict[str, Any]:
    """The content of a step that a run kept."""
    tensors = {"images": torch.zeros(2, 3, 32, 32), "labels": torch.zeros(2).long(), "indices": torch.arange(2)}
    numbers = {"step": 3, "epoch": 0, "batch_idx": 3, "loss": 1.0, "gradient_norm": 1.0, "usual_norm": None}
    return {**good, "nonfinite": {**numbers, **tensors, "first_layer": None, "bad_gradients": [], "precision": "32"}}


ALL_OR_SOME = pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.nightly)])


@ALL_OR_SOME
def test_no_gadget_in_a_kept_step_acts(
    every: int, box: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from unmask.runtime.replay import replay

    caplog.set_level("INFO")
    torch.save(box, "evil.ckpt")
    assert attempt(replay, Path("evil.ckpt"), monkeypatch) is None
    endless = torch.zeros(1).expand(10**7, 3, 32, 32)
    gadgets = [*NODES.values(), *TEXTS.values(), *OTHERS.values(), endless, [TEXTS["a terminal's"]], nested(40)]
    for name in box["nonfinite"]:
        for gadget in gadgets[::every]:
            torch.save({**box, "nonfinite": {**box["nonfinite"], name: gadget}}, "evil.ckpt")
            attempt(replay, Path("evil.ckpt"), monkeypatch)
    for gadget in gadgets[::every]:
        torch.save({**box, "nonfinite": gadget}, "evil.ckpt")
        assert "does not hold a step" in str(attempt(replay, Path("evil.ckpt"), monkeypatch))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", caplog.text)


@ALL_OR_SOME
def test_no_gadget_in_what_a_run_continues_from_acts(
    every: int, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.runtime.resume import read_resume_point

    loops = {"fit_loop": {"epoch_progress": {"current": {"processed": 1}}}}
    content = {**good, "loops": loops, "callbacks": {"RunSettings": {"settings": {}, "fingerprints": {}}}}
    torch.save(content, "evil.ckpt")
    assert attempt(read_resume_point, Path("evil.ckpt"), monkeypatch) is None
    gadgets = [*NODES.values(), *TEXTS.values(), *OTHERS.values()][::every]
    for change in (
        *({"global_step": gadget} for gadget in gadgets),
        *({"loops": gadget} for gadget in gadgets),
        *({"loops": {"fit_loop": {"epoch_progress": {"current": {"processed": gadget}}}}} for gadget in gadgets),
        *({"callbacks": gadget} for gadget in gadgets),
        *({"callbacks": {"RunSettings": gadget}} for gadget in gadgets),
        *({"callbacks": {"RunSettings": {"settings": gadget, "fingerprints": gadget}}} for gadget in gadgets),
        *({"unmask": {**good["unmask"], "images_seen": gadget}} for gadget in gadgets),
    ):
        torch.save({**content, **change}, "evil.ckpt")
        attempt(lambda path: read_resume_point(path).describe(), Path("evil.ckpt"), monkeypatch)


@pytest.mark.parametrize("name", ["run.lock", "run.log", ".hydra/config.yaml", "csv/metrics.csv", "checkpoints"])
def test_a_run_writes_through_no_link_in_its_folder(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unmask.runtime import cli

    victim = Path("other/checkpoints/last.ckpt") if name == "checkpoints" else Path("victim")
    victim.parent.mkdir(parents=True, exist_ok=True)
    victim.write_text("precious")
    link = Path("run") / name
    link.parent.mkdir(parents=True)
    link.symlink_to((victim.parent if name == "checkpoints" else victim).absolute())
    monkeypatch.setattr(sys, "argv", ["run.py", "method=mae", "model=vit_mini", "hydra.run.dir=run", "resume=auto"])
    with pytest.raises(SystemExit) as stopped:
        cli.run()
    assert stopped.value.code == 2
    assert f"error: run/{name} is a link to " in capsys.readouterr().err
    assert victim.read_text() == "precious"


PLACES = [
    ("folder", {"root": "photos"}),
    ("hub", {"root": "mnist"}),
    ("kaggle", {"slug": "cifar"}),
    ("shards", {"train": "secret.tar"}),
    ("folder", {"num_workers": 100_000}),
    ("folder", {"cache_dir": "conf", "statistics": "auto"}),
    ("folder", {"worker_timeout": 0.001}),
]


@pytest.mark.parametrize(("source", "changes"), PLACES, ids=str)
def test_a_file_says_neither_where_images_lie_nor_what_the_machine_does(
    source: str, changes: dict[str, Any], good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.runtime.builders import resolve_config
    from unmask.runtime.config import compose_config
    from unmask.runtime.run_record import describe_run

    overrides = ["method=mae", "model=vit_mini", "image_size=32", "name=x", "paths.run_dir=x", f"data={source}"]
    plain = resolve_config(compose_config("run", [*overrides, "data.root=photos"]))
    described = describe_run(plain, num_classes=2, class_names=["a", "b"])["data"]
    torch.save(replaced(good, ("record", "data"), {**described, **changes}), "evil.ckpt")
    said = attempt(loaders()["data of an evaluation"], Path("evil.ckpt"), monkeypatch)
    assert f"evil.ckpt sets data.{next(iter(changes))} to" in str(said)


@pytest.mark.parametrize("changes", [{"num_train": 10**12}, {"render_size": 10**6}, {"num_test": 2**50}], ids=str)
def test_pictures_that_would_fill_the_memory_are_not_drawn(changes: dict[str, Any]) -> None:
    from unmask.runtime.builders import build
    from unmask.runtime.config import compose_config

    overrides = [f"data.{name}={value}" for name, value in changes.items()]
    with pytest.raises(Exception, match=r"synthetic pictures are kept in memory, and .* takes .* GiB of"):
        build(compose_config("run", ["method=mae", "model=vit_mini", *overrides]).data)


@pytest.mark.parametrize("name", ["blocks.999999999.norm1.weight", "layers.999999999.blocks.0.norm1.weight"])
def test_a_block_number_in_the_name_of_a_weight_builds_nothing(
    name: str, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {n.removeprefix("backbone.vit."): w for n, w in good["state_dict"].items() if n.startswith("backbone.vit.")}
    names["layers.0.blocks.0.attn.qkv.weight" if name.startswith("layers") else "x"] = torch.zeros(1)
    torch.save({**names, name: torch.zeros(1)}, "evil.pth")
    assert attempt(loaders()["load_backbone"], Path("evil.pth"), monkeypatch)


@pytest.mark.filterwarnings("ignore:.*[sS]parse")
@pytest.mark.parametrize(
    "weight",
    [
        lambda: torch.zeros(1).expand(1, 10**8 + 1, 24),
        lambda: torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (10**12,)),
        lambda: torch.empty(1, 65, 24, device="meta"),
        lambda: torch.zeros(1, 65, 24, dtype=torch.complex64),
    ],
    ids=["one number repeated", "sparse", "without content", "complex"],
)
def test_a_weight_that_is_not_there_is_refused(
    weight: Callable[[], torch.Tensor], good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({**good, "state_dict": {**good["state_dict"], "backbone.vit.pos_embed": weight()}}, "evil.ckpt")
    for how in ("load_backbone", "load_method"):
        said = attempt(loaders()[how], Path("evil.ckpt"), monkeypatch)
        assert re.search("not a plain tensor|claims weights of", str(said))


@pytest.mark.parametrize("side", [256, 1024])
def test_a_table_of_all_pairs_of_tokens_is_not_made_of_too_many(
    side: int, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    beit = {"kind": "TimmBeit", "name": "beit_base_patch16_224", "image_size": side, "patch_size": 1, "depth": 1}
    torch.save(replaced(good, ("backbone",), {**beit, "embed_dim": 4, "num_heads": 1}), "evil.ckpt")
    assert "too large for any network" in str(attempt(loaders()["load_backbone"], Path("evil.ckpt"), monkeypatch))


def test_json_that_says_a_thing_twice_is_refused(good: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    described = json.dumps({"format": 1, "backbone": good["unmask"]["backbone"]})
    for text in (described[:-1] + ', "format": 1}', "[" * 100_000, '{"a":' * 100_000):
        save_file({"x": torch.zeros(1)}, "evil.safetensors", metadata={"unmask": text})
        assert attempt(loaders()["load_backbone"], Path("evil.safetensors"), monkeypatch)


class _Act:
    def __reduce__(self) -> Any:
        return exec, (WRITE,)


@pytest.mark.parametrize("where", [(), ("unmask",), ("state_dict",), ("callbacks",), ("optimizer_states",)])
def test_a_pickle_that_calls_something_is_refused(
    where: tuple[str, ...], good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({**good, where[0]: _Act()} if where else _Act(), "evil.ckpt")
    for load in loaders().values():
        assert attempt(load, Path("evil.ckpt"), monkeypatch)


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/x.ckpt", "s3://bucket/x.ckpt", "file:///etc/passwd"])
def test_a_url_is_not_fetched(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import unmask

    for load in (unmask.load_backbone, unmask.load_method):
        assert "is a URL, and URLs are not fetched" in str(attempt(load, path, monkeypatch))  # type: ignore[arg-type]


def test_an_environment_that_lets_files_run_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import unmask

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ValueError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set"):
        unmask.load_backbone("any.ckpt")


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    torch.save(good, "plain.ckpt")
    with zipfile.ZipFile("plain.ckpt") as plain, zipfile.ZipFile("evil.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
        packed.writestr("archive/data/bomb", bytes(10**7))
    assert "would unpack to" in str(attempt(loaders()["load_method"], Path("evil.ckpt"), monkeypatch))


_UNSAFE = ("weights_only=False", "pickle.load(", "pickle.loads(", "allow_pickle=True", "joblib", "torch.hub", "dill")
_SAID_ONLY = {  # files that hold such words in a message, or an unpickler that finds no classes
    ("interchange/files.py", "weights_only=False"),
    ("runtime/mistakes.py", "joblib"),  # Hydra's launcher of that name
    ("runtime/sweep.py", "joblib"),
}


def test_nothing_in_the_package_unpickles_or_fetches_code() -> None:
    import unmask

    package = Path(unmask.__file__).parent
    found = {
        (str(file.relative_to(package)), word)
        for file in package.rglob("*.py")
        for word in _UNSAFE
        if word in file.read_text(encoding="utf-8")
    }
    assert found == _SAID_ONLY


def test_floors_keep_out_versions_that_run_code_from_files() -> None:
    """timm below 1.0.31 unpickles `model_args.checkpoint_path`, torch below 2.10 lets a file past `weights_only`
    (CVE-2025-32434, CVE-2026-24747)."""
    import tomllib

    import unmask

    project = tomllib.loads((Path(unmask.__file__).parents[2] / "pyproject.toml").read_text())["project"]
    floors = {}
    for dependency in project["dependencies"]:
        name, floor = re.match(r"([\w-]+)>=([\d.]+)", dependency).groups()  # type: ignore[union-attr]
        floors[name] = tuple(map(int, floor.split(".")))
    assert floors["timm"] >= (1, 0, 31)
    assert floors["torch"] >= (2, 10)
    assert floors["lightning"] >= (2, 6, 6)
