from typing import Any

from unmask.interchange.training_record import Measurement, TrainingRun, accuracy_section, training_section

RECORD: dict[str, Any] = {
    "method": {
        "kind": "MAE",
        "norm_pix_loss": True,
        "mask_generator": {"kind": "RandomMaskGenerator", "ratio": 0.75, "patch_size": 4},
        "optimizer": {"kind": "AdamW", "lr": 1.5e-4, "betas": [0.9, 0.95]},
        "schedule": {"kind": "warmup_cosine", "warmup_epochs": 40},
    },
    "data": {
        "kind": "CIFAR10",
        "num_val": 5000,
        "augmentation": {"kind": "Augmentation", "scale": [0.2, 1.0], "hflip_prob": 0.5},
    },
    "run": "0123456789abcdef0123456789abcdef",
    "training": {"seed": 3, "global_batch_size": 512, "epochs": 800, "trainer": {"precision": "bf16-mixed"}},
}
ORIGIN = {
    "versions": {"unmask": "0.1.0", "timm": None},
    "git": {"commit": "abc123", "is_dirty": True},
    "images_seen": 15360,
    "steps": 30,
}


def rows(section: str) -> dict[str, str]:
    cells = (line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ") and line != "| | |")
    return {row[0].strip(): row[1].strip() for row in cells if len(row) == 2}


def test_the_table_states_what_the_record_says() -> None:
    stated = rows(training_section(TrainingRun(RECORD, ORIGIN), title="Training"))
    assert stated["method"] == "MAE(norm_pix_loss=True)"
    assert stated["masks"] == "RandomMaskGenerator(ratio=0.75, patch_size=4)"
    assert stated["data"] == "CIFAR10"
    assert stated["augmentation"] == "Augmentation(scale=[0.2, 1], hflip_prob=0.5)"
    assert stated["optimizer"] == "AdamW(lr=0.00015, betas=[0.9, 0.95])"
    assert stated["schedule"] == "warmup_cosine(warmup_epochs=40)"
    assert stated["batch"] == "512"
    assert stated["length"] == "800 epochs planned, 30 steps done, 15,360 images seen"
    assert stated["precision"] == "bf16-mixed"
    assert stated["seed"] == "3"
    assert stated["program"] == "unmask 0.1.0, commit abc123 with uncommitted changes"


def test_what_is_not_recorded_is_not_stated() -> None:
    section = training_section(TrainingRun({"method": RECORD["method"]}, {}), title="Training")
    assert set(rows(section)) == {"method", "masks", "optimizer", "schedule"}


def test_all_settings_are_listed_and_the_name_of_the_run_is_not() -> None:
    section = training_section(TrainingRun(RECORD, ORIGIN), title="Training")
    assert RECORD["run"] not in section
    assert '"num_val": 5000' in section
    assert '"warmup_epochs": 40' in section


def test_numbers_are_those_of_the_reports() -> None:
    metrics = {"top1": 46.632, "top1_ci95_low": 45.651, "top1_ci95_high": 47.608, "top5": 90.0}
    first = Measurement("knn: k 20 | cosine", metrics, 10000, 29.8, "abc123", "`runs/knn/1/report.json`")
    other = Measurement("test: loss", {"loss": 0.51234}, 500, None, None, "`report.json`")
    lines = accuracy_section([first, other]).splitlines()
    assert lines[4] == "| knn: k 20 \\| cosine | 46.63 [45.65, 47.61] | 90.00 | 29.80 | 10,000 |"
    assert lines[5] == "| test: loss | loss 0.5123 |  |  | 500 |"
    assert lines[7:] == ["- `runs/knn/1/report.json`, measured at commit abc123", "- `report.json`"]


def test_without_a_report_no_number_is_stated() -> None:
    section = accuracy_section([])
    assert "no accuracy is stated" in section
    assert not any(character.isdigit() for character in section)
