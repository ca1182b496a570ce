from unmask.runtime.quickstart import summarize


def report(top1: float, low: float, high: float) -> dict[str, object]:
    metrics = {"top1": top1, "top1_ci95_low": low, "top1_ci95_high": high}
    return {"metrics": metrics, "num_test_images": 1000}


def test_the_summary_claims_a_gain_only_where_the_intervals_are_apart() -> None:
    trained = report(40.0, 37.0, 43.0)
    apart = summarize({"checkpoint": trained, "random": report(20.0, 17.6, 22.4)})
    assert "pre-trained  40.0 [37.0, 43.0]" in apart
    assert "untrained    20.0 [17.6, 22.4]" in apart
    assert "worth 20.0 points" in apart
    overlapping = summarize({"checkpoint": trained, "random": report(36.0, 33.0, 39.0)})
    assert "worth" not in overlapping
    assert "4.0 points is not certain" in overlapping
    worse = summarize({"checkpoint": report(10.0, 8.0, 12.0), "random": report(30.0, 27.0, 33.0)})
    assert "worth" not in worse
    assert "gained nothing here: -20.0 points" in worse
