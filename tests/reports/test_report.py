from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from reports import ReportSummary, build

BASELINES = ("flops", "relu_count", "bytes_only", "rounds_only", "rounds_x_rtt", "sum_over_heads")
PREDICTIONS = {"predicted_measured", *(f"predicted_measured_{name}" for name in BASELINES)}
FIGURES = PREDICTIONS | {
    "accuracy_latency",
    "accuracy_macs",
    "attention_kinds",
    "latency_by_op",
    "search",
    "winner_map",
}
SVG_TEXT = "{http://www.w3.org/2000/svg}text"


def svg_texts(path: Path) -> str:
    return " ".join("".join(text.itertext()) for text in ElementTree.parse(path).iter(SVG_TEXT))


class Ids(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]


def test_every_figure_is_written_three_times(report: ReportSummary) -> None:
    assert {files.name for files in report.figures} == FIGURES
    for files in report.figures:
        height, width = imread(files.png).shape[:2]
        assert width >= 150 * 6 and height > 500
        assert len(files.csv.read_text().splitlines()) > 1


def test_every_figure_carries_its_label_as_text(report: ReportSummary) -> None:
    for files in report.figures:
        text = " ".join(svg_texts(files.svg).split())
        for part in (
            "scheme: crypten",
            "transport gloo",
            "TFP: benchmark only",
            "phases:",
            "mode:",
            "machine: Example",
        ):
            assert part in text, (files.name, part)


def test_front_figure_names_every_observed_network_once_a_panel(report: ReportSummary) -> None:
    files = next(files for files in report.figures if files.name == "accuracy_latency")
    names = ["".join(text.itertext()) for text in ElementTree.parse(files.svg).iter(SVG_TEXT)]
    rows = list(csv.DictReader(io.StringIO(files.csv.read_text())))
    observed = {row["name"] for row in rows if row["mode"] == "replayed"}
    assert len(observed) == 12
    assert all(names.count(name) == 2 for name in observed)
    assert len(rows) == 2 * 21


