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

FIGURES = {"accuracy_latency", "accuracy_macs", "attention_kinds", "latency_by_op", "predicted_measured", "search"}
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
    assert len(report.findings) == 5
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
    assert "median error 100.0 %, 90th percentile 100.0 % on 12 loopback runs" in finding
    files = next(files for files in summary.figures if files.name == "predicted_measured")
    text = svg_texts(files.svg)
    assert "networks found: median error 100.0 %, p90 100.0 %, n = 12" in text
    assert "replayed: link term in common" in text
    rows = list(csv.DictReader(io.StringIO(files.csv.read_text())))
    assert {(row["network"] == "loopback", row["mode"]) for row in rows} == {(True, "measured"), (False, "replayed")}


@pytest.mark.parametrize(
    ("absent", "figures", "says"),
    [
        ("attention.jsonl", {"attention_kinds"}, "attention.jsonl: attention kinds"),
        ("networks.jsonl", {"accuracy_latency", "accuracy_macs", "latency_by_op"}, "networks.jsonl: candidates"),
        ("search.jsonl", {"search"}, "search.jsonl: course of the search"),
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
