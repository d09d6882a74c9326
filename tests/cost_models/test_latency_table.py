from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.machine import this_machine
from cost_models.latency_table import LatencyTable, LatencyTables, Slot
from cost_models.linear import POOLED, Cost, CostModel, InNetwork, Spread
from cost_models.vit_table import vit_branch_table, vit_table, vit_tables, vit_trace
from models.spec import BlockSpec, ViTSpec
from mpc.network import LOOPBACK, network
from mpc.scheme import Scheme
from mpc.traffic import PhaseTraffic

COMPUTE = {"rounds": 2e-3, "ring_bytes": 8e-9, "macs": 1e-9, "operations": 1e-4, "far_bytes": 3e-9}
INSIDE = {POOLED: InNetwork(2e-5, 1.1), "relu": InNetwork(1e-4, 0.9)}
SCHEMES = [Scheme(), Scheme(transport="direct"), Scheme("tuned", transport="direct"), Scheme(parties=3)]
LINKS = [LOOPBACK, network("cheetah-lan"), network("cheetah-wan"), network("20mbit/80ms")]
SPEC = ViTSpec(16, 4, 24, 10, (BlockSpec(("softmax",), 8, 24),), residual="pre_norm")
ALTERNATIVES = (
    BlockSpec(("softmax",) * 3, 8, 24),
    BlockSpec(("relu_softmax", "scaling"), 16, 96, "relu"),
    BlockSpec(("linformer", "softmax"), 8, 48),
    None,
)
BLOCKS = (ALTERNATIVES, ALTERNATIVES, ALTERNATIVES[:2])


def cost_model(scheme: Scheme) -> CostModel:
    spread = Spread(0.05, 0.1, 1e-4, (-1.5, -0.7, 0.7, 1.5))
    return CostModel({POOLED: COMPUTE}, scheme, this_machine().to_json(), spread, INSIDE, wake_s=3e-5)


def chosen(spec: ViTSpec, blocks: Sequence[BlockSpec | None]) -> ViTSpec:
    return replace(spec, blocks=tuple(block for block in blocks if block))


@pytest.fixture(scope="module", params=SCHEMES, ids=lambda scheme: scheme.label)
def table(request: pytest.FixtureRequest) -> LatencyTable:
    return vit_table(SPEC, BLOCKS, cost_model(request.param))


def test_a_table_is_the_cost_model_of_the_whole_network(table: LatencyTable) -> None:
    draw = random.Random(0)
    choices = [[draw.randrange(len(slot)) for slot in BLOCKS] for _ in range(12)]
    traces = [vit_trace(chosen(SPEC, [s[c] for s, c in zip(BLOCKS, row, strict=True)])) for row in choices]
    for link in LINKS:
        exact_s = [table.cost_model.seconds(trace, table.scheme, link).p50_s for trace in traces]
        np.testing.assert_allclose(table.seconds(choices, link), exact_s, rtol=1e-12)
    online = [trace.traffic(table.scheme).online for trace in traces]
    assert table.bytes(choices).tolist() == [max(traffic.bytes) for traffic in online]
    assert table.rounds(choices).tolist() == [max(traffic.rounds) for traffic in online]
    assert table.hops(choices).tolist() == [max(traffic.hops) for traffic in online]
    assert [table.cost(row).online for row in choices] == online


