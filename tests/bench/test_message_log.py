from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.message_log import RunLog, read_logs, write_logs
from mpc.ledger import LogEntry, MessageLog, Span
from mpc.scheme import Scheme
from mpc.traffic import Correlation, Message

LOG = MessageLog(
    party=0,
    parties=2,
    entries=(
        LogEntry("mean", "norm", Message("scatter", (24,)), 0.0, 0.25, of_dealer=True, start_s=1.125),
        LogEntry("relu", "act", Correlation("and", 80, ((3, 4), 16, "bits")), 0.0, 0.0),
        LogEntry("relu", "act", Message("open", (80, 40), root=1, phase="setup"), 0.5, 0.25, start_s=2.0),
    ),
    online_s=1.5,
    dealer_s=0.25,
    spans=(Span("relu", "act", 1.0, 2.25, 1.0, 1.0),),
    transport="direct",
    start_s=1.0,
)
SCHEME = Scheme("tuned", transport="direct", truncation="dealer")
RUN = RunLog("attention", SCHEME, "loopback", "measured", {"label": "m"}, (1.5, 1.75), (LOG, replace(LOG, party=1)))


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    path = write_logs(tmp_path / "new" / "runs.jsonl", [RUN, replace(RUN, workload="model")])
    assert read_logs(path) == [RUN, replace(RUN, workload="model")]
    assert [file.name for file in path.parent.iterdir()] == ["runs.jsonl"]
    write_logs(path, [RUN])
    assert read_logs(path) == [RUN]


def test_a_line_says_what_it_is(tmp_path: Path) -> None:
    (line,) = write_logs(tmp_path / "runs.jsonl", [RUN]).read_text().splitlines()
    row = json.loads(line)
    assert list(row)[:2] == ["schema", "record"] and (row["schema"], row["record"]) == (1, "message_log")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda text: text[: len(text) // 2], "empty or was cut short"),
        (lambda text: "", "empty or was cut short"),
        (lambda text: text[: len(text) // 2] + "\n", "line 1 is no message log, or damaged"),
        (lambda text: '{"schema":1,"record":"attention"}\n', "no message log but attention"),
        (lambda text: "[1]\n", "no message log but something else"),
        (lambda text: text.replace('"schema":1', '"schema":9'), "schema 9; this program reads schema 1"),
        (lambda text: text.replace('"wait_s"', '"waits"'), "line 1 is damaged .KeyError: 'wait_s'"),
        (lambda text: text.replace('"tuned"', '"tuneful"'), "line 1 is damaged .ValueError: scheme 'tuneful'"),
    ],
)
def test_a_torn_or_foreign_file_is_refused(tmp_path: Path, damage: object, complaint: str) -> None:
    path = write_logs(tmp_path / "runs.jsonl", [RUN])
    assert callable(damage)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=complaint):
        read_logs(path)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="bench attention --log"):
        read_logs(tmp_path / "none")
