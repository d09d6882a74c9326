"""Declared ranges in a file: written by one run, read by another, refused where they would mean something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.range_files import ranges_named, save_ranges, unused_rows
from bench.running import ranges_for
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.reading import shape_reading
from mpc.scheme import Scheme

TUNED = Scheme("tuned", transport="direct")
MAX_FREE = Scheme("tuned", functions="max_free", transport="direct")
SOME = Ranges((("kind.softmax", "softmax", -9.0, 0.0),))
MORE = Ranges((("act", "relu", -2.0, 2.0), *SOME.declared))


def test_what_was_saved_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    save_ranges(path, [(TUNED, SOME), (Scheme(), NOTHING_DECLARED), (TUNED, MORE)])
    read = ranges_named(str(path), [Scheme(), TUNED])
    assert read is not None and set(read.declared) == set(MORE.declared) and len(read.declared) == 2
    with pytest.raises(ValueError, match="holds ranges for documented functions, not for max_free"):
        ranges_named(str(path), [TUNED, MAX_FREE])
    with pytest.raises(ValueError, match="here is documented and max_free"):
        save_ranges(path, [(TUNED, SOME), (MAX_FREE, SOME)])
    path.write_text(json.dumps(SOME.to_json()))  # as a record holds them
    assert ranges_named(str(path), [MAX_FREE]) == SOME


def test_choices_without_a_file() -> None:
    assert ranges_named(None, [Scheme()]) is None
    assert ranges_named("calibrated", [TUNED]) is None
    assert ranges_named(None, [TUNED], calibrates=False) == NOTHING_DECLARED == ranges_named("default", [TUNED])


def _of_row(**changed: object) -> bytes:
    return json.dumps([{"site": "act", "op": "relu", "low": -1.0, "high": 1.0, **changed}]).encode()


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (b"{", "holds no ranges: it is not JSON"),
        (b"\xff\xfe", "holds no ranges: it is not JSON"),
        (b'{"record": "network", "schema": 1}', "holds no ranges"),
        (b'{"schema": 1, "record": "ranges"}', "does not say for which functions"),
        (b'{"schema": 1, "record": "ranges", "functions": "documented"}', "holds no ranges"),
        (b'"calibrated"', "holds no ranges"),
        (b'[{"site": "act"}]', "row 1: a row needs site, op, low and high"),
        (b"[3]", "row 1: a row needs site, op, low and high"),
        (_of_row(site=None), "site and op are names"),
        (_of_row(op="rel"), "unknown op 'rel' in module 'act'; did you mean relu? Known: relu, abs"),
        (_of_row(op="zzzz"), "unknown op 'zzzz' in module 'act'; known: relu, abs"),
        (_of_row(low="-1"), "numbers with low < high, got '-1' and 1.0"),
        (_of_row(low=1.0), "numbers with low < high"),
        (_of_row(high=10**400), "numbers with low < high"),
        (_of_row(high=True), "numbers with low < high"),
        (_of_row(high=float("nan")), "got -1.0 and nan"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, held: bytes, message: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(held)
    with pytest.raises(ValueError, match=r"other\.json") as refused:
        ranges_named(str(path), [TUNED])
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_rows_that_nothing_takes_are_named_and_none_taken_is_refused() -> None:
    act, linear = (shape_reading(module.eval(), (1, 2)) for module in (nn.Sequential(nn.ReLU()), nn.Linear(2, 2)))
    own, other = ("0", "relu", -2.0, 2.0), ("act", "relu", -2.0, 2.0)
    assert unused_rows("f.json", Ranges((own, other)), [linear, act]) == ["relu in module 'act'"]
    assert unused_rows("f.json", NOTHING_DECLARED, [linear]) == []
    for choice in (None, "default", "calibrated"):
        assert unused_rows(choice, NOTHING_DECLARED, [act]) == []
    with pytest.raises(ValueError, match="its rows are for relu in module 'act'; this network's functions are relu in"):
        unused_rows("f.json", Ranges((other,)), [act])
    with pytest.raises(ValueError, match="this network has none with a range"):
        unused_rows("f.json", Ranges((other,)), [linear])
    with pytest.raises(ValueError, match="it has no rows; this network's functions are relu in module '0'"):
        unused_rows("f.json", NOTHING_DECLARED, [act])


def test_ranges_are_calibrated_for_tuned_schemes_alone() -> None:
    module, others = nn.Sequential(nn.ReLU()).eval(), torch.tensor([[-3.0, 1.0]])
    found = ranges_for([Scheme(), TUNED], module, others)
    assert list(found) == [TUNED] and found[TUNED].of("relu", "0") == (-6.0, 6.0)
    assert ranges_for([Scheme(), TUNED], module, others, SOME) == {TUNED: SOME}
