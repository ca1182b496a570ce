"""An interrupted run that is resumed ends as the uninterrupted one, to the last bit, and no image is lost or doubled.

Each cell of the grid trains three epochs on files, again up to an interruption, and from there on with a new trainer,
method and data module. `python tests/test_resume.py` runs one cell for a test with two processes.
"""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import itertools
import json
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

TINY_VIT = ["model=vit_mini", "model.embed_dim=24", "model.depth=1", "model.num_heads=3"]
TINY_SWIN = ["model=swin_mini", "model.embed_dim=24", "model.depths=[1,1]", "model.num_heads=[1,2]"]
TINY_SWIN_V2 = ["model=swinv2_mini", *TINY_SWIN[1:]]
METHODS = {  # each the choice of a method, which the name begins with, and its overrides
    "mae": [*TINY_VIT, "method.decoder.embed_dim=24", "method.decoder.depth=1", "method.decoder.num_heads=3"],
    "mae swin": [*TINY_SWIN_V2, "method.decoder.embed_dim=24", "method.decoder.num_heads=3"],
    "simmim": TINY_SWIN,
    "ddmim": [
        *TINY_SWIN,
        "method.mask_generator.ratios=[0.5,0.5]",
        "method.mask_generator.patch_size=8",
        "method.features.weights=[1,0.1]",
    ],
    "ddmim_sparse": [*TINY_SWIN_V2, "method.decoder.embed_dim=24", "method.decoder.num_heads=3"],
    "supervised": TINY_VIT,
}
NUM_TRAIN, NUM_VAL = 22, 7
EPOCHS = 3
LAST = -1  # batch of an epoch
POINTS: dict[str, tuple[str, int, int | None]] = {  # hook, epoch and batch of the checkpoint
    "first epoch": ("on_train_batch_end", 0, 1),
    "middle of an epoch": ("on_train_batch_end", 1, 1),
    "last batch": ("on_train_batch_end", 1, LAST),
    "within validation": ("on_validation_batch_end", 1, 0),
    "end of validation": ("on_validation_end", 1, None),
    "end of an epoch": ("on_train_epoch_end", 1, None),
    "end of the first epoch": ("on_train_epoch_end", 0, None),
}


@dataclass(frozen=True)
class Cell:
    """One case: what trains on what, and where it is interrupted."""

    method: str = "mae"
    data: str = "folder"
    point: str = "middle of an epoch"
    workers: int = 2
    resumed_workers: int = 2
    devices: int = 1
    accumulated: int = 1
    resumed_devices: int | None = None  # None: as many
    resumed_accumulated: int | None = None  # None: as many
    settings: tuple[str, ...] = ()  # of the trainer, as in SETTINGS
    batch: int = 0  # images of an optimizer step; 0: 4 a device and accumulated part

    def __str__(self) -> str:
        workers = f"{self.workers} then {self.resumed_workers}"
        settings = "".join(f", {name}" for name in self.settings)
        then = "" if self.resumed_devices is None else f" then {self.resumed_devices}"
        return (
            f"{self.method} on {self.data}, {self.point}, workers {workers}, devices {self.devices}{then}, "
            f"accumulated {self.accumulated}{settings}"
        )

    @property
    def global_batch_size(self) -> int:
        return self.batch or 4 * self.devices * self.accumulated

    def resumed(self) -> "Cell":
        """What goes on from the checkpoint, with the same images in a step."""
        return replace(
            self,
            workers=self.resumed_workers,
            devices=self.resumed_devices or self.devices,
            accumulated=self.resumed_accumulated or self.accumulated,
            batch=self.global_batch_size,
        )