def test_branches_are_chosen_apart_and_widths_of_the_stream_too() -> None:
    scheme, link = SCHEMES[2], network("cheetah-wan")
    heads = [(BlockSpec(("softmax",) * n, 8, 24), None)[:2] for n in (1, 2)]
    mlps: list[tuple[BlockSpec | None, ...]] = [(BlockSpec(("softmax",), 8, width), None) for width in (24, 72)]
    table = vit_branch_table(SPEC, heads, mlps, cost_model(scheme))
    assert [slot.name for slot in table.slots] == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
    assert table.slots[2].choices == ("2 softmax of 8", "left out")
    assert table.slots[3].choices == ("mlp 72 gelu", "left out")
    both = replace(SPEC, blocks=(BlockSpec(("softmax",), 8, 24), BlockSpec(("softmax",) * 2, 8, 72)))
    second = replace(SPEC, blocks=both.blocks[1:])
    exact_s = [cost_model(scheme).seconds(vit_trace(spec), scheme, link).p50_s for spec in (both, second)]
    np.testing.assert_allclose(table.seconds([[0, 0, 0, 0], [1, 1, 0, 0]], link), exact_s, rtol=1e-12)

    tables = vit_tables(SPEC, (24, 40), BLOCKS, cost_model(scheme))
    rows = [[1, 0, 3, 1], [0, 1, 1, 0], [1, 2, 2, 1]]
    for row, seconds in zip(rows, tables.seconds(rows, link), strict=True):
        wide = replace(SPEC, dim=(24, 40)[row[0]])
        trace = vit_trace(chosen(wide, [s[c] for s, c in zip(BLOCKS, row[1:], strict=True)]))
        assert seconds == pytest.approx(cost_model(scheme).seconds(trace, scheme, link).p50_s, rel=1e-12)
        assert tables.cost(row).online == trace.traffic(scheme).online
    assert tables.bytes(rows).tolist() == [max(tables.cost(row).online.bytes) for row in rows]
    one_hot = [torch.eye(len(slot), dtype=torch.float64)[c] for slot, c in zip(BLOCKS, rows[0][1:], strict=True)]
    outer = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float(tables.expected_s(outer, one_hot, link)) == pytest.approx(tables.seconds(rows, link)[0], rel=1e-12)


def random_cost(draw: random.Random, parties: int, alike: bool) -> Cost:
    def counts(top: int) -> tuple[int, ...]:
        return (draw.randrange(top),) * parties if alike else tuple(draw.randrange(top) for _ in range(parties))

    seconds = draw.random()
    online = PhaseTraffic(counts(100), counts(10**8), counts(100))
    return Cost(seconds, seconds**2, 1, online, draw.choice([0, 10**3, 10**6, 10**7, draw.randrange(10**8)]))


def random_table(draw: random.Random, parties: int, sizes: Sequence[int], alike: bool = False) -> LatencyTable:
    slots = tuple(
        Slot(str(i), tuple(map(str, range(n))), tuple(random_cost(draw, parties, alike) for _ in range(n)))
        for i, n in enumerate(sizes)
    )
    return LatencyTable(random_cost(draw, parties, alike), slots, cost_model(Scheme(parties=parties)))


@given(
    seed=st.integers(0, 10**6),
    parties=st.sampled_from([2, 3]),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    link=st.sampled_from(LINKS),
)
def test_whatever_parts_cost_table_expectation_and_scalar_model_agree(
    seed: int, parties: int, sizes: list[int], link: Any
) -> None:
    """Busiest parties that differ from part to part, and largest messages anywhere."""
    draw = random.Random(seed)
    table = random_table(draw, parties, sizes)
    choices = np.array([[draw.randrange(n) for n in sizes] for _ in range(5)], dtype=np.int32)
    exact_s = [table.cost_model.seconds_of(table.cost(row), link).p50_s for row in choices.tolist()]
    np.testing.assert_allclose(table.seconds(choices, link), exact_s, rtol=1e-12)
    assert table.bytes(choices).tolist() == [max(table.cost(row).online.bytes) for row in choices.tolist()]
    for row, seconds in zip(choices.tolist(), exact_s, strict=True):
        one_hot = [torch.eye(n, dtype=torch.float64)[c] for n, c in zip(sizes, row, strict=True)]
        assert float(table.expected_s(one_hot, link)) == pytest.approx(seconds, rel=1e-12)


def test_more_architectures_than_are_looked_up_together() -> None:
    table = random_table(random.Random(1), 2, [20, 20, 20, 20])
    choices = np.random.default_rng(0).integers(0, 20, (40_000, 4), dtype=np.int8)
    link = network("cheetah-wan")
    seconds, sent_bytes = table.seconds(choices, link), table.bytes(choices)
    for row in (0, 16_383, 16_384, 39_999):
        cost = table.cost(choices[row].tolist())
        assert seconds[row] == pytest.approx(table.cost_model.seconds_of(cost, link).p50_s, rel=1e-12)
        assert sent_bytes[row] == max(cost.online.bytes)
    assert table.seconds(choices[:0], link).shape == (0,)


