"""What a sweep says of its jobs together."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

import pytest

from unmask.runtime.job_outcome import JobOutcome, outcome_path, read_outcomes, same_job, write_outcome
from unmask.runtime.sweep_page import _Axis, sweep_html
from unmask.runtime.sweep_table import average_over_seeds, differing_settings

CHROMIUM = shutil.which("chromium")


def job(number: int, overrides: list[str], value: float | None, **further: object) -> JobOutcome:
    metrics = {} if value is None else {"val/loss": value, "probe/own/knn_top1": 10.0 * value}
    state = "failed" if value is None else "complete"
    return JobOutcome(
        number,
        overrides,
        **{"folder": f"/sweep/{number}", "state": state, "value": value, "metrics": metrics, **further},
    )  # type: ignore[arg-type]


JOBS = [
    job(0, ["model=vit_mini", "method=mae", "seed=0"], 1.0),
    job(1, ["model=vit_mini", "method=mae", "seed=1"], 3.0),
    job(2, ["model=vit_mini", "method=simmim", "seed=0"], 0.5),
    job(3, ["model=vit_mini", "method=simmim", "seed=1"], None, sentence="a <b>bad</b> number"),
]


def test_seeds_are_averaged_and_nothing_else_is() -> None:
    mae, simmim = average_over_seeds(JOBS)
    assert (mae.name, simmim.name) == ("method=mae", "method=simmim")
    assert mae.value is not None
    assert (mae.value.mean, mae.value.count) == (2.0, 2)
    assert mae.value.deviation == pytest.approx(2.0**0.5)  # of a sample
    assert mae.metrics["probe/own/knn_top1"].mean == 20.0
    assert simmim.value is not None
    assert (simmim.value.mean, simmim.value.deviation) == (0.5, None)  # of the seed that did not fail
    assert average_over_seeds(JOBS[::2]) == []


def test_only_settings_that_differ_are_shown() -> None:
    assert differing_settings(JOBS) == ["method", "seed"]
    assert differing_settings([*JOBS, job(4, ["method=mae", "resume=auto"], 1.0)]) == ["model", "method", "seed"]


def test_a_job_is_the_same_whatever_it_was_to_continue() -> None:
    assert same_job(JOBS, ["seed=1", "method=mae", "model=vit_mini", "resume=auto"]) is JOBS[1]
    assert same_job(JOBS, ["seed=2", "method=mae", "model=vit_mini"]) is None


def test_the_page_links_each_run_escapes_what_was_typed_and_needs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "report.html").touch()
    odd = job(4, ["method=<script>alert(1)</script>", "seed=0"], 2.0)
    jobs = [JobOutcome(**{**vars(each), "folder": str(tmp_path / str(each.number))}) for each in (*JOBS, odd)]
    page = sweep_html(jobs, folder=tmp_path)
    links = re.findall(r'<a href="([^"]*)">(\d)</a>', page)
    assert links == [("3", "3"), ("0/report.html", "0"), *((n, n) for n in "1234")]  # the failed one at the head too
    assert "4 of 5 jobs complete. 1 failed" in page
    assert "2 ± 1.4" in page
    assert "a &lt;b&gt;bad&lt;/b&gt; number" in page
    assert "<script>alert(1)" not in page
    assert "</script>alert" not in page
    markup = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)  # Bokeh's own text names addresses
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", markup)


def test_a_link_leads_to_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "50%20 #1" / "why? a&b 'c' ä:"
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "report.html").touch()
    page = sweep_html([job(0, ["seed=0"], 1.0, folder=str(folder / "run"))], folder=tmp_path)
    (place,) = re.findall(r'<a href="([^"]*)">0</a>', page)
    address = urlsplit(urljoin((tmp_path / "sweep.html").as_uri(), unescape(place)))
    assert (address.query, address.fragment) == ("", "")
    assert Path(url2pathname(address.path)) == folder / "run" / "report.html"


def test_why_jobs_failed_stands_at_the_head_each_reason_once(tmp_path: Path) -> None:
    jobs = [job(number, [f"seed={number}"], None, sentence=f"reason {number % 2}") for number in range(4)]
    head = sweep_html(jobs, folder=tmp_path)
    said = " ".join(re.sub("<[^>]*>", " ", re.findall(r"<ul>.*</ul>", head)[0]).split())
    assert said == "job 0 , 2 : reason 0 job 1 , 3 : reason 1"

    many = [job(number, [f"seed={number}"], None, sentence=f"reason {number}.") for number in range(9)]
    page = sweep_html(many, folder=tmp_path)
    assert re.findall(r"<ul>.*</ul>", page)[0].count("reason") == 5
    assert "others in the table of jobs" in page
    assert all(f"reason {number}." in page.partition("<h2>Jobs</h2>")[2] for number in range(9))


def test_a_page_shows_what_tells_jobs_apart_each_once(tmp_path: Path) -> None:
    own = {"train/loss": 2.0, "train/lr": 0.1, "system/images_per_s": 9.0, "val/pixel_mse": 1.0}
    jobs = [job(0, ["base_lr=0.004430375245218269"], 1.0), job(1, ["base_lr=0.1"], 2.0)]
    jobs[0].metrics.update(own)
    jobs[1].metrics.update({**own, "val/pixel_mse": 2.0})
    page = sweep_html(jobs, folder=tmp_path)
    head = re.findall(r'<th scope="col">([^<]*)</th>', page)
    assert head == ["job", "state", "base_lr", "train/loss", "val/loss", "probe/own/knn_top1", "seconds"]
    assert "<td>0.00443</td>" in page
    assert re.findall(r"\[0,.base_lr.\]|.val/loss.\],\[3", page)  # the axes of the plot have names


def test_methods_are_compared_by_what_all_of_them_measure(tmp_path: Path) -> None:
    jobs = [job(number, [f"method={method}"], 1.0 + number) for number, method in enumerate(("mae", "simmim", "ddmim"))]
    for number in range(6):
        jobs[2].metrics[f"val/a_term_{number}"] = 3.0
    jobs.append(job(3, ["method=supervised"], None))
    page = sweep_html(jobs, folder=tmp_path)
    head = re.findall(r'<th scope="col">([^<]*)</th>', page)
    assert head[:5] == ["job", "state", "method", "val/loss", "probe/own/knn_top1"]
    assert head[5] == "val/a_term_0"
    assert "3 jobs as lines over method, val/loss, probe/own/knn_top1;" in page
    own = [JobOutcome(**{**vars(each), "metrics": {f"val/{each.number}": 1.0}}) for each in jobs[:2]]
    assert "2 jobs as lines over method, value;" in sweep_html(own, folder=tmp_path)


def test_a_sweep_without_results_has_a_page(tmp_path: Path) -> None:
    assert "0 of 1 jobs complete. 1 failed" in sweep_html(JOBS[3:], folder=tmp_path)


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ([1.0, 2.0, 3.0], [0.0, 0.5, 1.0]),
        (["1e-4", "1e-3", "1e-2"], [0.0, 0.5, 1.0]),  # over decades by the logarithm
        (["mae", "ddmim", "simmim"], [0.0, 0.5, 1.0]),
        ([5.0], [0.5]),
    ],
)
def test_an_axis_spreads_its_values(values: list[str | float], places: list[float]) -> None:
    axis = _Axis(values)
    assert [axis.place(value) for value in values] == pytest.approx(places)
    assert set(axis.ticks) <= set(places)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="opens the page in Chromium")
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_draws_the_page_of_a_sweep_without_a_complaint(tmp_path: Path, width: int) -> None:
    probe = """<script>
