from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.secure_run import run_module
from cost_models.observations import Observation, OperationSamples, operation_seconds
from mpc.ledger import MessageLog, Span
from mpc.parties import Parties
from mpc.scheme import Scheme
from mpc.trace import Operand, Operation, Trace

RELU = Operation("relu", (Operand((3,), "secret"),), (3,))
OBSERVED = Observation("relu", "3", Trace((RELU,)), Scheme(), (0.5, 2.0, 0.25))


def log(party: int, *until_s: float) -> MessageLog:
    spans = tuple(Span("relu", "", 0.0, 0.0, 0.0, until) for until in until_s)
    return MessageLog(party, 2, (), online_s=9.0, dealer_s=0.0, spans=spans)


def test_operation_seconds_by_hand() -> None:
    # 1, 2 and 4 s at one party, 3, 0.5 and 3 s at the other; what comes after the trace is nobody's.
    trace = Trace((RELU,) * 3)
    assert operation_seconds(trace, [log(0, 1, 3, 7, 8), log(1, 3, 3.5, 6.5)]) == pytest.approx([2.0, 1.25, 3.5])
    assert operation_seconds(Trace(()), [log(0)]) == []


def test_a_log_that_is_too_short_for_the_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="a log of 1 operations cannot time a trace of 2"):
        operation_seconds(Trace((RELU,) * 2), [log(0, 1, 2), log(1, 1)])


@pytest.mark.parties
@pytest.mark.parametrize("fixture", ["two_parties", "tuned_parties"])
def test_seconds_of_all_operations_add_up_to_the_online_seconds(request: Any, fixture: str) -> None:
    parties: Parties = request.getfixturevalue(fixture)
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 4)).eval()
    run = run_module(parties, module, _inputs(), warm_up=1)
    seconds = operation_seconds(run.trace, run.logs)
    assert len(seconds) == len(run.trace.operations) and min(seconds) > 0
    ended_s = fmean(party.spans[-1].until_s for party in run.logs)
    assert sum(seconds) == pytest.approx(ended_s)
    assert ended_s <= fmean(party.online_s for party in run.logs)
    for party in run.logs:
        # Until the end of an operation have passed all operations so far, and what lay between them.
        assert [span.op for span in party.spans[: len(seconds)]] == [o.op for o in run.trace.operations]
        before_s = 0.0
        for span in party.spans:
            assert span.until_s >= before_s + span.online_s - 1e-9
            before_s = span.until_s
        assert before_s <= party.online_s
    assert sum(seconds) > fmean(sum(span.online_s for span in party.spans) for party in run.logs)


def _inputs() -> Tensor:
    return torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def test_medians_over_runs() -> None:
    assert OBSERVED.median_s == 0.5
    plain = OperationSamples("relu", RELU, (1.0, 4.0))
    assert (plain.median_s, plain.usual_s, plain.steadiest_s) == (2.5, 2.5, (1.0, 4.0))
    even = OperationSamples("relu", RELU, (1.0, 4.0), (2.0, 2.5))
    assert (even.median_s, even.usual_s, even.steadiest_s) == (2.5, 2.25, (2.0, 2.5))
    with pytest.raises(ValueError, match="relu: online_s must hold positive seconds"):
        OperationSamples("relu", RELU, (1.0,), (0.0,))


@pytest.mark.parametrize("online_s", [(), (0.0,), (1.0, -1.0), (float("nan"),), (float("inf"),)])
def test_seconds_that_nothing_took_are_refused_by_name(online_s: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="relu 3: online_s must hold positive seconds"):
        replace(OBSERVED, online_s=online_s)
    with pytest.raises(ValueError, match="relu 7: online_s must hold positive seconds"):
        OperationSamples("relu 7", RELU, online_s)


def test_dealer_seconds_may_be_none_at_all_but_not_negative() -> None:
    assert replace(OBSERVED, dealer_s=(0.0, 1.0)).dealer_s == (0.0, 1.0)
    with pytest.raises(ValueError, match="relu 3: dealer_s must hold seconds >= 0"):
        replace(OBSERVED, dealer_s=(-1.0,))
