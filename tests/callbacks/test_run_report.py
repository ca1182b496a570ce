import csv
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from unmask.callbacks import run_report
from unmask.callbacks.reconstruction import ReconstructionPanel
from unmask.callbacks.report_page import (
    _Curve,
    _linked_figures,
    _names,
    _spread,
    _thinned,
    is_evaluation,
    read_run,
    report_html,
    write_report,
)
from unmask.callbacks.run_report import RunReport

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]
CHROMIUM = shutil.which("chromium")


@pytest.fixture
def make_run(tmp_path):
    """Writes a run's folder: readings, pictures, settings."""

    def make(name="one", *, steps=3, panels=(1, 2), overrides=("method=mae", "seed=1"), val=0.5):
        folder = tmp_path / name
        (folder / "csv").mkdir(parents=True)
        (folder / "panels").mkdir()
        (folder / ".hydra").mkdir()
        with (folder / "csv/metrics.csv").open("w", newline="") as lines:
            table = csv.writer(lines)
            table.writerow(["step", "epoch", "train/loss", "val/loss", "system/images_per_s"])
            table.writerows([step, 0, 1.0 / (1 + step), "", 100 + step] for step in range(steps))
            table.writerow([steps, 0, "", val, ""])
        for epoch in panels:
            noise = np.random.default_rng(epoch).integers(0, 255, (400, 1000, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"panels/epoch_{epoch:04d}.png")
        (folder / ".hydra/overrides.yaml").write_text(json.dumps(list(overrides)))
        return folder

    return make


def test_a_run_writes_its_page_every_epoch_with_the_readings_and_the_picture_of_that_epoch(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "perf_counter", lambda: 0.0)  # a page costs nothing
    pages = []

    class Keep(RunReport):
        def _write(self, trainer):
            super()._write(trainer)
            pages.append((tmp_path / "report.html").read_text())

    logger = CSVLogger(tmp_path, name="", version="csv")
    fit(ReconstructionPanel(num_images=2), Keep(), logger=logger, log_every_n_steps=1, max_epochs=2)

    assert len(pages) == 3
    first, _, last = pages
    assert (first.count("<img "), last.count("<img ")) == (1, 2)
    assert "not ended" not in last  # it cannot know
    assert "train/loss" in first
    assert "val/loss" in first  # the validation of the same epoch
    assert "at step 12," in last  # of twelve


def test_short_epochs_are_left_out_but_not_the_first_and_the_last(fit, monkeypatch):
    clock, written = [0.0], []
    monkeypatch.setattr(run_report, "perf_counter", lambda: clock[0])

    class Count(RunReport):
        def _write_page(self, trainer):
            written.append(trainer.current_epoch)
            clock[0] += 1.0

    class Pass(Callback):
        def on_train_epoch_start(self, *_):
            clock[0] += 30.0

    fit(Pass(), Count(), max_epochs=8, limit_val_batches=0)
    # After the first page a second of 1 % of the time is up at 200 s, in the seventh epoch.
    assert written == [0, 6, 8]
    with pytest.raises(ValueError, match="max_time_fraction must lie above 0"):
        RunReport(max_time_fraction=0.0)


def test_a_page_needs_no_other_file_and_stays_small(make_run):
    page = report_html([read_run(make_run(steps=5000, panels=range(1, 60)))])

    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*', markup)
    assert not re.findall(r"<script[^>]+src", page)
    assert 1_000_000 < len(page) < 5_000_000
    assert 'data-name="epoch 59"' in page  # the last picture is always there


def test_curves_are_thinned_by_means_and_told_in_words(make_run):
    page = report_html([read_run(make_run(steps=4000))])

    told = re.search(r'aria-label="loss over optimizer steps: ([^"]*)"', page)[1]
    train, val = told.split("; ")
    assert train == "train/loss 0.00025 at step 4,000, first 1, smallest 0.00025"  # steps done, as on the screen
    assert val == "val/loss 0.5 at step 4,001, first 0.5, smallest 0.5"
    assert len(page) < 2_000_000


def test_a_thinned_curve_has_the_means_of_its_parts_at_their_last_steps():
    assert _thinned([(step, float(step)) for step in range(1000)]) == [(step, float(step)) for step in range(1000)]
    thinned = _thinned([(10 * number, float(number)) for number in range(2002)])  # three at a time
    assert len(thinned) == 668
    assert thinned[:2] == [(20, 1.0), (50, 4.0)]
    assert thinned[-1] == (20_010, 2001.0)  # what is left over


def test_readings_over_decades_have_a_logarithmic_axis_and_all_plots_one_axis_of_steps():
    def scale(*values):
        curve = _Curve("a", list(enumerate(values)), "#000000", is_dashed=False)
        (first, second) = _linked_figures([[curve], [curve]])
        assert first.x_range is second.x_range
        return type(first.y_scale).__name__

    assert scale(1.0, 0.1) == "LogScale"
    assert scale(1.0, 0.11) == "LinearScale"
    assert scale(10.0, 0.0) == "LinearScale"  # which a logarithm does not have


def test_a_number_under_the_pointer_has_four_digits_however_small():
    (figure,) = _linked_figures([[_Curve("lr", [(1, 1.25e-9), (2, 1e-9)], "#000000", is_dashed=False)]])
    (hover,) = [tool for tool in figure.tools if type(tool).__name__ == "HoverTool"]
    written = dict(hover.tooltips)["value"].partition("{")[2].rstrip("}")
    assert hover.formatters == {"@y": "printf"}
    assert [written % value for value in (1.25e-9, 0.42853)] == ["1.25e-09", "0.4285"]


def test_the_numbers_of_verdicts_are_told_in_words(make_run):
    run = make_run()
    table = run / "csv/metrics.csv"
    rows = list(csv.reader(table.read_text().splitlines()))
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([[*rows[0], "verdict"], *([*row, 2] for row in rows[1:])])
    (told,) = re.findall(r'aria-label="verdict over optimizer steps: ([^"]*)"', report_html([read_run(run)]))
    assert told.endswith("(0 is normal, 1 is slow, 2 is collapsing, 3 is diverging)")


def test_pictures_are_spread_evenly_and_end_with_the_last():
    assert _spread(range(1, 5), 4) == [1, 2, 3, 4]
    assert _spread(range(1, 11), 5) == [2, 4, 6, 8, 10]


def test_runs_are_called_by_the_shortest_endings_of_their_folders_that_differ(make_run):
    runs = [read_run(make_run(name)) for name in ("a/x/run", "b/x/run", "b/y/run")]
    assert _names(runs[1:]) == ["x/run", "y/run"]
    assert _names(runs) == ["a/x/run", "b/x/run", "b/y/run"]


def test_losses_come_first_and_the_speed_last_and_rows_cut_short_are_left_out(make_run):
    folder = make_run()
    with (folder / "csv/metrics.csv").open("a") as table:
        table.write(",0,0.125,,")
    run = read_run(folder)
    assert [step for step, _ in run.series["train/loss"]] == [1, 2, 3]
    page = report_html([run])
    assert re.findall(r"<figure><strong>(.*?)</strong>", page) == ["loss", "system/images_per_s"]
    legends = re.findall(r">(- -|&mdash;)</span> (\S+)", page)
    assert legends[:2] == [("&mdash;", "train/loss"), ("- -", "val/loss")]


@pytest.mark.parametrize(("status", "shown"), [("running", "not ended"), ("complete", "complete")])
def test_a_run_that_goes_on_has_not_ended(make_run, status, shown):
    one, other = make_run("one"), make_run("other")
    (one / "status.json").write_text(json.dumps({"state": status, "step": 3}))
    assert f"<td>{shown}</td>" in report_html([read_run(one), read_run(other)])
    assert (f"<td>{shown}</td>" in report_html([read_run(one)])) is (status == "complete")


def test_verdicts_warnings_and_the_time_of_a_step_are_shown(make_run):
    folder = make_run()
    (folder / "verdicts.csv").write_text("epoch,step,verdict,reason\n1,3,normal,fine\n2,6,slow,<as ever>\n")
    (folder / "run.log").write_text(
        "2026-11-29 07:00:00 INFO nothing\n2026-11-29 07:00:01 WARNING twice\n2026-11-29 07:00:02 WARNING twice\n"
        "2026-11-29 07:00:03 WARNING verdict  slow: <as ever>\n2026-11-29 07:00:04 ERROR a full disk\n"
    )
    content = {"batches": 3, "parts": {"backbone": 0.03, "loss": 0.01}, "bottleneck": "bottleneck: the network"}
    (folder / "step_profile.json").write_text(json.dumps(content))
    page = report_html([read_run(folder)])

    assert "<strong>slow after epoch 2: &lt;as ever&gt;</strong>" in page
    assert "<summary>all 2</summary>" in page
    assert "<ul><li>twice</li><li>a full disk</li></ul>" in page
    assert "bottleneck: the network" in page
    assert "<td>backbone</td><td>30.00</td><td>75.0%</td>" in page
    assert "Verdict" not in report_html([read_run(make_run("before"))])  # a run of an older version


def test_evaluations_among_the_folders_are_left_out_and_named(make_run, tmp_path, monkeypatch, caplog):
    from unmask.runtime.report import report  # noqa: PLC0415

    caplog.set_level("INFO", logger="unmask")
    monkeypatch.chdir(tmp_path)
    for name in ("measured", "measuring"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra/hydra.yaml").write_text("hydra: {job: {name: eval}}")
        (tmp_path / name / ".hydra/overrides.yaml").write_text("[eval=knn]")
    (tmp_path / "measured/report.json").write_text("{}")
    make_run("one"), make_run("two")
    report(["measured", "one", "two", "measuring"])
    assert "<h1>2 runs</h1>" in Path("comparison.html").read_text()
    assert "left out, since they hold evaluations: measured, measuring" in caplog.messages
    with pytest.raises(ValueError, match=r"measured is the folder of an evaluation; its report\.md"):
        report(["measured"])


def test_features_and_neighbors_stand_behind_sliders_of_their_own_and_leave_the_page_small(make_run):
    folder = make_run(panels=range(1, 40))
    for kind in ("features", "neighbors"):
        (folder / kind).mkdir()
        for epoch in range(1, 40):
            noise = np.random.default_rng(epoch).integers(0, 255, (230, 690, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / kind / f"epoch_{epoch:04d}.png")
    page = report_html([read_run(folder)])

    assert page.count('<div class="panels">') == 3
    assert [page.count(f'{said}; after epoch 39"') for said in ("filled in", "alike features", "nearest first")] == [
        1
    ] * 3
    assert len(page) < 5_000_000


def test_names_and_settings_are_shown_as_text(make_run):
    page = report_html([read_run(make_run("<b>bold", overrides=["name=<script>alert(1)</script>", "note='a b'"]))])

    assert "<b>bold" not in page
    assert "<script>alert" not in page
    assert "python run.py &#x27;name=&lt;script&gt;alert(1)&lt;/script&gt;&#x27;" in page


def test_runs_are_compared_by_their_curves_and_the_settings_in_which_they_differ(make_run):
    one = make_run("one", overrides=["method=mae", "seed=1", "base_lr=0.1"])
    other = make_run("other", overrides=["method=mae", "seed=2"], val=0.25)
    (other / "status.json").write_text(json.dumps({"state": "failed", "reason": "no memory"}))
    page = report_html([read_run(one), read_run(other)])

    assert "<h1>2 runs</h1>" in page
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    by_name = {row[0].rpartition("/")[2]: row[1:] for row in cells}
    assert by_name["other"][0] == "failed: no memory"
    assert (by_name["one"][4], by_name["other"][4]) == ("0.5", "0.25")
    assert by_name["seed"] == ["1", "2"]
    assert by_name["base_lr"] == ["0.1", "-"]
    assert "method" not in by_name  # alike


def test_no_file_but_a_report_is_replaced(make_run, tmp_path):
    run = read_run(make_run())
    write_report(tmp_path / "page.html", [run])
    write_report(tmp_path / "page.html", [run])
    (tmp_path / "mine.html").write_text("<html>mine</html>")
    with pytest.raises(ValueError, match=r"mine.html exists and is no report"):
        write_report(tmp_path / "mine.html", [run])
    assert (tmp_path / "mine.html").read_text() == "<html>mine</html>"


def test_a_folder_of_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is the folder of no run; name one that holds csv"):
        read_run(tmp_path)


@pytest.mark.parametrize(("arguments", "written"), [(["one"], "one/report.html"), (["one", "two"], "comparison.html")])
def test_the_command_writes_into_the_run_or_compares(make_run, tmp_path, monkeypatch, arguments, written):
    from unmask.runtime import cli  # noqa: PLC0415

    make_run("one")
    make_run("two")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", *arguments])
    cli.report()
    assert Path(written).is_file()

    monkeypatch.setattr("sys.argv", ["report", "nowhere"])
    with pytest.raises(SystemExit) as stopped:
        cli.report()
    assert stopped.value.code == 2


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="opens the page in Chromium")
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_draws_it_without_a_complaint_and_the_slider_moves(make_run, tmp_path, width):
    page = report_html([read_run(make_run(panels=(1, 2, 3)))])
    probe = """<script>
const errors=[];addEventListener('error',e=>errors.push(e.message));
addEventListener('load',()=>setTimeout(()=>{
  const slider=document.querySelector('.panels input');slider.value=0;slider.dispatchEvent(new Event('input'));
  document.title=JSON.stringify({errors,
    shown:[...document.querySelectorAll('.panels figure')].filter(f=>!f.hidden).map(f=>f.dataset.name),
    plots:document.querySelectorAll('.bk-Figure').length,
    overflow:document.documentElement.scrollWidth-innerWidth});
},1500));</script>"""
    path = tmp_path / "probed.html"
    path.write_text(page.replace("<head>", f"<head>{probe}", 1))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
        "--virtual-time-budget=6000", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    found = json.loads(re.search(r"<title>(\{.*?\})</title>", done.stdout)[1])
    assert found["errors"] == []
    assert found["shown"] == ["epoch 1"]
    assert found["plots"] == 2  # loss and images a second
    assert found["overflow"] <= 0
    assert not re.findall(r"(?:WARNING|ERROR):CONSOLE.*", done.stderr)


def test_what_others_wrote_into_a_folder_is_text_on_the_page(make_run):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    folder = make_run("<img src=x onerror=alert(1)>", overrides=[f"name={evil}", f"{evil}=1"])
    (folder / "status.json").write_text(json.dumps({"state": f"failed {evil}", "reason": evil}))
    (folder / "verdicts.csv").write_text(f"epoch,step,verdict,reason\n1,3,{evil},{evil}\n")
    (folder / "run.log").write_text(f"2026-01-01 00:00:00 WARNING {evil}\n")
    profile = {"parts": {evil: 1.0}, "bottleneck": evil}
    (folder / "step_profile.json").write_text(json.dumps(profile))
    (folder / "csv/metrics.csv").write_text(f"step,epoch,{evil},train/{evil}\n0,0,1.0,2.0\n")
    (folder / "panels/epoch_of_mine.png").write_bytes(b"no picture")
    for runs in ([read_run(folder)], [read_run(folder), read_run(make_run("other"))]):
        page = report_html(runs)
        assert "onerror=alert(1)&gt;" in page
        assert "<img src=x" not in page
        assert "<script>alert" not in page


def test_a_folder_from_elsewhere_is_read_as_data(make_run, tmp_path):
    """References that unfold without end, other types than expected, and what is no YAML at all."""
    folder = make_run()
    bomb = "- &a [" + "x, " * 9 + "x]\n"
    bomb += "".join(f"- &{to} [{', '.join([f'*{of}'] * 10)}]\n" for of, to in itertools.pairwise("abcdefghij"))
    for text in (bomb, "{: [", "[" * 100_000, "- !!python/object/apply:os.system [true]", "- 1\n- {a: b}\n- seed=1\n"):
        (folder / ".hydra/overrides.yaml").write_text(text)
        write_report(tmp_path / "page.html", [read_run(folder)])
    assert "python run.py seed=1" in (tmp_path / "page.html").read_text()
    for text in ("- a", "hydra: {job: [eval]}", "hydra: 3", "hydra: {job: {name: {eval: 1}}}", "{: ["):
        (folder / ".hydra/hydra.yaml").write_text(text)
        assert not is_evaluation(folder)


@pytest.mark.parametrize("text", ["step,a\n0,b\n", "step,a\n0," + "1" * 200_000 + "\n"])
def test_a_table_of_something_else_is_named(text, make_run):
    folder = make_run()
    (folder / "csv/metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=r"csv/metrics\.csv is no table of readings"):
        read_run(folder)
