"""Tables for readers and papers, plain values for programs."""

import csv
import json
import statistics
from dataclasses import asdict

import pytest

from unmask.evaluation.base import EvalReport
from unmask.evaluation.report import (
    EvalResult,
    csv_report,
    escape_latex,
    labeled,
    latex_report,
    markdown_report,
    report_dict,
    summarize,
    summary_dicts,
)

GIT = {"commit": "4d2f0a0", "is_dirty": True}
ACCURACY = {"top1": 35.88, "top5": 81.69, "top1_ci95_low": 34.945, "top1_ci95_high": 36.825}


def measured(protocol, metrics, *, backbone="checkpoint", ckpt_path="a.ckpt", seed=0, headline=("top1",), **settings):
    report = EvalReport(
        protocol=protocol,
        metrics=metrics,
        num_train_images=45000,
        num_test_images=10000,
        settings=settings,
        headline=headline,
    )
    data = {"train": "11aa", "test": "22bb"}
    return EvalResult(backbone=backbone, ckpt_path=ckpt_path, seed=seed, report=report, data=data, git=GIT)


def repeated(values, **settings):
    return [measured("linear: SGD", {"top1": value}, seed=seed, **settings) for seed, value in enumerate(values)]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_is_a_backbone_and_a_column_a_headline_metric():
    linear = measured("linear: SGD", ACCURACY | {"val_top1": 1.0}, selected="base_lr=0.1", selected_on="val (5000)")
    random = {"backbone": "random", "ckpt_path": None}
    table = markdown_report(
        [
            measured("knn: k=20", ACCURACY, headline=("top1", "top5")),
            linear,
            measured("knn: k=20", {"top1": 9.0}, headline=("top1", "top5"), left_out="k of [200]", **random),
        ]
    )
    lines = table.splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert cells(lines[0]) == ["backbone", "knn top1", "knn top5", "linear top1"]
    assert cells(lines[2]) == ["checkpoint", "35.88 [34.95, 36.83]", "81.69", "35.88 [34.95, 36.83]"]
    assert cells(lines[3]) == ["random", "9.00", "-", "-"]
    assert lines[4:] == [
        "",
        "- figures in percent; [low, high] is the 95 % interval over the choice of test images",
        "- knn: k=20",
        "- linear: SGD (checkpoint)",
        "- linear, checkpoint: selected base_lr=0.1 on val (5000)",
        "- knn, random: left out k of [200]",
        "- checkpoint: a.ckpt",
        "- data: train 11aa, test 22bb",
        "- code: 4d2f0a0 with changes",
    ]


def test_a_choice_at_the_edge_of_its_grid_is_named():
    chosen = {"selected": "base_lr=3", "selected_on": "val (5000)"}
    for edge, said in (("yes", "selected base_lr=3 on val (5000), at the edge of its grid: widen it"), ("no", "5000)")):
        table = markdown_report([measured("linear: SGD", ACCURACY, is_at_edge_of_grid=edge, **chosen)])
        line = next(line for line in table.splitlines() if "selected" in line)
        assert line.endswith(said)


def test_a_heading_names_the_protocol_once():
    table = markdown_report(
        [measured("clustering: k-means", {"clustering_accuracy": 1.0}, headline=["clustering_accuracy"])]
    )
    assert cells(table.splitlines()[0]) == ["backbone", "clustering accuracy"]


def test_a_loss_is_no_percentage():
    table = markdown_report([measured("test: MAE", {"loss": 0.51234}, headline=("top1", "loss"))])
    assert cells(table.splitlines()[0]) == ["backbone", "test loss"]
    assert cells(table.splitlines()[2]) == ["checkpoint", "0.5123"]
    assert "- figures in percent, but for the loss" in table


def test_seeds_show_as_mean_and_sample_deviation():
    values = [10.0, 12.0, 17.0]
    runs = repeated(values)
    table = markdown_report([*runs, *repeated([1.0, 2.0], backbone="random", ckpt_path=None)])
    assert f"13.00 ± {statistics.stdev(values):.2f}" in table
    assert "1.50 ± 0.71" in table
    assert (
        "± is the sample standard deviation; checkpoint: seeds 0, 1, 2 of the protocol; random: seeds 0, 1 of the"
        in table
    )


