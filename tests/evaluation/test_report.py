"""Tables for readers, plain values for programs."""

import json
from dataclasses import asdict

from unmask.evaluation.base import EvalReport
from unmask.evaluation.report import report_dict, report_table


def make_report(protocol, metrics, **settings):
    return EvalReport(
        protocol=protocol, metrics=metrics, num_train_images=45000, num_test_images=10000, settings=settings
    )


ACCURACY = {"top1": 35.88, "top5": 81.69, "top1_ci95_low": 34.945, "top1_ci95_high": 36.825}


def test_the_table_is_aligned_and_tells_what_was_selected_where():
    table = report_table(
        {
            "simmim": make_report("linear: SGD", ACCURACY, selected="base_lr=0.1", selected_on="val (5000)"),
            "random": make_report("knn: k=20", {"top1": 9.0, "top1_ci95_low": 8.4, "top1_ci95_high": 9.6}),
            "mae": make_report("test: MAE", {"loss": 0.5}),
        }
    )
    lines = table.splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    selected = "base_lr=0.1 on val (5000)"
    assert cells[0][:3] == ["protocol", "backbone", "top-1 [95 % CI]"]
    assert cells[2] == ["linear", "simmim", "35.88 [34.95, 36.83]", "81.69", "45000", "10000", selected]
    assert cells[3] == ["knn", "random", "9.00 [8.40, 9.60]", "-", "45000", "10000", "nothing"]
    assert cells[4][2] == "loss 0.5000"
    assert lines[5:] == ["", "- linear: SGD", "- knn: k=20", "- test: MAE"]


def test_a_protocol_shared_by_two_backbones_is_spelled_out_once():
    same = make_report("knn: k=20", ACCURACY)
    assert report_table({"simmim": same, "random": same}).count("k=20") == 1


def test_json_keeps_every_field():
    report = make_report("knn: k=20", ACCURACY, left_out="k of [200]")
    assert json.loads(json.dumps(report_dict(report))) == asdict(report) | {"headline": list(report.headline)}
