"""Declared ranges in a file: written by one run, read by another, refused where they would mean something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.range_files import ranges_named, save_ranges
from bench.running import ranges_for
from mpc.ranges import NOTHING_DECLARED, Ranges
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


@pytest.mark.parametrize("held", ["{", '{"record": "network", "schema": 1}', '[{"site": "act"}]', '"calibrated"'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, held: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(held)
    with pytest.raises(ValueError, match=r"holds no ranges|need site, op, low and high"):
        ranges_named(str(path), [TUNED])


def test_ranges_are_calibrated_for_tuned_schemes_alone() -> None:
    module, others = nn.Sequential(nn.ReLU()).eval(), torch.tensor([[-3.0, 1.0]])
    found = ranges_for([Scheme(), TUNED], module, others)
    assert list(found) == [TUNED] and found[TUNED].of("relu", "0") == (-6.0, 6.0)
    assert ranges_for([Scheme(), TUNED], module, others, SOME) == {TUNED: SOME}