def test_a_protocol_that_repeats_itself_shows_its_own_deviation():
    few = measured("fewshot: L-BFGS", {"top1_1pct": 20.0, "top1_1pct_std": 1.5}, headline=("top1_1pct",))
    table = markdown_report([few])
    assert "20.00 ± 1.50" in table
    assert "- ± of a protocol that repeats itself is the sample standard deviation over its own seeds" in table
    assert "repeats itself" not in markdown_report(repeated([1.0, 2.0]))
    other = measured("fewshot: L-BFGS", {"top1_1pct": 26.0, "top1_1pct_std": 0.1}, ckpt_path="b.ckpt")
    assert summarize([few, other], "top1_1pct").std == pytest.approx(18.0**0.5)  # of the two checkpoints


def test_several_checkpoints_are_averaged_over_seeds_first():
    runs = [*repeated([10.0, 14.0]), *repeated([20.0, 28.0], ckpt_path="b.ckpt")]
    summary = summarize(runs, "top1")
    assert (summary.mean, summary.num_runs, summary.interval) == (18.0, 2, None)
    assert summary.std == pytest.approx(statistics.stdev([12.0, 24.0]))
    assert "checkpoint: 2 checkpoints, each the mean of seeds 0, 1" in markdown_report(runs)


def test_labels_hold_what_varies():
    knn, linear = measured("knn: k=20", ACCURACY), measured("linear: SGD", ACCURACY)
    assert list(labeled([knn])) == ["checkpoint"]
    assert list(labeled([knn, linear])) == ["checkpoint/knn", "checkpoint/linear"]
    runs = [*repeated([1.0, 2.0]), *repeated([3.0, 4.0], ckpt_path="b.ckpt")]
    assert list(labeled(runs)) == [
        "checkpoint/1/seed_0", "checkpoint/1/seed_1", "checkpoint/2/seed_0", "checkpoint/2/seed_1",
    ]  # fmt: skip
    assert list(labeled(runs).values()) == runs


def test_csv_holds_every_metric_with_its_interval():
    text = csv_report([measured("knn: k=20", ACCURACY), *repeated([1.0, 2.0], backbone="a, b", ckpt_path="c")])
    rows = list(csv.reader(text.splitlines()))
    assert rows[0] == ["backbone", "protocol", "metric", "mean", "std", "num_runs", "ci95_low", "ci95_high"]
    assert rows[1:] == [
        ["checkpoint", "knn", "top1", "35.88", "", "1", "34.945", "36.825"],
        ["checkpoint", "knn", "top5", "81.69", "", "1", "", ""],
        ["a, b", "linear", "top1", "1.5", str(statistics.stdev([1.0, 2.0])), "2", "", ""],
    ]


def test_latex_prints_what_was_written():
    text = latex_report(
        [*repeated([1.0, 2.0], backbone="50%_run & co", ckpt_path="c"), measured("knn: k=20", ACCURACY)]
    )
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert lines[0] == r"\begin{tabular}{lrr}"
    assert lines[2] == r"backbone & linear top1 & knn top1 \\"
    assert lines[4] == r"50\%\_run \& co & 1.50 $\pm$ 0.71 & - \\"
    assert lines[5] == r"checkpoint & - & 35.88 [34.95, 36.83] \\"
    assert "% knn: k=20 (checkpoint)" in text.splitlines()
    assert escape_latex("\\~^{}#$") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}\{\}\#\$"


def test_json_keeps_every_field_beside_what_it_was_measured_on():
    one = measured("knn: k=20", ACCURACY, left_out="k of [200]")
    written = json.loads(json.dumps(report_dict(one)))
    assert written == {
        "backbone": "checkpoint",
        "ckpt_path": "a.ckpt",
        "seed": 0,
        "data": {"train": "11aa", "test": "22bb"},
        "git": GIT,
        **json.loads(json.dumps(asdict(one.report))),
    }
    assert summary_dicts([one])[1] == {
        "backbone": "checkpoint", "protocol": "knn", "metric": "top5", "mean": 81.69, "std": None, "num_runs": 1,
        "interval": None,
    }  # fmt: skip