const errors=[];addEventListener('error',e=>errors.push(e.message));
addEventListener('load',()=>setTimeout(()=>{
  const link=document.querySelector('td a');link.focus();
  document.title=JSON.stringify({errors,focused:document.activeElement===link,
    plots:document.querySelectorAll('.bk-Figure').length,
    said:[...document.querySelectorAll('[role=img]')].map(place=>place.getAttribute('aria-label')),
    why:(({left,right})=>left>=0&&right<=innerWidth)(document.querySelector('td[colspan]>div').getBoundingClientRect()),
    rows:[...document.querySelectorAll('table')].map(table=>table.tBodies[0].rows.length),
    overflow:document.documentElement.scrollWidth-innerWidth});
},1500));</script>"""
    long = "a sentence that goes on for longer than any screen is wide, " * 5
    jobs = [*JOBS[:3], JobOutcome(**{**vars(JOBS[3]), "sentence": long})]
    path = tmp_path / "probed.html"
    path.write_text(sweep_html(jobs, folder=tmp_path).replace("<head>", f"<head>{probe}", 1))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
        "--virtual-time-budget=6000", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)

    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title is not None
    found = json.loads(title[1])
    assert found["errors"] == []
    assert found["plots"] == 2  # settings with what came of them, and means
    assert (
        found["said"][0]
        == "3 jobs as lines over method, seed, val/loss, probe/own/knn_top1; the table below holds the same"
    )
    assert found["rows"] == [2, 5]  # one of them says why
    assert found["why"]  # without scrolling
    assert found["focused"]
    assert found["overflow"] <= 0
    assert not re.findall(r"(?:WARNING|ERROR):CONSOLE.*", done.stderr)


def test_what_a_killed_job_left_half_written_is_no_job(tmp_path: Path) -> None:
    write_outcome(outcome_path(tmp_path, 0), JOBS[0])
    (tmp_path / "jobs" / ".000000.123.partial.json").write_text('{"number": 0, "overr')
    assert read_outcomes(tmp_path) == JOBS[:1]


def test_what_a_user_typed_is_text_on_the_page(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    jobs = [job(number, [f"name={evil}{number}", f"seed={number}", f"{evil}=1"], 1.0 + number) for number in range(3)]
    jobs.append(job(3, ["name=b", "seed=3"], None, sentence=evil, folder=f"{tmp_path}/{evil}"))
    assert evil not in sweep_html(jobs, folder=tmp_path / evil)