SETTINGS: dict[str, dict[str, Any]] = {
    "max_steps": {"max_steps": EPOCHS * (NUM_TRAIN // 4)},
    "no validation": {"limit_val_batches": 0},
    "two validations an epoch": {"val_check_interval": 2},
    "rare validations": {"check_val_every_n_epoch": 3},
    "limited batches": {"limit_train_batches": 3},
}
REPRESENTATIVE = [
    Cell("mae", point="middle of an epoch"),
    Cell("mae swin", point="middle of an epoch"),
    Cell("simmim", point="end of an epoch"),
    Cell("ddmim", point="middle of an epoch", accumulated=2),
    Cell("ddmim", point="last batch"),
    Cell("ddmim_sparse", point="middle of an epoch"),
    Cell("supervised", point="within validation"),
    Cell("mae", point="end of validation", accumulated=2),
    Cell("mae", point="first epoch", workers=2, resumed_workers=0),
    Cell("simmim", point="end of the first epoch", workers=0, resumed_workers=2),
    Cell("mae", "skip", point="middle of an epoch"),
    Cell("mae", "shards", point="end of an epoch"),
    Cell("mae", "streamed", point="middle of an epoch"),
    Cell("mae", "memory", point="middle of an epoch", workers=0, resumed_workers=0),
    Cell("mae", point="end of an epoch", settings=("max_steps",)),
]
TWO_PROCESSES = [
    Cell("ddmim", point="middle of an epoch", devices=2),
    Cell("mae", point="end of an epoch", devices=2, accumulated=2),
]
OTHER_DEVICES = [
    Cell("ddmim", point="middle of an epoch", devices=2, resumed_devices=1),
    *(
        pytest.param(cell, marks=pytest.mark.nightly)
        for cell in (
            Cell("mae", point="middle of an epoch", batch=8, resumed_devices=2),
            Cell("mae swin", point="end of an epoch", devices=2, resumed_devices=1, resumed_accumulated=2),
            Cell("ddmim", point="end of validation", batch=8, resumed_devices=2),
            Cell("mae", point="end of an epoch", devices=2, resumed_devices=1, resumed_accumulated=2),
            Cell("simmim", point="end of an epoch", accumulated=2, resumed_devices=2, resumed_accumulated=1),
        )
    ),
]
GRID = [
    Cell(method, "folder", point, workers, workers, 1, accumulated)
    for method, point, workers, accumulated in itertools.product(METHODS, POINTS, (0, 2), (1, 2))
]
GRID += [
    Cell("mae", data, point, workers, workers)
    for data, point, workers in itertools.product(("skip", "shards", "hub", "streamed", "memory"), POINTS, (0, 2))
]
GRID += [
    Cell("mae", "folder", point, *workers) for point, workers in itertools.product(POINTS, [(0, 2), (2, 0), (1, 2)])
]
GRID += [
    Cell("ddmim", "folder", point, settings=settings)
    for point, settings in itertools.product(POINTS, [(name,) for name in SETTINGS] + [("max_steps", "no validation")])
    if "validation" not in point or settings in (("max_steps",), ("two validations an epoch",), ("limited batches",))
]
GRID_OF_TWO = [
    Cell(method, "folder", point, 2, 2, 2, accumulated)
    for method, point, accumulated in itertools.product(METHODS, POINTS, (1, 2))
]
GRID_OF_TWO += [
    Cell("mae", data, point, 2, 2, 2)
    for data, point in itertools.product(("shards", "hub", "streamed"), ("middle of an epoch", "end of an epoch"))
]


@pytest.mark.parametrize("cell", REPRESENTATIVE, ids=str)
def test_a_resumed_run_is_the_uninterrupted_one(cell: Cell, tmp_path: Path) -> None:
    require_equal(cell, write_data(cell.data, tmp_path), tmp_path)


class OutOfTime(Callback):
    """Ends a run behind a batch as `trainer.max_time` does, and saves as its epoch ends there."""

    def __init__(self, epoch: int, batch: int, path: Path) -> None:
        self.batch, self.path = (epoch, batch), path

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = (trainer.current_epoch, batch_idx) == self.batch

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.should_stop:
            trainer.save_checkpoint(self.path.with_suffix(".ckpt"))
            write_record(trainer, module, self.path, is_whole=False)


@pytest.mark.parametrize(
    ("cell", "epoch", "batch"),
    [
        (Cell(), 1, 1),
        (Cell(data="memory", settings=("no validation",)), 0, 0),
        (Cell("ddmim", "memory", accumulated=2), 1, 1),
    ],
)
def test_a_run_that_its_time_ended_goes_on_within_the_epoch(cell: Cell, epoch: int, batch: int, tmp_path: Path) -> None:
    data = write_data(cell.data, tmp_path)
    train(cell, data, Finish(tmp_path / "whole"))
    train(cell, data, OutOfTime(epoch, batch, tmp_path / "first"))
    train(cell, data, Finish(tmp_path / "second"), ckpt_path=tmp_path / "first.ckpt")
    whole, first, second = (
        torch.load(tmp_path / f"{name}.0", weights_only=True) for name in ("whole", "first", "second")
    )
    assert not first["batches"].keys() & second["batches"].keys()
    assert first["batches"] | second["batches"] == whole["batches"]
    for part in ("weights", "optimizer", "schedule", "step"):
        _require_same(whole[part], second[part], part)


def test_each_epoch_has_its_own_order_crops_and_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.masking.random import RandomMaskGenerator

    masks: list[list[bool]] = []
    draw = RandomMaskGenerator.__call__

    def draw_and_note(self: Any, images: torch.Tensor, keys: torch.Tensor | None = None) -> Any:
        mask = draw(self, images, keys)
        masks.extend(mask.masked.flatten(1).tolist())
        return mask

    monkeypatch.setattr(RandomMaskGenerator, "__call__", draw_and_note)
    train(replace(Cell(), settings=("no validation",)), write_data("folder", tmp_path), Finish(tmp_path / "whole"))
    batches = torch.load(tmp_path / "whole.0", weights_only=True)["batches"].values()
    seen = [entry for batch in batches for entry in zip(batch["samples"], batch["images"], strict=True)]
    per_epoch = len(seen) // EPOCHS
    masks = masks[-len(seen) :]  # those before the first step only look at sizes
    epochs = [range(start, start + per_epoch) for start in range(0, len(seen), per_epoch)]
    for first, second in itertools.combinations(epochs, 2):
        before, after = ({seen[place][0]: place for place in epoch} for epoch in (first, second))
        assert list(before) != list(after)
        again = before.keys() & after.keys()
        assert len(again) > 10
        assert all(seen[before[index]][1] != seen[after[index]][1] for index in again)
        assert sum(masks[before[index]] != masks[after[index]] for index in again) > len(again) / 2


@pytest.mark.slow
@pytest.mark.parametrize("cell", TWO_PROCESSES, ids=str)
def test_a_run_of_two_processes_is_resumed_exactly(cell: Cell, tmp_path: Path) -> None:
    require_equal_in_a_process_of_its_own(cell, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cell", OTHER_DEVICES, ids=str)
def test_a_run_goes_on_with_another_number_of_devices(cell: Cell, tmp_path: Path) -> None:
    require_equal_in_a_process_of_its_own(cell, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("cell", GRID, ids=str)
def test_every_resumed_run_is_the_uninterrupted_one(cell: Cell, tmp_path: Path) -> None:
    require_equal(cell, write_data(cell.data, tmp_path), tmp_path)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("cell", GRID_OF_TWO, ids=str)
def test_every_run_of_two_processes_is_resumed_exactly(cell: Cell, tmp_path: Path) -> None:
    require_equal_in_a_process_of_its_own(cell, tmp_path)


def require_equal_in_a_process_of_its_own(cell: Cell, folder: Path) -> None:
    command = [sys.executable, __file__, json.dumps(asdict(cell)), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-6000:]


class Interrupted(Exception):  # noqa: N818  (no mistake)
    """Ends a run where its checkpoint has been written."""


class Interrupt(Callback):
    """Saves a checkpoint at one point of the run and ends it there."""

    def __init__(self, point: str, checkpoint: Path, path: Path) -> None:
        hook, self.epoch, self.batch = POINTS[point]
        self.checkpoint, self.path = checkpoint, path
        setattr(self, hook, self._interrupt)

    def _interrupt(self, trainer: Trainer, module: Any, *arguments: Any) -> None:
        if trainer.current_epoch != self.epoch or not self._is_batch(trainer, arguments):
            return
        trainer.save_checkpoint(self.checkpoint)
        write_record(trainer, module, self.path, is_whole=False)
        raise Interrupted

    def _is_batch(self, trainer: Trainer, arguments: tuple[Any, ...]) -> bool:
        if self.batch is None:
            return True
        batch_idx = next(argument for argument in reversed(arguments) if isinstance(argument, int))
        if self.batch == LAST:
            return bool(trainer.is_last_batch)
        return (batch_idx if trainer.validating else arguments[2]) == self.batch


class Recorder(Callback):
    """Notes what each batch was and cost, and what each validation found."""

    def __init__(self) -> None:
        self.batches: dict[str, dict[str, Any]] = {}
        self.validations: dict[str, str] = {}

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        epoch = trainer.current_epoch
        self.batches[f"{epoch}.{batch_idx}"] = {
            "epoch": epoch,
            "step": trainer.global_step,
            "logged_step": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "counted": trainer.fit_loop.epoch_progress.state_dict()["total"],
            "loss": float(outputs["loss"]).hex(),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "samples": batch.index.tolist(),
            "images": batch.image.double().sum(dim=(1, 2, 3)).tolist(),
        }

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        found = {name: float(value).hex() for name, value in trainer.callback_metrics.items() if "val/" in name}
        self.validations[f"{trainer.current_epoch}.{trainer.global_step}"] = json.dumps(found, sort_keys=True)


def write_record(trainer: Trainer, module: LightningModule, path: Path, *, is_whole: bool) -> None:
    """Writes what this process noted, and where the run has ended its state, to a file of the process."""
    recorder = next(callback for callback in trainer.callbacks if isinstance(callback, Recorder))
    record: dict[str, Any] = {"batches": recorder.batches, "validations": recorder.validations}
    if is_whole:
        (schedule,) = trainer.lr_scheduler_configs
        record |= {
            "weights": module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "schedule": {k: v for k, v in schedule.scheduler.state_dict().items() if isinstance(v, int | list)},
            "step": trainer.global_step,
        }
    torch.save(record, path.with_suffix(f".{trainer.global_rank}"))
    trainer.strategy.barrier()


class Finish(Callback):
    """Writes the record of a run that ends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        write_record(trainer, module, self.path, is_whole=True)


def require_equal(cell: Cell, data: list[str], folder: Path) -> None:
    """Runs a cell's three trainings and compares them, to rounding where the number of devices changes."""
    checkpoint = folder / "interrupted.ckpt"
    train(cell, data, Finish(folder / "whole"))
    with pytest.raises(Exception, match="Interrupted") if cell.devices > 1 else pytest.raises(Interrupted):
        train(cell, data, Interrupt(cell.point, checkpoint, folder / "first"))
    train(cell.resumed(), data, Finish(folder / "second"), ckpt_path=checkpoint)
    if cell.resumed_devices is not None:
        _require_close(cell, folder)
        return
    seen: Counter[tuple[int, int]] = Counter()
    for rank in range(cell.devices):
        whole, first, second = (
            torch.load(folder / f"{name}.{rank}", weights_only=True) for name in ("whole", "first", "second")
        )
        _require_same_records(whole, first, second)
        for batch in (first["batches"] | second["batches"]).values():
            seen.update((batch["epoch"], index) for index in batch["samples"])
        for part in ("weights", "optimizer", "schedule", "step"):
            _require_same(whole[part], second[part], part)
    if cell.data != "skip" and "limited batches" not in cell.settings:  # a replacement is seen twice
        left_out = NUM_TRAIN % 8 if cell.accumulated * cell.devices > 1 else NUM_TRAIN % 4
        assert set(seen.values()) == {1}
        assert Counter(epoch for epoch, _ in seen) == dict.fromkeys(range(EPOCHS), NUM_TRAIN - left_out)
        assert {index for _, index in seen} <= set(range(NUM_TRAIN))


def _require_close(cell: Cell, folder: Path) -> None:
    """Each step is of the same images and at the same rate, whoever computes it, and ends in the same place."""
    whole, first = (_read_records(folder / name, cell) for name in ("whole", "first"))
    second = _read_records(folder / "second", cell.resumed())
    assert first.images.keys() & second.images.keys() == set()
    assert first.images | second.images == whole.images
    assert first.rates | second.rates == pytest.approx(whole.rates)
    assert first.losses | second.losses == pytest.approx(whole.losses, rel=1e-4)
    for name, weight in whole.weights.items():
        torch.testing.assert_close(
            second.weights[name], weight, rtol=1e-3, atol=1e-5, msg=lambda why, n=name: f"{n}: {why}"
        )


class Records(NamedTuple):
    """What all devices of a run have noted, by epoch and optimizer step of it."""

    images: dict[tuple[int, int], list[tuple[int, float]]]  # number and sum of the pixels, ordered
    rates: dict[tuple[int, int], float]
    losses: dict[tuple[int, int], float]
    weights: dict[str, torch.Tensor]  # at the end, the teacher's among them; empty before


def _read_records(path: Path, cell: Cell) -> Records:
    records = [torch.load(path.with_suffix(f".{rank}"), weights_only=True) for rank in range(cell.devices)]
    parts: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for record in records:
        for place, batch in record["batches"].items():
            number = int(place.partition(".")[2])
            parts.setdefault((batch["epoch"], number // cell.accumulated), []).append(batch)
    images = {
        step: sorted(
            (index, total) for batch in batches for index, total in zip(batch["samples"], batch["images"], strict=True)
        )
        for step, batches in parts.items()
    }
    rates = {step: batches[-1]["lr"] for step, batches in parts.items()}
    losses = {  # Lightning has divided each by the number of accumulated parts
        step: sum(float.fromhex(batch["loss"]) for batch in batches) / cell.devices for step, batches in parts.items()
    }
    return Records(images, rates, losses, records[0].get("weights", {}))


def _require_same_records(whole: Any, first: Any, second: Any) -> None:
    """No batch and no validation is lost, repeated or another."""
    assert not first["batches"].keys() & second["batches"].keys()
    assert first["batches"] | second["batches"] == whole["batches"]
    assert not first["validations"].keys() & second["validations"].keys()
    for validation in (first["validations"], second["validations"]):
        assert validation.items() <= whole["validations"].items()
    assert first["validations"] | second["validations"] == whole["validations"]


def _require_same(expected: Any, found: Any, name: str) -> None:
    if isinstance(expected, dict):
        assert expected.keys() == found.keys(), name
        for key, value in expected.items():
            _require_same(value, found[key], f"{name}.{key}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(expected, found), name
    else:
        assert expected == found, name


def train(cell: Cell, data: list[str], last: Finish | Interrupt | OutOfTime, ckpt_path: Path | None = None) -> None:
    from lightning import seed_everything

    from unmask.callbacks.exact_resume import ExactResume
    from unmask.callbacks.step_seeding import StepSeeding
    from unmask.runtime.builders import build, build_module
    from unmask.runtime.config import compose_config

    torch.manual_seed(0)
    seed_everything(0, verbose=False)
    workers = [] if cell.data == "memory" else [f"data.num_workers={cell.workers}"]
    batch = f"global_batch_size={cell.global_batch_size}"
    method = cell.method.partition(" ")[0]
    overrides = [f"method={method}", "image_size=32", *METHODS[cell.method], *data, *workers, batch]
    config = compose_config("run", overrides)
    served = build(config.data)
    settings = {name: value for chosen in cell.settings for name, value in SETTINGS[chosen].items()}
    trainer = Trainer(
        accelerator="cpu",
        devices=cell.devices,
        strategy="ddp_fork" if cell.devices > 1 else "auto",
        max_epochs=EPOCHS,
        accumulate_grad_batches=cell.accumulated,
        callbacks=[ExactResume(), StepSeeding(seed=0), Recorder(), last],
        default_root_dir=last.path.parent,
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(build_module(config.method, served), datamodule=served, ckpt_path=ckpt_path, weights_only=True)


def write_data(kind: str, folder: Path) -> list[str]:
    """Writes a small data set and returns the overrides that name it."""
    if kind == "memory":
        return ["data=synthetic", f"data.num_train={NUM_TRAIN}", f"data.num_val={NUM_VAL}", "data.num_test=4"]
    root = folder / "data"
    if kind == "shards":
        return ["data=shards", f"data.root={_write_shards(root)}", f"data.cache_dir={folder / 'cache'}"]
    if kind in ("hub", "streamed"):
        return ["data=hub", f"data.root={_write_hub(root)}", *(_STREAMED if kind == "streamed" else ())]
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL), ("test", 4)):
        for number in range(count):
            path = root / split / ("cat", "dog")[number % 2] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_picture(split, number))
    overrides = ["data=folder", f"data.root={root}"]
    if kind == "skip":
        (root / "train" / "cat" / "04.png").write_bytes(b"no image")
        (root / "train" / "dog" / "11.png").write_bytes(b"")
        overrides += ["data.on_bad_image=skip", "data.max_bad_fraction=0.5"]
    return overrides


_STREAMED = [
    "data.streaming=true",
    f"data.num_images={{train:{NUM_TRAIN},validation:{NUM_VAL},test:4}}",
    "data.shuffle_buffer=6",
]


def _picture(split: str, number: int) -> bytes:
    import io

    import numpy as np
    from PIL import Image

    noise = np.random.default_rng([len(split), number]).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(noise).save(written, "png")
    return written.getvalue()


def _write_shards(root: Path) -> Path:
    import io
    import tarfile

    root.mkdir()
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL), ("test", 4)):
        with tarfile.open(root / f"{split}-0.tar", "w") as archive:
            for number in range(count):
                for name, content in (
                    (f"{number:02}.png", _picture(split, number)),
                    (f"{number:02}.cls", b"01"[number % 2 :][:1]),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return root


def _write_hub(root: Path) -> Path:
    import datasets

    root.mkdir()
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    for split, count in (("train", NUM_TRAIN), ("validation", NUM_VAL), ("test", 4)):
        rows = {
            "image": [{"bytes": _picture(split, number), "path": f"{number}.png"} for number in range(count)],
            "kind": [number % 2 for number in range(count)],
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture(autouse=True)
def _stay_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01, raising=False)  # 5 s


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    asked, place = Cell(**json.loads(sys.argv[1])), Path(sys.argv[2])
    require_equal(asked, write_data(asked.data, place), place)
