"""From the probabilities of a search to the likeliest discrete network within a latency."""

# L layers, H heads, K kinds

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from sys import maxsize

from torch import Tensor

from cost_models.latency_term import KindLatency, MixtureLatency
from nas.binarise import KindsPerLayer, kind_column, likeliest_others

_SMALLEST_P = 1e-30  # a probability of 0 forbids nothing: it only comes last


@dataclass(frozen=True, slots=True)
class _Choice:
    """Kinds of the first layers, their seconds, the logarithm of their probability and their largest message."""

    seconds: float
    log_likelihood: float
    kinds: KindsPerLayer
    largest_bytes: int


def binarise_within(
    p_LHK: Tensor, latency: MixtureLatency, budget_s: float, keep: str = "relu_softmax"
) -> KindsPerLayer:
    """The likeliest choice between `keep` and each head's likeliest other kind that takes at most `budget_s`.

    Likelihood is the product over heads of the chosen kind's probability. Seconds are exact: a kind's presence counts
    once a layer, so that two kept heads are cheaper in one layer than in two. Within a layer the heads that gain most
    by keeping are kept; over the layers every undominated sum is tried, for each bound on the largest message that
    slow start tells apart. That is the optimum for two kinds. Raises ValueError naming the cheapest choice when the
    budget is below it.
    """
    p = p_LHK.detach().double().cpu()
    column = kind_column(latency.kinds, keep)
    others = likeliest_others(p, latency.kinds, column)
    offers = [
        _layer_choices(p_HK, latency.kinds, column, other, costs)
        for p_HK, other, costs in zip(p.tolist(), others, latency.layers, strict=True)
    ]
    found: list[_Choice] = []
    for most_bytes, ramp_s in latency.ramps or ((maxsize, 0.0),):
        partial = [_Choice(latency.base_s + ramp_s, 0.0, (), 0)]
        for layer in offers:
            small = [offer for offer in layer if offer.largest_bytes <= most_bytes]
            partial = _undominated(_joined(before, offer) for before in partial for offer in small)
        found += partial
    affordable = [choice for choice in found if choice.seconds <= budget_s]
    if not affordable:
        cheapest_s = min(choice.seconds for choice in found)
        message = f"no choice of kinds takes at most {budget_s:g} s on {latency.network}; the cheapest takes"
        raise ValueError(f"{message} {cheapest_s:.4g} s")
    return max(affordable, key=lambda choice: choice.log_likelihood).kinds


def _layer_choices(
    p_HK: list[list[float]], kinds: Sequence[str], column: int, others: Sequence[str], costs: Mapping[str, KindLatency]
) -> list[_Choice]:
    """For every number of kept heads in one layer, the likeliest heads to keep."""
    kept = [log(max(p_K[column], _SMALLEST_P)) for p_K in p_HK]
    other = [log(max(p_K[kinds.index(kind)], _SMALLEST_P)) for p_K, kind in zip(p_HK, others, strict=True)]
    by_gain = sorted(range(len(p_HK)), key=lambda head: other[head] - kept[head])
    choices = []
    for count in range(len(p_HK) + 1):
        keeping = set(by_gain[:count])
        chosen = tuple(kinds[column] if head in keeping else kind for head, kind in enumerate(others))
        counts = {kind: chosen.count(kind) for kind in dict.fromkeys(chosen)}
        seconds = sum(costs[kind].seconds(heads) for kind, heads in counts.items())
        largest_bytes = max(costs[kind].largest(heads) for kind, heads in counts.items())
        likelihood = sum(kept[head] if head in keeping else other[head] for head in range(len(p_HK)))
        choices.append(_Choice(seconds, likelihood, (chosen,), largest_bytes))
    return choices


def _joined(before: _Choice, layer: _Choice) -> _Choice:
    return _Choice(
        before.seconds + layer.seconds,
        before.log_likelihood + layer.log_likelihood,
        (*before.kinds, *layer.kinds),
        max(before.largest_bytes, layer.largest_bytes),
    )


def _undominated(choices: Iterable[_Choice]) -> list[_Choice]:
    """Choices that no other beats in both seconds and likelihood."""
    front: list[_Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.seconds, -choice.log_likelihood)):
        if not front or choice.log_likelihood > front[-1].log_likelihood:
            front.append(choice)
    return front
