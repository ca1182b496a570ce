"""Processes of one run that something else than the run has started: torchrun, SLURM, or a user on every machine.

Lightning starts the processes of one machine itself, and tells them the folder and their rank. Others begin alike, and
know of each other by environment variables alone until training connects them.
"""

import os
from datetime import timedelta

import torch.distributed
from lightning import Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

_LONGEST_WAIT = timedelta(seconds=60)  # for torchrun's store, which is there before its processes


def is_first_process() -> bool:
    """Whether this process is the one of its run that writes and speaks."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def tell_machine(*, num_nodes: int) -> None:
    """Tells Lightning on which machine this process is, where a user has started the run on several.

    Until it builds a Trainer, Lightning counts the processes of each machine from 0.
    """
    machine = int(os.environ.get("NODE_RANK", "0"))
    if num_nodes > 1 and machine > 0 and is_first_process():
        rank_zero_only.rank = machine  # type: ignore[attr-defined]


def shared_by_processes(own: str, *, num_nodes: int) -> str:
    """Lets the processes of a run agree on the name of its folder; a run whose processes Lightning starts has its own.

    Args:
        own: What this process would call it, by its clock.
        num_nodes: Machines of the run, `trainer.num_nodes`.

    Returns:
        The name that the first process to ask has given, where torchrun keeps it for all; else `own`.

    Raises:
        ValueError: There are others, and they cannot agree.
    """
    if TorchElasticEnvironment.detect() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=_LONGEST_WAIT,
            wait_for_workers=False,
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return str(store.compare_set(f"unmask/folder/{attempt}", "", own).decode())
    started = _cluster()
    if num_nodes > 1 or (started is not None and started.world_size() > 1):
        raise ValueError(
            "the processes of this run would each name its folder by their own clock; choose one that all of them see "
            "by hydra.run.dir=DIR"
        )
    return own


def require_all_processes(trainer: Trainer) -> None:
    """Refuses a run that uses fewer processes than were started for it: each would do all of its work.

    Raises:
        ValueError: `trainer.devices` and `trainer.num_nodes` make another number of processes.
    """
    started = _cluster()
    if started is None:
        return
    used, there = trainer.num_devices * trainer.num_nodes, started.world_size()
    if used != there:
        raise ValueError(
            f"{_name(started)} has started {there} processes, and trainer.devices={trainer.num_devices} "
            f"trainer.num_nodes={trainer.num_nodes} make {used}; write strategy=ddp trainer.devices=N "
            f"trainer.num_nodes=M with N x M = {there}"
        )


def _cluster() -> ClusterEnvironment | None:
    """What has started this process and others of its run, and knows how many they are.

    Raises:
        ValueError: SLURM was asked for tasks in a way that Lightning does not take.
    """
    try:
        return next((kind() for kind in (TorchElasticEnvironment, SLURMEnvironment) if kind.detect()), None)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _name(started: ClusterEnvironment) -> str:
    return "torchrun" if isinstance(started, TorchElasticEnvironment) else "SLURM"
