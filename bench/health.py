"""Health of the fixed-point arithmetic of a run: ranges and domains, and how many elements truncation may have ruined.

One function for every workload, so that a key means the same in every record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bench.secure_run import SecureRun
from mpc.domains import observe_domains
from mpc.fixed_point import expected_wraps
from mpc.scheme import Scheme
from mpc.trace import Trace
from mpc.traffic import WORD_BYTES, Correlation


def health_of(
    module: nn.Module, inputs: Tensor, run_or_runs: SecureRun | Sequence[SecureRun], shadow: bool = True
) -> dict[str, Any]:
    """What is known about the arithmetic of one run of `module` on `inputs`, or of runs on all their batches.

    `shadow` runs the plain reading on the same inputs, which only a test may: where it is False nothing but the
    scheme's own check sees values. Keys:

    * `ranges`: "checked securely" where the scheme counted, else "checked by a plain shadow", else "unchecked".
    * `checked`: how many functions the shadow looked at, and `outside`: its rows of those that left their domain (under
      the tuned scheme their range). None without a shadow.
    * `outside_securely`: values outside their ranges by the scheme's own count, summed over runs; None without one.
    * `declared`: the ranges that the tuned protocols were given.
    * `truncated`: elements that one run (of several the first) truncates on shares.
    * `expected_wraps`: elements that this is expected to ruin over all runs, each counted once however often it was
      repeated, if every truncated value were as large as the largest that the shadow saw. 0 with dealer truncation,
      None at three parties and without a shadow.
    """
    runs = (run_or_runs,) if isinstance(run_or_runs, SecureRun) else tuple(run_or_runs)
    scheme, ranges = runs[0].scheme, runs[0].ranges
    rows = None
    if shadow:
        with torch.no_grad():
            rows = observe_domains(module, inputs.clone(), scheme, ranges)
    counted = [run.outside for run in runs if run.outside is not None]
    seen = "unchecked" if rows is None else "checked by a plain shadow"
    truncated = [truncated_elements(run.trace, scheme) for run in runs]
    return {
        "ranges": "checked securely" if counted else seen,
        "checked": None if rows is None else len(rows),
        "outside": None if rows is None else [row for row in rows if not row["inside"]],
        "outside_securely": sum(counted) if counted else None,
        "declared": ranges.to_json(),
        "truncated": truncated[0],
        "expected_wraps": _wraps(scheme, sum(truncated), None if rows is None else _largest(rows, inputs)),
    }


def truncated_elements(trace: Trace, scheme: Scheme) -> int:
    """Elements that one pass divides on shares, where a wrap can ruin them; 0 with dealer truncation.

    Counted from the table: what is local under `scheme` costs a correlation under its sibling, where dealers truncate
    (tuned) or three parties count wraps (crypten). Not counted are shifts at one precision inside piecewise functions
    of the tuned scheme: they fail 2^f times less often.
    """
    if scheme.name == "tuned":
        if scheme.truncation == "dealer":
            return 0
        listed = _correlations(trace, replace(scheme, truncation="dealer"), "truncation")
        return sum(prod(correlation.sizes[0]) for correlation in listed)
    listed = _correlations(trace, replace(scheme, parties=3), "wraps")
    return sum(correlation.dealer_bytes // WORD_BYTES for correlation in listed)


def _correlations(trace: Trace, scheme: Scheme, kind: str) -> list[Correlation]:
    every = (event for _, events in trace.events(scheme) for event in events)
    return [event for event in every if isinstance(event, Correlation) and event.kind == kind]


def _largest(rows: Iterable[Mapping[str, Any]], inputs: Tensor) -> float:
    """The largest magnitude of inputs and of arguments that the shadow saw."""
    seen = [abs(float(row[end])) for row in rows for end in ("low", "high")]
    return max([float(inputs.abs().max()), *seen])


def _wraps(scheme: Scheme, truncated: int, largest: float | None) -> float | None:
    if truncated == 0:
        return 0.0
    if scheme.parties != 2 or largest is None:
        return None
    return expected_wraps(largest, truncated, scheme.precision_bits)
