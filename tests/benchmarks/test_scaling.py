"""`benchmarks/scaling.py`: slopes, what is counted, and (nightly) the whole script on two points an axis."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as Python does for a script


def test_a_slope_is_the_exponent_whatever_the_unit() -> None:
    import scaling

    values = [2.0, 3.0, 8.0]
    assert scaling.slope(values, [7 * value**1.5 for value in values]) == pytest.approx(1.5)
    assert scaling.slope(values, [4.0, 4.0, 4.0]) == pytest.approx(0)


def test_what_lies_within_the_rounds_agrees_and_what_lies_beside_does_not() -> None:
    import scaling

    values, linear = [1.0, 2.0, 4.0], [3.0, 6.0, 12.0]
    around = [[value**power for value in values] for power in (0.9, 1.1)]
    above = [[value**power for value in values] for power in (1.1, 1.3)]
    assert scaling.agrees(scaling._compared(values, linear, around))
    found = scaling._compared(values, linear, above)
    assert not scaling.agrees(found)
    assert (found["least"], found["median"], found["most"]) == pytest.approx((1.1, 1.2, 1.3))


@pytest.mark.parametrize("method", ["mae", "simmim"])
def test_more_bytes_are_kept_of_more_images_and_of_more_blocks(method: str) -> None:
    import scaling

    point = dataclasses.replace(scaling.BASE[method], batch=2, image_size=32, depth=4)
    two, four, deep = (
        scaling.counted_mib(one)
        for one in (point, dataclasses.replace(point, batch=4), dataclasses.replace(point, depth=6))
    )
    trained = sum(weight.numel() for weight in scaling.build_method(point).parameters() if weight.requires_grad)
    fixed = scaling._BYTES_A_PARAMETER * trained / 2**20
    assert fixed < two < four < 2 * two
    assert four - fixed == pytest.approx(2 * (two - fixed), rel=0.5)  # copies of weights in bfloat16 do not grow
    assert deep > two


def test_a_profile_watches_whole_steps() -> None:
    import scaling

    step = scaling.TrainingStep(dataclasses.replace(scaling.BASE["mae"], batch=2, image_size=32, depth=4))
    before = [parameter.clone() for parameter in step.method.parameters()]
    parts = scaling.profiled(step)
    assert tuple(parts) == scaling.PARTS
    assert min(parts.values()) > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, step.method.parameters(), strict=True))


def test_visible_tokens_cost_mae_and_not_simmim() -> None:
    import scaling

    def growth(method: str) -> float:
        few, many = (
            scaling._flops_of_an_image(dataclasses.replace(scaling.BASE[method], visible=visible))
            for visible in (0.25, 0.5)
        )
        return many / few

    assert growth("mae") > 1.4
    assert growth("simmim") == 1


def test_a_row_that_differs_is_marked_and_explained() -> None:
    import scaling

    def result(median: float, *, agrees: bool) -> dict[str, Any]:
        row = {"value": 4, "images_per_cpu_s": 100.0, "gflop": 1.0, "cpu_ms": 40.0}
        time = {"expected": 1.0, "least": median - 0.1, "median": median, "most": median + 0.1}
        profile = [{"products": 8.0, "others": 9.0, "update": 3.0}, {"products": 16.0, "others": 18.0, "update": 3.0}]
        profile = {} if agrees else {"profile": profile}
        return {
            **profile,
            "method": "mae",
            "axis": "batch",
            "rows": [row, {**row, "value": 8, "gflop": 2.0, "cpu_ms": 50.0}],
            "slopes": {"time": time},
        }

    line = "| MAE, ViT | images of a batch | 4 to 8 | 100 to 100 | 1.00 |"
    differs, agrees = scaling.markdown([result(0.7, agrees=False)]), scaling.markdown([result(1.0, agrees=True)])
    assert f"{line} 0.70 [0.60, 0.80], differs |" in differs
    assert f"{line} 1.00 [0.90, 1.10] |" in agrees
    fixed = "| MAE, ViT | images of a batch | 30 | 100 |"  # 10 ms a GFLOP
    assert f"{fixed} 4 to 8 | 8 to 16 | 9 to 18 | 3 to 3 |" in differs
    assert fixed not in agrees


@pytest.mark.slow
@pytest.mark.nightly
def test_the_script_measures_writes_and_draws(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "scaling.py"), "--quick", "--only", "batch", "processes"]
    words += ["--out", str(tmp_path / "found"), "--figure", str(tmp_path / "found.png")]
    subprocess.run(words, check=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"})

    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2  # methods, axes, points
    assert all(float(row["cpu_ms_least"]) <= float(row["cpu_ms"]) <= float(row["cpu_ms_most"]) for row in rows)
    slopes = [one["slopes"]["time"]["expected"] for one in json.loads((tmp_path / "found.json").read_text())["results"]]
    assert slopes == pytest.approx([1.0] * 4)  # twice the images, in one process or two, take twice the operations
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
