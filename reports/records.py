"""What a run directory must hold for the report: its records, as types.

| file | a record | identity |
|---|---|---|
| attention.jsonl | `AttentionRecord` a line; measured, and replayed on other networks | kind, shape, scheme, network |
| networks.jsonl | `CandidateRecord` a line | name |
| calibration.json | one `CalibrationRecord` | |
| search.jsonl | `SearchEpochRecord` a line | objective, seed, epoch |
| remeasured.jsonl | `RemeasuredRecord` a line | name |
| winners.json | one `WinnerMapRecord` | |
| cross_table.json | one `CrossTableRecord` | |
| manifest.json | anything; `versions`, `machine`, `commit`, `arguments`, `seeds` are shown | |

All seconds are those of the slowest party. Accuracies, agreements and errors are fractions in 0..1. `None` means not
measured, never 0.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class PhaseRecord(TypedDict):
    """Traffic of one phase: the largest value over parties, and all of them in `per_party`."""

    rounds: int
    bytes: int
    hops: int
    per_party: list[Any]


class SpreadRecord(TypedDict):
    """Median and interquartile range of n runs, in seconds; `samples` holds the raw values where they were kept."""

    median: float
    iqr: float
    n: int


class MeasuredRecord(SpreadRecord):
    """`mode` is measured, replayed, emulated-transport or emulated-link."""

    mode: str


class IntervalRecord(TypedDict):
    """A predicted number of seconds with its 5 % and 95 % quantiles."""

    p50: float
    p05: float
    p95: float


class SchemeRecord(TypedDict):
    """`Scheme.to_json()`."""

    name: str
    parties: int
    functions: str
    dealer: str
    transport: str
    weights: str
    precision_bits: int


class ShapeRecord(TypedDict):
    """One attention layer, projections included."""

    tokens: int
    dim: int
    heads: int
    batch: int


class AttentionSeconds(TypedDict):
    """Seconds of a whole batch: online phase, dealer, both; the last two are None where the mode cannot tell."""

    online: SpreadRecord
    dealer: SpreadRecord | None
    total: SpreadRecord | None


class AttentionRecord(TypedDict):
    """One attention kind on one network: `"record": "attention"`."""

    schema: int
    record: str
    workload: str
    kind: str
    shape: ShapeRecord
    scheme: SchemeRecord
    network: str
    mode: str
    online: PhaseRecord
    offline: PhaseRecord
    setup: PhaseRecord
    seconds: AttentionSeconds
    seconds_per_image: float
    peak_bytes: int | None
    max_abs_error: float | None
    machine: dict[str, Any]


class TestedRecord(TypedDict, total=False):
    """How many images an accuracy was counted on, where that is known."""

    test_images: int


class CandidateRecord(TestedRecord):
    """One trained network: `"record": "candidate"`.

    `name` is short (it labels points, about 14 characters) and unique. `found_by` is a family such as `uniform`,
    `mpcvit/l1` or `mpcvit/latency@cheetah-wan`. `kinds` holds, for each layer, the kind of each head. `accuracy` is
    plain top-1 on `test_images` test images; the `secure_*` values come from `secure_images` images. `seconds`,
    `measured_s` and `by_op_s` are keyed by network and are online seconds for one image (batch 1); `by_op_s` splits the
    run behind `measured_s`.
    """

    schema: int
    record: str
    name: str
    found_by: str
    seed: int
    ratio: float | None
    kinds: list[list[str]]
    params: int
    macs: int
    accuracy: float
    secure_accuracy: float | None
    secure_images: int
    agreement: float | None
    max_logit_difference: float | None
    min_plain_margin: float | None
    seconds: dict[str, IntervalRecord]
    measured_s: dict[str, MeasuredRecord]
    by_op_s: dict[str, dict[str, float]]
    online: PhaseRecord
    scheme: SchemeRecord
    machine: dict[str, Any]


class EvaluationPointRecord(TypedDict):
    """One workload, the median of its runs beside its prediction with 50 % and 90 % intervals.

    `repeatability` is the relative difference between medians of two halves of the runs. A baseline is None where it
    says nothing.
    """

    what: str
    shape: Any
    network: str
    mode: str
    measured_s: float
    predicted_s: float
    p05_s: float
    p25_s: float
    p75_s: float
    p95_s: float
    repeatability: float | None
    samples_s: list[float]
    baselines: dict[str, float | None]


class ScoresRecord(TypedDict):
    """Relative errors and rank correlations over `points` workloads; `within_10` is the share within 10 %."""

    points: int
    median_error: float
    p90_error: float
    within_10: float
    spearman: float | None
    kendall: float | None


class ModelScoresRecord(ScoresRecord):
    """Scores of the cost model: shares of points inside its intervals, and how well the measurement itself repeats.

    `drift` is by how much the machine was slower in one third of the passes than in another.
    """

    coverage_90: float
    coverage_50: float
    repeatability_median: float | None
    repeatability_p90: float | None
    drift: NotRequired[float | None]


class EvaluationRecord(TypedDict):
    """One group of workloads that the cost model never saw; a baseline without scores said nothing of any of them."""

    points: list[EvaluationPointRecord]
    scores: ModelScoresRecord
    baselines: dict[str, ScoresRecord | None]


class EarlierHourRecord(TypedDict):
    """A calibration before: what takes 1 second now took `pace` seconds then."""

    frozen_at: str
    pace: float


class CalibrationRecord(TypedDict):
    """The fitted cost model and how right it is: `"record": "calibration"`, schema 4.

    `operations` holds seconds per unit of each feature for every kind of operation, `correction` what similar ones took
    beyond that, `passes` how often each was measured. `evaluation` holds the groups `operations`, `layers`, `networks`
    and `links`, those that were measured after the model was frozen; `replays` are the measurements of `links` beside a
    replay of loopback runs, in which the cost model has no part. `earlier` are calibrations of this machine before, how
    many times as long it took then for what was measured now; where there is none, `no_earlier` says why. `pace` is
    that of the test; after `calibrate --pace-only`, `read_pace` is what was read at `paced_at`, and the model is at it.
    """

    schema: int
    record: str
    operations: dict[str, dict[str, float]]
    in_networks: dict[str, dict[str, float]]
    wake_s: float
    link_spread: float | None
    threads: int
    evaluation: dict[str, EvaluationRecord]
    versions: NotRequired[dict[str, str | None]]
    earlier: NotRequired[list[EarlierHourRecord]]
    no_earlier: NotRequired[str | None]
    scheme: SchemeRecord
    machine: dict[str, Any]


class SearchEpochRecord(TypedDict):
    """One epoch of a search: `"record": "search_epoch"`; `p_relu_softmax[layer][head]` after the epoch.

    `accuracy` (validation) and the latency values are None where they were not computed.
    """

    schema: int
    record: str
    objective: str
    seed: int
    epoch: int
    loss: float
    cross_entropy: float
    latency_s: float | None
    latency_gradient_norm: float | None
    accuracy: float | None
    p_relu_softmax: list[list[float]]


class CrossRowRecord(TypedDict):
    """Networks found for one objective, run on every network."""

    found_for: str
    ratio: float | None
    seed: int
    seconds: dict[str, float]
    relu_softmax_heads: list[int]


class CrossTableRecord(TypedDict):
    """Found for one network, run on another: `"record": "cross_table"`."""

    schema: int
    record: str
    rows: list[CrossRowRecord]
    verdict: str


class SecondsRecord(IntervalRecord):
    """A prediction with its 50 % interval too, and the parts of its median."""

    p25: float
    p75: float
    compute_s: float
    delay_s: float
    transfer_s: float


class BudgetRecord(TypedDict):
    """What a network was tried for: seconds asked for, the limit within which it was chosen, whether it meets them."""

    asked_s: float
    limit_s: float
    met: bool


class CrossedRecord(TypedDict):
    """Online traffic of the busiest party."""

    rounds: int
    bytes: int
    hops: int


class _TriedRecord(TypedDict, total=False):
    """For which budget a network was measured, if for any."""

    budget: BudgetRecord


class RemeasuredRecord(_TriedRecord):
    """One network of a search's front, measured: `"record": "remeasured"`.

    `ratio` is predicted / measured, `within_90` whether the measured median lies in the 90 % interval; both and
    `predicted_s` are None where nothing was predicted.
    """

    schema: int
    record: str
    name: str
    kinds: list[list[str]]
    network: str
    mode: str
    scheme: SchemeRecord
    online: CrossedRecord
    measured_s: SpreadRecord
    predicted_s: SecondsRecord | None
    ratio: float | None
    within_90: bool | None
    machine: dict[str, Any]


class PlaneRecord(TypedDict):
    """The values of both axes, rising."""

    bandwidth_mbit: list[float]
    round_trip_ms: list[float]


class ContenderRecord(TypedDict):
    """What competes: its accuracy (None for attention kinds, which have none of their own) and what it costs."""

    name: str
    accuracy: float | None
    compute_s: float
    rounds: int
    bytes: int
    hops: int


class WinnersRecord(TypedDict):
    """One panel: who competes at `accuracy`, and for each round trip, then each bandwidth, who is fastest.

    `winner` and `runner_up` are places in `contenders`; a runner-up and its seconds are None where one competes alone.
    `too_close` says where the 90 % interval of the winner overlaps that of another.
    """

    accuracy: float | None
    accuracy_within: float | None
    contenders: list[int]
    winner: list[list[int]]
    seconds: list[list[float]]
    runner_up: list[list[int | None]]
    runner_up_seconds: list[list[float | None]]
    ratio: list[list[float | None]]
    too_close: list[list[bool]]


class ProfileRecord(TypedDict):
    """A named network and where it lies on the plane."""

    name: str
    bandwidth_mbit: float
    round_trip_ms: float


class WinnerMapRecord(TypedDict):
    """Which contender is fastest on which network, by predicted seconds: `"record": "winner_map"`."""

    schema: int
    record: str
    what: str
    accuracy_source: str | None
    plane: PlaneRecord
    profiles: list[ProfileRecord]
    contenders: list[ContenderRecord]
    panels: list[WinnersRecord]
    scheme: SchemeRecord
    machine: dict[str, Any]
