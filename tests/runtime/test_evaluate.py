"""One table over checkpoints, seeds and a random backbone; an evaluation at another image size or window."""

import copy
import csv
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn

from unmask.data.datamodule import ImageDataModule
from unmask.evaluation.base import EvalReport
from unmask.evaluation.evaluator import ModuleEvaluator
from unmask.runtime.checkpoint import export_weights, load_backbone, load_module
from unmask.runtime.config import compose_config
from unmask.runtime.evaluate import CheckpointRun, _join_group, evaluate
from unmask.runtime.run_record import recall_places, remember_places
from unmask.small_sets import peak_lr_for

CONF = Path(__file__).parents[2] / "conf"
DATA = ["data=synthetic", "data.num_train=40", "data.num_val=16", "data.num_test=24", "global_batch_size=16"]
FEW = ["data=synthetic", "data.num_train=12", "data.num_val=4", "data.num_test=8"]
TRAINED_ON_FOUR_IMAGES = Path(__file__).parents[1] / "format_1" / "last.ckpt"
QUIET = ["name=x", "trainer.accelerator=cpu", "logger=none", "callbacks=none", "trainer.precision=32-true"]
PROBE = ["eval.protocols.linear.epochs=2", "eval.protocols.linear.layers=[1,2]", "eval.protocols.knn.also_k=[]"]
PROBE += ["eval.protocols.logistic.head.max_iterations=5", "eval.protocols.clustering.num_starts=2"]


@pytest.fixture
def files(make_vit: Callable[..., Any], make_swin: Callable[..., Any], tmp_path: Path) -> dict[str, str]:
    """Two backbones of one kind and one of another, as exported files."""
    made = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        made[name] = str(export_weights(make_vit(), tmp_path / f"{name}.safetensors"))
    swin = make_swin(image_size=32, window_size=4, depths=(1, 1), num_heads=(3, 3))
    return made | {"swin": str(export_weights(swin, tmp_path / "swin.safetensors"))}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(*overrides: str, data: Sequence[str] = DATA) -> dict[str, Any]:
        folder = tmp_path / "run"
        folder.mkdir()
        returned = evaluate(compose_config("eval", [*data, *QUIET, f"paths.run_dir={folder}", *overrides]))
        text = (folder / "report.json").read_text()
        report = json.loads(text)
        assert text == json.dumps(report, indent=2) + "\n"
        assert returned == pytest.approx(expected_of_a_sweep(report))
        return report

    return run


def expected_of_a_sweep(report: dict[str, Any]) -> float | None:
    """The checkpoint's mean top-1 under the first protocol that has one."""
    own = [entry for entry in report["reports"].values() if entry["backbone"] == "checkpoint"]
    protocols = [entry["protocol"].partition(":")[0] for entry in own if "top1" in entry["metrics"]]
    return statistics.fmean(values(report, protocols[0], "top1", "checkpoint")) if protocols else None


def values(report: dict[str, Any], protocol: str, metric: str, backbone: str) -> list[float]:
    found = [entry for entry in report["reports"].values() if entry["backbone"] == backbone]
    return [entry["metrics"][metric] for entry in found if entry["protocol"].startswith(f"{protocol}:")]