def test_the_page_stands_alone(report: ReportSummary) -> None:
    page = report.page.read_text()
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(["']?http|@import""", page)
    ids = Ids()
    ids.feed(page)
    assert len(ids.ids) == len(set(ids.ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids.ids)


def test_the_page_starts_with_the_findings(report: ReportSummary) -> None:
    page = report.page.read_text()
    assert len(report.findings) == 6
    positions = [page.index(finding[:30]) for finding in report.findings]
    assert positions == sorted(positions)
    assert positions[-1] < page.index("<svg")
    assert "Not in this run" not in page


def keep_only(run_dir: Path, *names: str) -> None:
    for path in run_dir.iterdir():
        if path.name not in names:
            path.unlink()


def test_findings_are_computed_from_the_records(run_dir: Path) -> None:
    first = {row["kind"]: row for row in map(json.loads, (run_dir / "attention.jsonl").read_text().splitlines())}
    ratio = first["scaling_linear"]["seconds"]["online"]["median"] / first["softmax"]["seconds"]["online"]["median"]
    keep_only(run_dir, "attention.jsonl")
    (finding,) = build(run_dir).findings
    assert f"scaling_linear, {ratio:.2g} x the seconds of softmax (4 rounds instead of 119" in finding


def test_replayed_seconds_are_shown_but_count_in_no_error(run_dir: Path) -> None:
    path = run_dir / "networks.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        for link, observed in record["measured_s"].items():
            # off by a factor of two where measured, exact where replayed: only the first may enter the statistics
            observed["median"] = record["seconds"][link]["p50"] * (0.5 if link == "loopback" else 1.0)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = build(run_dir)
    (finding,) = [line for line in summary.findings if line.startswith("Predicted latency")]
    assert "networks shown here, measured: median error 100.0 % (n = 12)" in finding
    files = next(files for files in summary.figures if files.name == "predicted_measured")
    text = svg_texts(files.svg)
    assert "networks found: median error 100 %, p90 100 %, n = 12" in text
    assert "replayed: link term in common" in text
    rows = list(csv.DictReader(io.StringIO(files.csv.read_text())))
    found = [row for row in rows if row["group"] == "networks found"]
    assert {(row["network"] == "loopback", row["mode"]) for row in found} == {(True, "measured"), (False, "replayed")}


def test_a_figure_shows_a_baseline_where_it_says_something(run_dir: Path) -> None:
    record = json.loads((run_dir / "calibration.json").read_text())
    keep_only(run_dir, "calibration.json")
    del record["evaluation"]["layers"]  # the only group that sums over heads
    (run_dir / "calibration.json").write_text(json.dumps(record))
    summary = build(run_dir)
    assert {files.name for files in summary.figures} == PREDICTIONS - {"predicted_measured_sum_over_heads"}
    page = summary.page.read_text()
    assert "Baselines that say nothing of these workloads: sum over heads." in page
    assert "It says nothing of: operations, networks." in page  # rounds x RTT, on loopback
    by_name = {files.name: list(csv.DictReader(io.StringIO(files.csv.read_text()))) for files in summary.figures}
    assert {row["group"] for row in by_name["predicted_measured_rounds_x_rtt"]} == {"links"}
    points = record["evaluation"]["networks"]["points"]
    said = [row["predicted_s"] for row in by_name["predicted_measured_flops"] if row["group"] == "networks"]
    assert [float(seconds) for seconds in said] == [point["baselines"]["FLOPs"] for point in points]
    model = [row for row in by_name["predicted_measured"] if row["group"] == "networks"]
    assert [float(row["p95_s"]) for row in model] == [point["p95_s"] for point in points]


def test_the_table_has_the_model_beside_every_baseline(run_dir: Path) -> None:
    scores = json.loads((run_dir / "calibration.json").read_text())["evaluation"]["networks"]["scores"]
    keep_only(run_dir, "calibration.json")
    page = build(run_dir).page.read_text()
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    by_key = {(row[0], row[1]): row[2:] for row in rows if len(row) == 13}
    assert len(by_key) == 4 * 7 + 1
    assert by_key["replays", "replay"][0] == "18"
    model = by_key["networks", "cost model"]
    assert model[:4] == ["32", *(f"{100 * scores[key]:.1f} %" for key in ("median_error", "p90_error", "within_10"))]
    absent = "\N{EN DASH}"
    assert model[6:] == [f"{100 * scores['coverage_90']:.1f} %", "50.0 %", "1.0 %", absent, "2.0 %"]
    assert by_key["networks", "rounds x RTT"] == [absent] * 11


def test_an_untested_calibration_is_a_page_without_figures(run_dir: Path) -> None:
    record = json.loads((run_dir / "calibration.json").read_text())
    keep_only(run_dir, "calibration.json")
    (run_dir / "calibration.json").write_text(json.dumps({**record, "evaluation": {}}))
    summary = build(run_dir)
    assert (summary.figures, summary.findings) == ((), ())
    assert "The cost model was not tested." in summary.page.read_text()


def test_a_budget_is_reported_as_measured(run_dir: Path) -> None:
    keep_only(run_dir, "remeasured.jsonl")
    records = {r["name"]: r for r in map(json.loads, (run_dir / "remeasured.jsonl").read_text().splitlines())}
    summary = build(run_dir)
    seconds = records["budget"]["measured_s"]["median"]
    assert f"Budget of 15.5 s on cheetah-wan: met, by {seconds:.1f} s (emulated-link); 2 networks tried." in (
        summary.findings
    )
    page = summary.page.read_text()
    assert "15.5 s: not met" in page and "15.5 s: met" in page
    assert [files.name for files in summary.figures] == ["predicted_measured"]


def test_a_winner_map_says_what_is_compared(run_dir: Path) -> None:
    record = json.loads((run_dir / "winners.json").read_text())
    keep_only(run_dir, "winners.json")
    (files,) = build(run_dir).figures
    text = svg_texts(files.svg)
    assert "accuracy at least 96.0 % less 0.5 points: 2 of 3 networks compete" in text
    assert "cheetah-wan" in text and "too close to call" in text and "mode: predicted" in text
    rows = list(csv.DictReader(io.StringIO(files.csv.read_text())))
    assert len(rows) == 2 * 20 * 20
    assert {row["winner"] for row in rows if row["accuracy"] == "0.96"} == {"few rounds", "between"}

    for contender in record["contenders"]:
        contender["accuracy"] = None
    panel = {**record["panels"][1], "accuracy": None, "accuracy_within": None}
    kinds = {**record, "what": "attention kinds", "accuracy_source": None, "panels": [panel]}
    (run_dir / "winners.json").write_text(json.dumps(kinds))
    (files,) = build(run_dir).figures
    assert "fastest of 3 attention kinds; accuracy is not compared" in svg_texts(files.svg)


@pytest.mark.parametrize(
    ("absent", "figures", "says"),
    [
        ("attention.jsonl", {"attention_kinds"}, "attention.jsonl: attention kinds"),
        ("networks.jsonl", {"accuracy_latency", "accuracy_macs", "latency_by_op"}, "networks.jsonl: candidates"),
        ("search.jsonl", {"search"}, "search.jsonl: course of the search"),
        ("calibration.json", PREDICTIONS - {"predicted_measured"}, "calibration.json: error of the cost model"),
        ("winners.json", {"winner_map"}, "winners.json: the fastest by bandwidth and delay"),
    ],
)
def test_an_absent_record_is_named_and_its_figures_left_out(
    run_dir: Path, absent: str, figures: set[str], says: str
) -> None:
    (run_dir / absent).unlink()
    summary = build(run_dir, run_dir / "elsewhere")
    assert {files.name for files in summary.figures} == FIGURES - figures
    assert any(says in line for line in summary.missing)
    assert says in summary.page.read_text()
    assert summary.page.parent == run_dir / "elsewhere"


def test_one_predicted_network_is_a_front_of_its_own(run_dir: Path) -> None:
    keep_only(run_dir, "networks.jsonl")
    path = run_dir / "networks.jsonl"
    record = {**json.loads(path.read_text().splitlines()[0]), "measured_s": {}, "by_op_s": {}, "agreement": None}
    path.write_text(json.dumps(record) + "\n")
    summary = build(run_dir)
    assert {files.name for files in summary.figures} == {"accuracy_latency", "accuracy_macs"}
    assert "1 of 1 networks" in summary.findings[0]
    assert "(predicted)" in summary.findings[0]


def test_records_of_two_machines_are_pointed_out(run_dir: Path) -> None:
    keep_only(run_dir, "attention.jsonl")
    path = run_dir / "attention.jsonl"
    path.write_text(path.read_text().replace("Example Processor 9000", "Another Processor", 1))
    assert "Records of 2 machines are shown together" in build(run_dir).page.read_text()


def test_text_of_records_is_escaped(run_dir: Path) -> None:
    keep_only(run_dir, "cross_table.json")
    path = run_dir / "cross_table.json"
    path.write_text(path.read_text().replace("Searching for", "<b>Searching</b> for"))
    page = build(run_dir).page.read_text()
    assert "<b>Searching" not in page
    assert "&lt;b&gt;Searching" in page


def test_a_directory_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no records to report: missing attention\.jsonl"):
        build(tmp_path)
    with pytest.raises(ValueError, match="is not a directory"):
        build(tmp_path / "nowhere")
