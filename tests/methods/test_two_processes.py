"""Every method on two processes is itself on one: what it logs, what it learns, its teacher."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import functools
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

CONF = Path(__file__).parents[2] / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
DATA = ["data.num_train=32", "data.num_val=17", "data.num_test=97", "global_batch_size=8", "drop_path_rate=0.3"]
DATA += ["augmentation.random_erasing_prob=0.5", "optimizer=sgd", "optimizer.lr=0.05", "schedule=constant"]
VIEWS = ["experiment=ddmim_cifar10", "data=synthetic", "image_size=32", "model.embed_dim=24", "model.depths=[1,1]"]
STEPS = 8  # two epochs


def _run(rank: int, world_size: int, port: int, runs: Sequence[tuple[str, list[str], int]], folder: Path) -> None:
    """Judges and trains each method in turn; process 0 writes what was logged and learned."""
    import warnings

    from lightning import Callback, Trainer, seed_everything

    from unmask.callbacks.mean_loss import MeanLoss
    from unmask.callbacks.online_probe import OnlineProbe
    from unmask.callbacks.step_seeding import StepSeeding
    from unmask.runtime.builders import build, build_module
    from unmask.runtime.config import compose_config

    class Recorder(Callback):
        def __init__(self) -> None:
            self.logged: list[dict[str, float]] = []
            self.loss = MeanLoss()

        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.loss.add(trainer, outputs)
            is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
            if is_step and trainer.global_step % 2 == 0:
                self.logged.append({k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("train/")})

        def on_train_end(self, trainer: Trainer, module: Any) -> None:
            self.mean = self.loss.take(trainer)

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    for name, overrides, accumulated in runs:
        seed_everything(0, verbose=False)
        config = compose_config("run", [*DATA, *overrides])
        data = build(config.data)
        module = build_module(config.method, data)
        before = {key: weight.clone() for key, weight in module.state_dict().items()}
        recorder = Recorder()
        probe = OnlineProbe(name="own", data=build(config.data), k=5, max_time_fraction=1.0)
        trainer = Trainer(
            accelerator="cpu",
            devices=world_size,
            strategy="ddp" if world_size > 1 else "auto",
            max_epochs=2,
            log_every_n_steps=2,
            limit_val_batches=0,
            accumulate_grad_batches=accumulated,
            use_distributed_sampler=False,
            callbacks=[StepSeeding(seed=0), recorder, probe],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.validate(module, datamodule=data, verbose=False)
        judged = dict(trainer.callback_metrics)
        trainer.test(module, datamodule=data, verbose=False)
        judged |= trainer.callback_metrics
        trainer.fit(module, datamodule=data)
        if rank == 0:
            probed = {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("probe/")}
            found = {"judged": judged, "logged": recorder.logged, "mean": recorder.mean, "probed": probed}
            torch.save(found | {"before": before, "after": module.state_dict()}, folder / f"{name}.pt")


def is_ddmim(method: str) -> bool:
    return method.startswith("ddmim")


@pytest.fixture(scope="module")
def runs(
    tiny_overrides: Callable[[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Each method as one process has it and as two have it."""
    quick_teacher = ["method.teacher.time_constant=50"]
    # Of the sparse student's last stages of one token a step of SGD at the usual rate makes another network.
    small_steps = ["optimizer.lr=0.005"]
    asked = [
        (
            method,
            tiny_overrides(method) + quick_teacher * is_ddmim(method) + small_steps * (method == "ddmim_sparse"),
            1,
        )
        for method in METHODS
    ]
    asked.append(("mae accumulated", tiny_overrides("mae"), 2))
    asked.append(("ddmim views", [*VIEWS, *quick_teacher], 1))
    folders = []
    for world_size in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes{world_size}")
        folders.append(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        run = functools.partial(_run, world_size=world_size, port=port, runs=asked, folder=folder)
        processes = [context.Process(target=run, args=(rank,)) for rank in range(world_size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=400)
        assert [process.exitcode for process in processes] == [0] * world_size
    return {name: tuple(torch.load(folder / f"{name}.pt") for folder in folders) for name, _, _ in asked}


@pytest.mark.parametrize("method", METHODS)
def test_the_losses_of_a_split_count_each_image_once(runs: Any, method: str) -> None:
    one, two = runs[method]
    assert set(one["judged"]) == set(two["judged"])
    # DDMIM's contrast, and how far a batch spreads, are of the images of one batch, which two processes cut otherwise.
    of_a_batch = ("contrastive", "_std", "_rank", "loss") if is_ddmim(method) else ()
    compared = [name for name in one["judged"] if not any(part in name for part in of_a_batch)]
    assert compared
    for name in compared:
        assert two["judged"][name].item() == pytest.approx(one["judged"][name].item(), rel=1e-6, abs=1e-6), name


# After these few steps DDMIM's features of all images lie so close together that rounding decides between neighbors.
@pytest.mark.parametrize("method", [method for method in METHODS if not is_ddmim(method)])
def test_a_probe_finds_the_same(runs: Any, method: str) -> None:
    one, two = (found["probed"] for found in runs[method])
    assert set(one) == {"probe/own/knn_top1", "probe/own/logistic_top1"}
    for name, value in one.items():
        assert two[name] == pytest.approx(value, abs=100 / 17 + 0.1), name  # rounding may turn one of the 17 images


@pytest.mark.parametrize("name", [*METHODS, "mae accumulated", "ddmim views"])
def test_training_is_the_same_and_logs_the_mean_of_the_global_batch(runs: Any, name: str) -> None:
    one, two = runs[name]
    assert len(one["logged"]) == len(two["logged"]) == STEPS // 2
    for ours, theirs in zip(one["logged"], two["logged"], strict=True):
        assert ours.keys() == theirs.keys()
        for logged in (ours, theirs):
            logged.pop("train/contrastive_accuracy", None)  # counts nearest keys, which the last bit decides
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert two["mean"] == pytest.approx(one["mean"], rel=1e-4)
    assert two["before"].keys() == two["after"].keys() == one["after"].keys()  # the teacher's too
    moved, apart = 0.0, 0.0
    for key, weight in one["after"].items():
        assert torch.equal(one["before"][key], two["before"][key]), key
        moved += (weight.double() - one["before"][key].double()).square().sum().item()
        apart += (weight.double() - two["after"][key].double()).square().sum().item()
    assert apart < 1e-6 * moved  # a thousandth, of a length


def test_the_teacher_counts_the_images_of_both_processes(runs: Any) -> None:
    one, two = runs["ddmim"]
    name = "teacher.networks.backbone.swin.layers.0.blocks.0.mlp.fc2.weight"
    moved = (one["after"][name] - one["before"][name]).norm()
    assert (two["after"][name] - one["after"][name]).norm() < 0.01 * moved