def test_expected_seconds_are_means_over_architectures() -> None:
    """Of independent slots, the largest message included; at two parties that send alike."""
    table, link = random_table(random.Random(2), 2, [3, 4], alike=True), network("cheetah-wan")
    p, q = torch.rand(3, dtype=torch.float64).softmax(0), torch.rand(4, dtype=torch.float64).softmax(0)
    pairs = [[i, j] for i in range(3) for j in range(4)]
    mean_s = sum(float(p[i] * q[j]) * s for (i, j), s in zip(pairs, table.seconds(pairs, link), strict=True))
    assert float(table.expected_s([p, q], link)) == pytest.approx(mean_s, rel=1e-12)


def test_gradients_point_to_the_cheaper_choice() -> None:
    table, link = vit_table(SPEC, BLOCKS, cost_model(Scheme())), network("cheetah-wan")
    logits = [torch.zeros(len(slot), requires_grad=True) for slot in BLOCKS]
    table.expected_s([x.softmax(0) for x in logits], link).backward()  # type: ignore[no-untyped-call]
    for slot, x in enumerate(logits):
        each = [[0] * slot + [choice] + [0] * (2 - slot) for choice in range(len(x))]
        assert x.grad is not None
        assert int(x.grad.argmin()) == int(np.argmin(table.seconds(each, link)))


def test_a_table_is_kept_with_its_scheme_and_machine(tmp_path: Path) -> None:
    tables = vit_tables(SPEC, (24, 40), BLOCKS, cost_model(SCHEMES[2]))
    table, link, rows = tables.tables[0], network("cheetah-wan"), [[0, 1, 1], [3, 2, 0]]
    table.save(tmp_path / "table.json")
    read = LatencyTable.load(tmp_path / "table.json")
    assert (read.base, read.slots, read.scheme, read.machine) == (table.base, table.slots, SCHEMES[2], table.machine)
    assert read.seconds(rows, link).tolist() == table.seconds(rows, link).tolist()
    tables.save(tmp_path / "tables.json")
    wide = [[1, *row] for row in rows]
    both = LatencyTables.load(tmp_path / "tables.json")
    assert both.seconds(wide, link).tolist() == tables.seconds(wide, link).tolist()
    with pytest.raises(ValueError, match="want a record 'latency_table' of schema 1, got 'latency_tables'"):
        LatencyTable.load(tmp_path / "tables.json")


def test_choices_that_are_not_there_are_refused_with_those_that_are() -> None:
    table = random_table(random.Random(0), 2, [2, 3])
    with pytest.raises(ValueError, match=r"row 1 has choice 3 at slot '1'; it has: 0 0, 1 1, 2 2"):
        table.seconds([[0, 0], [0, 3]], LOOPBACK)
    with pytest.raises(ValueError, match="row 0 has choice -1 at slot '0'"):
        table.bytes([[-1, 0]])
    with pytest.raises(ValueError, match=r"shape \(1, 3\).*each of the 2 slots: 0, 1"):
        table.seconds([[0, 0, 0]], LOOPBACK)
    with pytest.raises(ValueError, match="whole numbers, not float64"):
        table.rounds([[0.0, 1.0]])
    with pytest.raises(ValueError, match=r"the slots have choices: \[2, 3\]"):
        table.expected_s([torch.rand(2), torch.rand(2)], LOOPBACK)
    tables = LatencyTables("dim", ("24",), (table,))
    with pytest.raises(ValueError, match="dim has no choice 1; it has: 0 24"):
        tables.seconds([[1, 0, 0]], LOOPBACK)
    with pytest.raises(ValueError, match="differs from the first"):
        LatencyTables("dim", ("24", "32"), (table, random_table(random.Random(0), 2, [2, 4])))
    with pytest.raises(ValueError, match="choices of different names"):
        Slot("s", ("a", "a"), (table.base, table.base))
