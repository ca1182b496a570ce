"""Batch normalization over the images of two processes."""

import copy
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

WIDTH = 3


def compute(norm: torch.nn.Module, features: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """One training step's output, gradients of the mean loss, and the statistics afterwards."""
    features = features.clone().requires_grad_()
    output = norm.train()(features)
    ((output - targets) ** 2).mean().backward()
    gradients = {f"grad {name}": parameter.grad for name, parameter in norm.named_parameters()}
    return {"output": output.detach(), "grad": features.grad, **gradients, **dict(norm.named_buffers())}


def one_process(rank: int, folder: str, affine: bool) -> None:
    from unmask.heads.batch_norm import FeatureNorm  # noqa: PLC0415

    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    features, targets = 5.0 + torch.randn(8, WIDTH), torch.randn(8, WIDTH)
    norm = FeatureNorm(WIDTH, affine=affine)
    if affine:
        torch.nn.init.normal_(norm.weight)
    result = compute(norm, features[rank::2], targets[rank::2])
    torch.save(result, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("affine", [True, False])
def test_two_processes_normalize_as_one(tmp_path: Path, affine: bool) -> None:
    multiprocessing.spawn(one_process, args=(str(tmp_path), affine), nprocs=2)
    torch.manual_seed(0)
    features, targets = 5.0 + torch.randn(8, WIDTH), torch.randn(8, WIDTH)
    norm = torch.nn.BatchNorm1d(WIDTH, affine=affine)
    if affine:
        torch.nn.init.normal_(norm.weight)
    expected = compute(copy.deepcopy(norm), features, targets)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in expected.items():
        if name == "output":
            found = torch.stack([part[name] for part in parts], dim=1).flatten(0, 1)
        elif name == "grad":  # of the mean of both processes' losses
            found = torch.stack([part[name] for part in parts], dim=1).flatten(0, 1) / 2
        elif name.startswith("grad"):
            found = (parts[0][name] + parts[1][name]) / 2
        else:
            assert torch.equal(parts[0][name], parts[1][name])
            found = parts[0][name]
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6, msg=name)
