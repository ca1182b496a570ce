"""`benchmarks/training_plan.py`: its arithmetic, and what it reads from recipes."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as Python does for a script

import training_plan as plan

RECIPE = plan.Recipe(
    name="one",
    network="vit-base 224 px",
    kind="pre-training",
    flops=50e9,
    images=1_000_000,
    epochs=100,
    batch=4096,
    parameters=100_000_000,
    trained=90_000_000,
)
ASSUMED = plan.Assumptions(
    peak=1e15,
    utilization=(0.25, 0.5, 1.0),
    image_bytes=100e3,
    images_a_core=200,
    node_bandwidth=400e9,
    network_bandwidth=50e9,
)


def test_hours_are_operations_over_what_the_devices_do() -> None:
    assert plan.hours(RECIPE, 1, ASSUMED) == pytest.approx([5e18 / one / 3600 for one in (1e15, 5e14, 2.5e14)])
    assert plan.hours(RECIPE, 8, ASSUMED) == pytest.approx([one / 8 for one in plan.hours(RECIPE, 1, ASSUMED)])
    twice = dataclasses.replace(RECIPE, epochs=200)
    assert plan.hours(twice, 1, ASSUMED)[1] == pytest.approx(2 * plan.hours(RECIPE, 1, ASSUMED)[1])


def test_a_ring_sends_each_gradient_twice_but_for_a_devices_own_part() -> None:
    assert plan.sent_by_ddp(1000, 1) == 0
    assert plan.sent_by_ddp(1000, 2) == 4000  # half of 4,000 bytes in each of two passes
    assert plan.sent_by_ddp(1000, 8) == pytest.approx(2 * 4000 * 7 / 8)
    assert plan.sent_by_fsdp(1000, 8) == pytest.approx(3 * 2000 * 7 / 8)


def test_beyond_the_limit_the_ring_takes_longer_than_the_backward_pass() -> None:
    limit = plan.limit_of_ddp(RECIPE, ASSUMED)

    def ring_over_backward(devices: float) -> float:
        backward = plan.BACKWARD * plan.step_seconds(RECIPE, devices, ASSUMED)  # type: ignore[arg-type]
        return plan.sent_by_ddp(RECIPE.trained, 10**9) / ASSUMED.network_bandwidth / backward

    assert ring_over_backward(limit) == pytest.approx(1)
    assert ring_over_backward(2 * limit) == pytest.approx(2)
    assert plan.bandwidth(8, ASSUMED) == 400e9
    assert plan.bandwidth(16, ASSUMED) == 50e9
    assert plan.bandwidth(16, dataclasses.replace(ASSUMED, network_bandwidth=1e12)) == 400e9


def test_recipes_that_compute_the_same_share_a_row_and_a_price_adds_a_column() -> None:
    same = dataclasses.replace(RECIPE, name="two", batch=1024)
    longer = dataclasses.replace(RECIPE, name="three", epochs=200)
    assert plan.hours_table([RECIPE, same, longer], ASSUMED).splitlines()[2:] == [
        "| `one`, `two` | 50 | 1.00 | 100 | 5 | 2.78 (1.39 to 5.56) | 0.347 (0.174 to 0.694) |",
        "| `three` | 50 | 1.00 | 200 | 10 | 5.56 (2.78 to 11.1) | 0.694 (0.347 to 1.39) |",
    ]
    priced = plan.hours_table([RECIPE], dataclasses.replace(ASSUMED, price=10.0)).splitlines()[2]
    assert priced.endswith("| 27.8 (13.9 to 55.6) |")


def test_needs_follow_the_number_of_devices() -> None:
    (row,) = plan.needs_table([RECIPE, dataclasses.replace(RECIPE, kind="fine-tuning")], ASSUMED).splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    rates = [8e4, 64e4, 512e4]  # 5e14 operations per second and GPU, 50e9 an image
    assert cells[1] == "80,000 / 640,000 / 5,120,000"
    assert cells[2] == " / ".join(f"{rate * 0.1:,.0f}" for rate in rates)  # 100 kB an image, in MB
    assert cells[3] == "400 / 3,200 / 25,600"
    assert cells[4] == "51.2 / 6.4 / 0.8"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mae_vit-base_4096b-800e_in1k-224px", {"images": 1_281_167, "epochs": 800, "trained": 111_655_680}),
        ("ddmim-v9_swinv2-tiny_52b-50e_in1k-224px", {"images": 1_231_167, "epochs": 50, "trained": 31_515_434}),
        ("mae_linear_vit-base_16384b-90e_in1k-224px", {"kind": "linear probe", "batch": 16384, "trained": 769_000}),
    ],
)
def test_a_recipe_is_read_as_it_composes(name: str, expected: dict[str, Any]) -> None:
    recipe = plan.read(name)
    assert {field: getattr(recipe, field) for field in expected} == expected


@pytest.mark.nightly
def test_every_recipe_on_imagenet_is_read_and_counted_the_right_way_round() -> None:
    recipes = {name: plan.read(name) for name in plan.published()}
    assert len(recipes) > 40

    def flops(name: str) -> float:
        return recipes[name].flops

    for kind in ("finetune", "linear"):
        sizes = [
            flops(next(n for n in recipes if n.startswith(f"mae_{kind}_vit-{size}"))) for size in ("base", "large")
        ]
        assert sizes[0] < sizes[1]
    tuned, probed = (
        flops(next(n for n in recipes if n.startswith(f"mae_{kind}_vit-base"))) for kind in ("finetune", "linear")
    )
    assert tuned == pytest.approx(3 * probed, rel=0.01)  # a frozen backbone has no backward pass
