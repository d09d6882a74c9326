from __future__ import annotations

import pickle
from collections import defaultdict

import pytest

from models.names import build, input_shape
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from mpc.trace import Trace, forget_closed_forms, operation_traffic
from mpc.traffic import Traffic

SCHEMES = [Scheme(), Scheme(parties=3), Scheme("tuned", transport="direct"), Scheme(functions="released")]


@pytest.fixture(scope="module")
def trace() -> Trace:
    network = build("timm:deit_tiny_patch16_224?depth=2", draws=False)
    return shape_reading(network, input_shape(network))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_sums_by_count_are_sums_over_operations_one_by_one(trace: Trace, scheme: Scheme) -> None:
    forget_closed_forms()
    whole = Traffic.zero(scheme.parties)
    by_op: dict[str, Traffic] = defaultdict(lambda: Traffic.zero(scheme.parties))
    by_module: dict[str, Traffic] = defaultdict(lambda: Traffic.zero(scheme.parties))
    for operation in trace.operations:
        one = operation_traffic(operation, scheme)
        whole += one
        by_op[operation.op] += one
        by_module[operation.site] += one
    assert trace.traffic(scheme) == whole
    assert trace.by_op(scheme) == by_op
    assert trace.by_module(scheme) == by_module
    assert list(trace.by_module(scheme)) == list(by_module)  # in program order


def test_counts_leave_modules_out_and_nothing_else(trace: Trace) -> None:
    assert sum(trace.counts.values()) == len(trace.operations)
    assert {operation.site for operation in trace.counts} == {""}
    [softmax] = [operation for operation in trace.counts if operation.op == "softmax"]
    assert trace.counts[softmax] == 2


def test_the_empty_trace_sends_nothing() -> None:
    assert Trace(()).traffic(Scheme(parties=3)) == Traffic.zero(3)
    assert Trace(()).by_op(Scheme()) == {}


def test_a_trace_travels_between_processes_and_stays_equal(trace: Trace) -> None:
    trace.traffic(Scheme())
    assert pickle.loads(pickle.dumps(trace)) == trace
    assert hash(Trace(trace.operations)) == hash(trace)
