import csv
import json

import pytest

from unmask.callbacks.reference import Band, compared_settings, read_reference, write_reference

SETTINGS = {
    "seed": 1,
    "base_lr": 0.1,
    "data.seed": 1,
    "data.num_train": 10,
    "data.num_workers": 2,
    "global_batch_size": 4,
    "method.optimizer.lr": 0.1,
    "method.norm_pix_loss": True,
    "trainer.max_epochs": 2,
    "trainer.precision": "32-true",
}
IMAGES = {"train": "ab", "val": "cd"}


@pytest.fixture
def make_table(tmp_path):
    def make(name, rows):
        path = tmp_path / f"{name}.csv"
        with path.open("w", newline="") as lines:
            table = csv.DictWriter(lines, ["step", "train/loss_epoch", "train/loss", "probe/own/knn_top1"])
            table.writeheader()
            table.writerows(rows)
        return path

    return make


def epochs(*losses, probe=""):
    return [
        {"step": 10 * (n + 1) - 1, "train/loss_epoch": loss, "probe/own/knn_top1": probe}
        for n, loss in enumerate(losses)
    ]


def test_the_band_holds_four_deviations_of_the_runs(make_table, tmp_path):
    tables = [make_table(number, epochs(2.0, loss, loss, probe=30)) for number, loss in enumerate((0.8, 1.0, 1.2))]
    write_reference(tmp_path / "good.reference.json", tables, settings=SETTINGS, images=IMAGES)
    good = read_reference(tmp_path / "good.reference.json")

    assert (good.name, good.num_runs, good.num_steps) == ("good", 3, 30)
    assert good.band("train/loss_epoch", 30) == pytest.approx(Band(1.0 - 4 * 0.2, 1.0 + 4 * 0.2))
    assert good.band("train/loss_epoch", 10) == pytest.approx(Band(1.8, 2.2))  # alike: a tenth of the value
    between = good.band("train/loss_epoch", 20)  # and what they showed after 15 steps: a mean of 1.5, deviation 0.1
    assert between == pytest.approx(Band(0.2, 1.9))
    assert good.band("probe/own/knn_top1", 20) == pytest.approx(Band(27.0, 33.0))
    assert good.band("train/loss", 20) is None  # of single steps: not kept


def test_a_run_is_comparable_with_another_seed_and_another_rate_but_not_with_other_images_or_steps(
    make_table, tmp_path
):
    write_reference(tmp_path / "good.json", [make_table("one", epochs(2.0, 1.0))], settings=SETTINGS, images=IMAGES)
    good = read_reference(tmp_path / "good.json")

    free = {"seed": 2, "data.seed": 2, "base_lr": 1.0, "method.optimizer.lr": 1.0, "data.num_workers": 0}
    assert good.difference(SETTINGS | free, images=IMAGES, num_steps=20) is None
    assert (
        good.difference(SETTINGS | {"data.num_train": 11}, images=IMAGES, num_steps=20)
        == "data.num_train is 11, there 10"
    )
    assert good.difference(SETTINGS, images=IMAGES, num_steps=21) == "21 optimizer steps, there 20"
    assert good.difference({}, images=IMAGES, num_steps=20) == "global_batch_size is None, there 4"
    elsewhere = good.difference(SETTINGS, images=IMAGES | {"train": "ef"}, num_steps=20)
    assert elsewhere == "other images in the train split"
    assert good.difference(SETTINGS, images={}, num_steps=20) == "other images in the train and val split"
    assert set(compared_settings(SETTINGS)) == {
        "data.num_train",
        "global_batch_size",
        "method.norm_pix_loss",
    }


def test_runs_of_other_lengths_or_without_the_readings_are_refused(make_table, tmp_path):
    one, other = make_table("one", epochs(2.0, 1.0)), make_table("other", epochs(2.0))
    with pytest.raises(ValueError, match="the runs are of 10, 20 steps"):
        write_reference(tmp_path / "good.json", [one, other], settings=SETTINGS, images=IMAGES)
    with pytest.raises(ValueError, match="holds no train/loss_epoch"):
        write_reference(
            tmp_path / "good.json", [make_table("empty", [{"step": 9, "train/loss": 1}])], settings={}, images={}
        )


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"format": 2}), '{"format": 1, "runs": 1}'])
def test_another_file_is_refused_in_one_sentence(tmp_path, content):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(ValueError, match=r"file.json is no file of reference curves .*python -m unmask.reference"):
        read_reference(tmp_path / "file.json")
