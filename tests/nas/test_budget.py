from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch

from cost_models.latency_term import KindLatency, MixtureLatency
from nas.budget import binarise_within

KINDS = ("relu_softmax", "scaling")
LAYERS = tuple(
    {"relu_softmax": KindLatency(present_s, 0.3), "scaling": KindLatency(0.05, 0.01)} for present_s in (2.0, 1.0, 3.0)
)
LATENCY = MixtureLatency(KINDS, "cheetah-wan", base_s=5.0, layers=LAYERS, heads=(2, 2, 2))
BENDING = tuple(
    {"relu_softmax": KindLatency(s, 0.3, (0.0, 0.2, -0.3), (0, 50, size)), "scaling": KindLatency(0.05, 0.01)}
    for s, size in ((2.0, 70), (1.0, 90), (3.0, 80))
)
SLOW_START = MixtureLatency(
    KINDS, "cheetah-wan", 5.0, BENDING, (2, 2, 2), ramps=((40, 0.0), (60, 0.5), (80, 1.5), (90, 2.5))
)


@pytest.mark.parametrize("budget_s", [5.3, 7.0, 8.0, 9.5, 11.0, 20.0])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("latency", [LATENCY, SLOW_START], ids=["additive", "slow start"])
def test_the_choice_is_the_likeliest_of_all_that_fit(latency: MixtureLatency, budget_s: float, seed: int) -> None:
    p = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p_LHK = torch.stack([p, 1 - p], dim=-1)

    def likelihood(kinds: tuple[tuple[str, ...], ...]) -> float:
        return prod(
            float(p_LHK[i, h, KINDS.index(kind)]) for i, layer in enumerate(kinds) for h, kind in enumerate(layer)
        )

    everything = [(k[:2], k[2:4], k[4:]) for k in product(KINDS, repeat=6)]
    best = max((kinds for kinds in everything if latency.exact_s(kinds) <= budget_s), key=likelihood)
    assert binarise_within(p_LHK, latency, budget_s) == best


def test_a_budget_below_the_cheapest_choice_names_it() -> None:
    with pytest.raises(ValueError, match=r"at most 5 s on cheetah-wan; the cheapest takes 5\.21 s"):
        binarise_within(torch.full((3, 2, 2), 0.5), LATENCY, 5.0)
