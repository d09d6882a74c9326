"""The record store: what goes in comes out, killed writers do no harm, doubtful values are refused."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.machine import this_machine
from bench.records import TornRecordWarning, append, machines, of_one_machine, plain, read

ROW = {"record": "sample", "seconds": [0.25, 0.5]}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "samples.jsonl"


def test_rows_come_back_in_order_with_schema_and_kind_first(store: Path) -> None:
    append(store, {"seconds": 1.0, "record": "sample"})
    append(store, {"record": "fit", "name": "é"})
    assert [list(record) for record in read(store)] == [["schema", "record", "seconds"], ["schema", "record", "name"]]
    assert read(store, "fit") == [{"schema": 1, "record": "fit", "name": "é"}]


def test_numpy_and_torch_values_are_stored_as_numbers(store: Path) -> None:
    append(
        store, {"record": "r", "a": np.float32(0.5), "b": torch.tensor(3), "c": np.arange(2), "d": (np.bool_(True),)}
    )
    assert read(store) == [{"schema": 1, "record": "r", "a": 0.5, "b": 3, "c": [0, 1], "d": [True]}]


def test_a_value_with_to_json_is_stored_as_that(store: Path) -> None:
    append(store, {"record": "r", "machine": this_machine(), "path": Path("runs") / "x"})
    assert read(store)[0]["machine"] == this_machine().to_json()
    assert read(store)[0]["path"] == "runs/x"


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan"), torch.tensor([1.0, -math.inf])])
def test_values_that_are_not_finite_are_refused_by_field(store: Path, value: Any) -> None:
    with pytest.raises(ValueError, match=r"record\.error\.largest"):
        append(store, {"record": "r", "error": {"largest": value}})
    assert not store.exists()


@pytest.mark.parametrize("value", [{1: 2}, {1, 2}, object()])
def test_values_without_a_json_form_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="value"):
        plain(value, "value")


def test_a_record_must_name_its_kind(store: Path) -> None:
    with pytest.raises(ValueError, match="kind"):
        append(store, {"seconds": 1})


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_unknown_schemas_are_refused(store: Path, schema: Any) -> None:
    append(store, ROW)
    with store.open("a") as file:
        file.write(json.dumps({"schema": schema, "record": "sample"}) + "\n")
    with pytest.raises(ValueError, match=f"line 2 has schema {schema}; this program reads schema 1"):
        read(store)


@given(cut=st.integers(min_value=1, max_value=10_000))
def test_a_row_cut_at_any_byte_is_kept_aside_and_the_rest_survives(cut: int, tmp_path_factory: Any) -> None:
    store = tmp_path_factory.mktemp("cut") / "samples.jsonl"
    append(store, ROW)
    first = store.read_bytes()
    append(store, ROW)
    whole = store.read_bytes()
    kept = len(first) + 1 + cut % (len(first) - 2)  # from one byte of the row to all but its brace and newline
    store.write_bytes(whole[:kept])
    with pytest.warns(TornRecordWarning, match=r"samples\.jsonl\.torn"):
        assert len(read(store)) == 1
    assert store.read_bytes() == first
    assert store.with_name("samples.jsonl.torn").read_bytes() == whole[len(first) : kept] + b"\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(store)) == 1


def test_appending_after_a_torn_row_does_not_join_the_two(store: Path) -> None:
    append(store, ROW)
    with store.open("ab") as file:
        file.write(b'{"schema":1,"rec')
    with pytest.warns(TornRecordWarning):
        append(store, ROW)
    assert len(read(store)) == 2


def test_a_row_that_lacks_only_its_newline_is_whole(store: Path) -> None:
    append(store, ROW)
    store.write_bytes(store.read_bytes()[:-1])
    append(store, ROW)
    assert len(read(store)) == 2


def test_a_damaged_row_before_the_last_is_an_error_with_its_line(store: Path) -> None:
    append(store, ROW)
    store.write_bytes(b"{broken\n" + store.read_bytes())
    with pytest.raises(ValueError, match="line 1 is damaged"):
        read(store)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        read(tmp_path / "nowhere.jsonl")


def test_records_of_different_machines_are_told_apart() -> None:
    here = {"record": "sample", "machine": {"label": "a", "cores": 2}}
    there = {"record": "sample", "machine": "b"}
    assert machines([here, there, here]) == {"a": [here, here], "b": [there]}
    assert of_one_machine([here, here]) == [here, here]
    with pytest.raises(ValueError, match="2 machines cannot be merged: a; b"):
        of_one_machine([here, there])
    with pytest.raises(ValueError, match="names no machine"):
        machines([{"record": "sample"}])