def test_all_cheap_protocols_stand_in_one_table_with_their_spread(
    files: dict[str, str], run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    report = run(
        "eval=all",
        f"ckpt_path=[{files['a']},{files['b']}]",
        f"compare={{swin: {files['swin']}}}",
        "seeds=[3,5]",
        *PROBE,
    )
    labels = set(report["reports"])
    assert {"checkpoint/knn/1", "checkpoint/knn/2", "swin/knn", "random/knn/seed_3", "random/knn/seed_5"} <= labels
    assert {"checkpoint/linear/2/seed_5", "swin/linear/seed_3", "random/anomaly/seed_5"} <= labels
    assert len(labels) == (2 + 4 + 2 + 2 + 4 + 2) + (1 + 2 + 1 + 1 + 2 + 1) + 6 * 2
    assert report["reports"]["checkpoint/knn/2"]["ckpt_path"] == files["b"]
    assert report["reports"]["random/knn/seed_5"]["ckpt_path"] is None

    assert [report["reports"][f"swin/clustering/seed_{seed}"]["settings"]["seed"] for seed in (3, 5)] == [3, 5]

    for entry in report["reports"].values():
        assert entry["git"] is None or set(entry["git"]) == {"commit", "is_dirty"}
        assert {"train", "test"} <= set(entry["data"])
    fingerprints = {(split, digest) for entry in report["reports"].values() for split, digest in entry["data"].items()}
    assert len(fingerprints) == 3

    summary = {(row["backbone"], row["protocol"], row["metric"]): row for row in report["summary"]}
    knn = values(report, "knn", "top1", "checkpoint")
    assert summary["checkpoint", "knn", "top1"]["std"] == pytest.approx(statistics.stdev(knn))
    nmi = values(report, "clustering", "nmi", "checkpoint")  # seeds 3 and 5 of a, then of b
    by_file = [statistics.fmean(nmi[:2]), statistics.fmean(nmi[2:])]
    assert summary["checkpoint", "clustering", "nmi"]["mean"] == pytest.approx(statistics.fmean(by_file))
    assert summary["checkpoint", "clustering", "nmi"]["std"] == pytest.approx(statistics.stdev(by_file))
    assert summary["swin", "knn", "top1"]["std"] is None

    rows = list(csv.DictReader((tmp_path / "run" / "report.csv").read_text().splitlines()))
    (auroc,) = [r for r in rows if (r["backbone"], r["protocol"], r["metric"]) == ("random", "anomaly", "auroc")]
    mean, std = (statistics.fmean(values(report, "anomaly", "auroc", "random")), float(auroc["std"]))
    assert float(auroc["mean"]) == pytest.approx(mean)
    assert f"{mean:.2f} ± {std:.2f}" in (tmp_path / "run" / "report.md").read_text()
    assert rf"{mean:.2f} $\pm$ {std:.2f}" in (tmp_path / "run" / "report.tex").read_text()


def test_one_protocol_alone_gives_the_numbers_it_has_among_all(
    files: dict[str, str], run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    together = run("eval=all", f"ckpt_path={files['a']}", *PROBE)["reports"]
    (tmp_path / "run").rename(tmp_path / "first")
    alone = run("eval=linear", f"ckpt_path={files['a']}", "eval.epochs=2", "eval.layers=[1,2]")["reports"]
    assert set(alone) == {"checkpoint", "random"}
    for name in alone:
        assert alone[name] == together[f"{name}/linear"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["eval=all", "ckpt_path=[{a},{swin}]"], "hold different backbones, so their figures cannot be averaged"),
        (["eval=knn", "ckpt_path=[{a},{a}]"], "checkpoint must name different files"),
        (["eval=knn", "ckpt_path={a}", "compare={random: {b}}"], "compare has the name 'random'"),
        (["eval=knn", "ckpt_path={a}", "compare={../b: {b}}"], "compare has the name '../b'"),
        (["eval=knn", "ckpt_path={a}", "compare={other: nowhere.ckpt}"], "nowhere.ckpt does not exist"),
        (["eval=knn", "ckpt_path={a}", "seeds=[1,1]"], "seeds must be different whole numbers"),
        (["eval=knn", "ckpt_path={a}", "seeds=[1.5,0]"], "seeds must be different whole numbers"),
        (["eval=knn", "ckpt_path={a}", "seeds=[]"], r"seeds must be different whole numbers such as .*, got \[\]"),
        (["eval=knn", "ckpt_path=[]"], "checkpoint must name different files"),
        (["eval=embed", "eval.out=x", "ckpt_path={a}", "seeds=[1]"], "this command reads one checkpoint"),
        (["eval=embed", "eval.out=x", "ckpt_path={a}", "compare={b: {b}}"], "this command reads one checkpoint"),
        (["eval=embed", "eval.out=x", "ckpt_path=[{a}]"], "this command reads one checkpoint"),
        (["eval=test", "ckpt_path={a}", "seeds=[1,2]"], "no seed changes its figures; leave seeds out"),
        (["eval=all", "ckpt_path={a}", "eval.protocols.knn.k=41"], "set eval.protocols.knn.k=40 or less"),
        (["eval=linear", "ckpt_path={a}", "eval.layers=[5]"], "has block 1 to block 4; choose from 1 to 4"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_image_is_read(
    files: dict[str, str],
    run: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    overrides: Sequence[str],
    sentence: str,
) -> None:
    monkeypatch.setattr("unmask.data.datamodule.ImageDataModule.evaluation_part", lambda *_, **__: pytest.fail("read"))
    named = [
        text.replace("{a}", files["a"]).replace("{b}", files["b"]).replace("{swin}", files["swin"])
        for text in overrides
    ]
    with pytest.raises(ValueError, match=sentence):
        run(*named)
    assert list(Path(files["a"]).with_name("run").iterdir()) == []


@pytest.fixture
def evaluate_at(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(backbone: nn.Module, *overrides: str) -> dict[str, Any]:
        path = export_weights(backbone, tmp_path / "backbone.safetensors")
        given = ["eval=finetune", "eval.epochs=1", "global_batch_size=4", "recipe=supervised_small", *FEW, *QUIET]
        evaluate(compose_config("eval", [*given, f"ckpt_path={path}", f"paths.run_dir={tmp_path}", *overrides]))
        return json.loads((tmp_path / "report.json").read_text())["reports"]["checkpoint"]

    return run


def test_a_vit_is_fine_tuned_at_twice_the_size_with_its_positions_resized(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], nn.Module], evaluate_at, tmp_path: Path
) -> None:
    backbone = randomize(make_vit())  # of 32 px
    # A rate of next to nothing shows what the run started from.
    report = evaluate_at(backbone, "backbone.image_size=64", "base_lr=1e-30", "crop_pct=0.5", "interpolation=bilinear")
    assert "64x64 px" in report["protocol"]
    tuned = load_backbone(tmp_path / "checkpoints" / "checkpoint" / "last.ckpt")
    assert tuned.image_size == (64, 64)
    table = backbone.vit.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(table, size=(8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(tuned.vit.pos_embed[:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2), expected)
    assert torch.equal(tuned.vit.blocks[3].mlp.fc1.weight, backbone.vit.blocks[3].mlp.fc1.weight)
    saved = torch.load(tmp_path / "checkpoints" / "checkpoint" / "last.ckpt", weights_only=True)
    record = saved["unmask"]["record"]["data"]
    assert (record["crop_pct"], record["interpolation"]) == (0.5, "bilinear")


def test_a_swin_is_fine_tuned_with_larger_windows(
    make_swin: Callable[..., nn.Module], randomize: Callable[[nn.Module], nn.Module], evaluate_at, tmp_path: Path
) -> None:
    backbone = randomize(make_swin(image_size=32, patch_size=2))  # windows of 4: 16, 8 and 4 tokens
    evaluate_at(backbone, "backbone.image_size=48", "backbone.window_size=6", "base_lr=1e-30")
    tuned = load_backbone(tmp_path / "checkpoints" / "checkpoint" / "last.ckpt")
    table = tuned.swin.layers[0].blocks[0].attn.relative_position_bias_table
    before = backbone.swin.layers[0].blocks[0].attn.relative_position_bias_table
    assert (before.shape[0], table.shape[0]) == (7**2, 11**2)
    torch.testing.assert_close(table[60], before[24])  # no offset at all is the center of both
    corners, corners_before = table[[0, 10, 110, 120]], before[[0, 6, 42, 48]]
    torch.testing.assert_close(corners, corners_before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "batch", "rate"),
    [
        (["eval=finetune"], 16, peak_lr_for(16, 24)),  # of 40 images
        (["eval=finetune", "eval.label_fraction=0.5"], 8, peak_lr_for(8, 24)),
        (["eval=finetune", "global_batch_size=20"], 20, peak_lr_for(20, 24)),
        (["eval=finetune", "base_lr=0.01", "eval.label_fraction=0.5"], 8, 0.01 * 8 / 256),
        (["eval=finetune", "follow_data=false", "global_batch_size=8"], 8, 5e-4 * 8 / 256),
        (["eval=frozen"], 16, peak_lr_for(16, 24)),
    ],
)
def test_batch_and_rate_follow_the_images_that_are_learned_from(
    make_vit: Callable[..., nn.Module], tmp_path: Path, overrides: list[str], batch: int, rate: float
) -> None:
    path = export_weights(make_vit(), tmp_path / "backbone.safetensors")  # 24 wide
    data = [setting for setting in DATA if not setting.startswith("global_batch_size")]
    given = [*data, *QUIET, f"ckpt_path={path}", f"paths.run_dir={tmp_path}", "eval.epochs=1", "eval.baseline=false"]
    evaluate(compose_config("eval", [*overrides, *given]))

    protocol = json.loads((tmp_path / "report.json").read_text())["reports"]["checkpoint"]["protocol"]
    assert f"batch {batch}," in protocol
    assert f"AdamW(lr={rate:g}," in protocol


def test_a_window_for_a_backbone_without_windows_is_refused(make_vit: Callable[..., nn.Module], evaluate_at) -> None:
    with pytest.raises(ValueError, match="no setting 'window_size'"):
        evaluate_at(make_vit(), "backbone.window_size=6")


def segmented(folder: Path) -> Path:
    """Photos of two halves, and masks of them."""
    for number in range(12):
        halves = torch.zeros(32, 32, dtype=torch.uint8)
        halves[:, 8 + number :] = 1
        for kind, pixels in (("images", 40 + 150 * halves + number), ("masks", halves)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(folder / kind / f"{number}.png")
    return folder


TRAINED = ["global_batch_size=4", "base_lr=0.01"]
QUICK = {
    "all": PROBE,
    "dense": ["eval.head.max_iterations=2", "eval.k=2"],
    "fewshot": ["eval.label_fractions=[0.5]", "eval.max_iterations=2"],
    "fewshot_finetune": [*TRAINED, "eval.label_fractions=[0.5]", "eval.seeds=[0]", "eval.fine_tune.epochs=1"],
    "finetune": [*TRAINED, "eval.epochs=1"],
    "frozen": [*TRAINED, "eval.epochs=1"],
    "linear": ["eval.epochs=1"],
    "linear_mae": [*TRAINED, "eval.epochs=1"],
    "logistic": ["eval.head.max_iterations=2"],
}
CHOICES = [
    path.stem for path in sorted(CONF.glob("eval/*.yaml")) if "unmask.inference" not in path.read_text()
]  # what shows and measures nothing has no line


@pytest.mark.parametrize("choice", [name for name in CHOICES if name != "test"])  # no seed changes what it does
def test_two_seeds_of_one_protocol_are_one_line_without_addresses(
    files: dict[str, str], run: Callable[..., dict[str, Any]], tmp_path: Path, choice: str
) -> None:
    photos = ["data=segmentation", f"data.root={segmented(tmp_path / 'photos')}", "data.num_workers=0"]
    report = run(
        f"eval={choice}",
        f"ckpt_path={files['a']}",
        "seeds=[0,1]",
        "eval.baseline=false",
        *QUICK.get(choice, []),
        data=photos if choice == "dense" else DATA,
    )["reports"]
    lines = {(entry["protocol"].partition(":")[0], entry["protocol"]) for entry in report.values()}
    names = {name for name, _ in lines}
    assert len(lines) == len(names)
    assert not any("0x" in line or "<" in line for _, line in lines)


class Loaded(Exception):  # noqa: N818  (no mistake)
    """Ends an evaluation at its first file."""


def test_a_file_is_loaded_as_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def load(path: str, **settings: Any) -> None:
        given.append((path, settings))
        raise Loaded

    monkeypatch.setattr("unmask.runtime.evaluate.load_backbone", load)
    said = ["eval=knn", "ckpt_path=a.pth", "allow_partial=true", "use_ema_weights=true", "backbone.image_size=48"]
    with pytest.raises(Loaded):
        evaluate(compose_config("eval", [*DATA, *QUIET, f"paths.run_dir={tmp_path}", *said]))
    assert given == [("a.pth", {"allow_partial": True, "use_ema_weights": True, "image_size": 48})]


@pytest.fixture
def evaluate_own(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Path]]:
    """Evaluates a checkpoint on the few images it was trained on; returns the reports and the folder."""

    def run(name: str, *overrides: str) -> tuple[dict[str, Any], Path]:
        folder = tmp_path / name
        folder.mkdir()
        given = [*QUIET, f"ckpt_path={TRAINED_ON_FOUR_IMAGES}", f"paths.run_dir={folder}", *overrides]
        evaluate(compose_config("eval", given))
        return json.loads((folder / "report.json").read_text())["reports"], folder / "checkpoints"

    return run


def test_a_seed_trains_alone_as_among_others(evaluate_own: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    settings = ["eval=finetune", "eval.epochs=1", "eval.baseline=true", "base_lr=0.1", "global_batch_size=2"]
    _, together = evaluate_own("together", *settings, "seeds=[3,5]")
    _, alone = evaluate_own("alone", *settings, "seeds=[5]")

    def saved(folder: Path, label: str) -> dict[str, Any]:
        return torch.load(folder / label / "last.ckpt", weights_only=True)

    for label, is_from_file in (("checkpoint", True), ("random", False)):
        other, first = saved(together, f"{label}_seed_3"), saved(alone, label)
        second = saved(together, f"{label}_seed_5")
        weights = [content["state_dict"] for content in (first, second, other)]
        assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
        assert any(not torch.equal(weight, weights[2][name]) for name, weight in weights[0].items())
        record = second["unmask"]["record"]
        assert (record["training"]["seed"], record["data"]["seed"]) == (5, 5)
        assert record["training"]["starts_from_file"] == is_from_file


def test_random_weights_are_those_of_their_own_seed(
    evaluate_own: Callable[..., tuple[dict[str, Any], Path]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sizes = ["eval=clustering", "+own_data.num_train=20", "+own_data.num_test=30", "eval.num_starts=1"]
    together, _ = evaluate_own("together", *sizes, "seeds=[3,5]")
    alone, _ = evaluate_own("alone", *sizes, "seeds=[5]")
    for backbone in ("checkpoint", "random"):
        assert together[f"{backbone}/seed_5"]["metrics"] == alone[backbone]["metrics"]
    assert together["random/seed_3"]["metrics"] != together["random/seed_5"]["metrics"]
    measured = [f"{backbone}: Clustering, seed {seed}" for backbone in ("checkpoint", "random") for seed in (3, 5)]
    assert [message for message in caplog.messages if "Clustering" in message][:4] == measured
    assert "Seed set to" not in caplog.text


def test_each_backbone_sees_the_images_of_a_checkpoint_as_it_was_trained_to(
    make_vit: Callable[..., nn.Module], evaluate_own: Callable[..., tuple[dict[str, Any], Path]], tmp_path: Path
) -> None:
    larger = export_weights(make_vit(depth=1), tmp_path / "larger.safetensors")
    settings = ["eval=knn", "eval.k=2", "eval.also_k=[]", "+own_data.num_test=9"]
    reports, _ = evaluate_own("both", *settings, f"compare={{larger: {larger}}}")
    sizes = {"checkpoint": "16x16 px", "random": "16x16 px", "larger": "32x32 px"}
    assert {name for name, size in sizes.items() if size in reports[name]["protocol"]} == set(sizes)
    assert {(report["num_train_images"], report["num_test_images"]) for report in reports.values()} == {(4, 9)}


def test_a_protocol_without_top1_gives_a_sweep_nothing(files: dict[str, str], tmp_path: Path) -> None:
    given = ["eval=clustering", "eval.baseline=false", f"ckpt_path={files['a']}", f"paths.run_dir={tmp_path}"]
    assert evaluate(compose_config("eval", [*DATA, *QUIET, *given])) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("image_size=64", r"data\.image_size follows the checkpoint and the keys of the evaluation; leave it out"),
        ("seed=1", r"data\.seed follows the checkpoint"),
        ("numtrain=9", r"data\.numtrain is no setting of the Synthetic data .* use one of .*, num_train,"),
    ],
)
def test_a_setting_that_the_checkpoints_own_data_cannot_take_is_refused(
    change: str, sentence: str, evaluate_own: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate_own("refused", "eval=knn", f"+own_data.{change}")


def test_weights_without_a_run_need_data_to_be_named(files: dict[str, str], run: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"a\.safetensors does not record the data it was trained on; add data=NAME"):
        run("eval=knn", f"ckpt_path={files['a']}", data=[])


def test_what_trains_is_announced_and_kept_in_one_file_that_knows_its_places(
    evaluate_own: Callable[..., tuple[dict[str, Any], Path]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    evaluate_own("knn", "eval=knn", "eval.k=2", "eval.also_k=[]", "eval.baseline=false")
    assert not any(message.startswith("batch ") for message in caplog.messages)

    trained = ["eval=finetune", "eval.epochs=1", "base_lr=0.1", "global_batch_size=2", "eval.baseline=false"]
    _, folder = evaluate_own("tuned", *trained)
    (told,) = [message for message in caplog.messages if message.startswith("batch ")]
    assert "2" in told
    given = [*QUIET, f"ckpt_path={TRAINED_ON_FOUR_IMAGES}", f"paths.run_dir={folder.parent}", *trained]
    evaluate(compose_config("eval", given))  # in the same folder once more
    assert {path.name for path in folder.rglob("*.ckpt")} == {"last.ckpt", "last-previous.ckpt"}
    record = torch.load(folder / "checkpoint" / "last.ckpt", weights_only=True)["unmask"]["record"]
    places = recall_places(record["run"])
    assert (places["name"], places["ckpt_path"]) == ("x", str(TRAINED_ON_FOUR_IMAGES))


def test_every_logger_but_that_of_files_is_told_the_figures(
    evaluate_own: Callable[..., tuple[dict[str, Any], Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loggers = [Mock(spec=CSVLogger), Mock()]
    monkeypatch.setattr("unmask.runtime.evaluate.build_loggers", lambda config: loggers)
    reports, _ = evaluate_own("told", "eval=knn", "eval.k=2", "eval.also_k=[]")
    assert loggers[0].mock_calls == []
    (figures,), _ = loggers[1].log_metrics.call_args
    top1 = {name: value for name, value in figures.items() if name.endswith("/top1")}
    assert top1 == {f"eval/knn/{name}/top1": report["metrics"]["top1"] for name, report in reports.items()}
    told = {"ckpt_path": str(TRAINED_ON_FOUR_IMAGES), "evaluation": "x"}
    loggers[1].log_hyperparams.assert_called_once_with(told)


def test_a_logger_that_groups_runs_learns_which_run_is_measured(files: dict[str, str]) -> None:
    saved = torch.load(TRAINED_ON_FOUR_IMAGES, weights_only=True)["unmask"]["record"]
    remember_places(saved, {"name": "trained earlier", "data": {"_target_": "unmask.data.sources.synthetic.Synthetic"}})

    def group_of(path: str, *logger: str) -> str:
        config = compose_config("eval", ["eval=knn", "name=x", "paths.run_dir=x", f"ckpt_path={path}", *logger])
        _join_group(config)
        return str(config.trained_as)

    path, grouping = str(TRAINED_ON_FOUR_IMAGES), ("logger=csv", "+logger.b.group=y")
    assert group_of(path, *grouping) == group_of(f"[{path},{files['a']}]", *grouping) == "trained earlier"
    assert group_of(files["a"], *grouping) == group_of(path, "logger=csv") == group_of(path, "logger=none") == "x"


@pytest.mark.parametrize("crop_pct", [None, 0.5])
def test_a_module_is_tested_on_images_of_the_seed_prepared_as_its_file_says(
    crop_pct: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "unmask.runtime.evaluate.load_module", lambda path, **given: changes.append(given) or load_module(path)
    )

    def prepare(config: Any, loaded: Any, path: str) -> Any:
        assert path == str(TRAINED_ON_FOUR_IMAGES)
        prepared = copy.deepcopy(config)
        prepared.crop_pct = crop_pct
        return config if crop_pct is None else prepared

    monkeypatch.setattr("unmask.runtime.evaluate.prepare_as_named", prepare)
    served: list[ImageDataModule] = []

    class Note(ModuleEvaluator):
        def evaluate_module(self, module: Any, data: ImageDataModule, make_trainer: Any, outputs: Any) -> EvalReport:
            served.append(data)
            return EvalReport(protocol="noted", metrics={}, num_train_images=0, num_test_images=0)

    given = ["eval=test", f"ckpt_path={TRAINED_ON_FOUR_IMAGES}", "seed=5", "backbone.window_size=2"]
    config = compose_config("eval", [*given, *QUIET, f"paths.run_dir={tmp_path}"])
    (result,) = CheckpointRun(config, [5]).test_modules(Note())
    (data,) = served
    assert (result.seed, data.seed) == (5, 5)
    assert data.crop_pct == (1.0 if crop_pct is None else crop_pct)
    assert changes == [{"window_size": 2}]


def test_an_inference_is_shown_the_checkpoint_and_data_as_the_backbone_takes_them(
    make_vit: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr("unmask.runtime.evaluate.run_inference", lambda *given: asked.append(given))
    given = ["eval=embed", "eval.out=x", "ckpt_path=b.safetensors", *FEW, *QUIET, f"paths.run_dir={tmp_path}"]
    assert evaluate(compose_config("eval", given)) is None
    ((config, inference, build_data),) = asked
    assert (config.ckpt_path, type(inference).__name__) == ("b.safetensors", "Embed")
    data = build_data(config, make_vit(image_size=16, depth=1, pixel_mean=(0.1, 0.2, 0.3)))
    assert (data.image_size, tuple(data.pixel_mean)) == ((16, 16), (0.1, 0.2, 0.3))
    assert list(tmp_path.iterdir()) == []
