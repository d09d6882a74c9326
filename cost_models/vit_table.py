"""Latency tables of vision transformers: kinds, heads, their width, width of the MLP, depth, width of the stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from cost_models.latency_table import LatencyTable, LatencyTables, Slot
from cost_models.linear import Cost, CostModel
from models.spec import BlockSpec, ViTSpec
from models.undrawn import Undrawn
from models.vit import VisionTransformer
from mpc.reading import shape_reading
from mpc.scheme import Weights
from mpc.trace import Trace

Alternatives = Sequence[BlockSpec | None]  # None: the block, or its branch, is left out

LEFT_OUT = "left out"
_BLOCKS_A_READING = 8  # a reading holds the weights of its network


def vit_trace(spec: ViTSpec, batch: int = 1, weights: Weights = "private") -> Trace:
    """The trace of the vision transformer that `spec` describes. torch's random numbers are left as they were."""
    with Undrawn():
        model = VisionTransformer(spec).eval()
    return shape_reading(model, (batch, spec.in_channels, spec.image_px, spec.image_px), weights)


def vit_table(spec: ViTSpec, blocks: Sequence[Alternatives], cost_model: CostModel, batch: int = 1) -> LatencyTable:
    """A slot for every block of the largest network, with the blocks that may stand there.

    Blocks of `spec` itself are not used: only what stands around them is. A block costs the same wherever it stands, so
    that all alternatives are read as blocks of a few networks, each once.
    """
    base, costs = _read(spec, [block for slot in blocks for block in slot], cost_model, batch)
    slots = (
        Slot(
            f"blocks.{place}",
            tuple(f"{attention_label(block)}, {mlp_label(block)}" if block else LEFT_OUT for block in slot),
            tuple(costs[block][0] + costs[block][1] if block else _nothing(cost_model) for block in slot),
        )
        for place, slot in enumerate(blocks)
    )
    return LatencyTable(base, tuple(slots), cost_model)


def vit_branch_table(
    spec: ViTSpec,
    attention: Sequence[Alternatives],
    mlp: Sequence[Alternatives],
    cost_model: CostModel,
    batch: int = 1,
) -> LatencyTable:
    """Two slots for every block: its attention, with the first norm, and its MLP, with the second.

    Of an alternative for attention only kinds and head_dim count, of one for the MLP only mlp_width and activation. A
    block without either is left out. Raises ValueError where attention and MLP are given for different depths.
    """
    if len(attention) != len(mlp):
        raise ValueError(f"attention is given for {len(attention)} blocks, the MLP for {len(mlp)}")
    base, costs = _read(spec, [block for slot in (*attention, *mlp) for block in slot], cost_model, batch)
    nothing = _nothing(cost_model)
    slots: list[Slot] = []
    for place, (attentions, mlps) in enumerate(zip(attention, mlp, strict=True)):
        attention_names = tuple(attention_label(block) if block else LEFT_OUT for block in attentions)
        mlp_names = tuple(mlp_label(block) if block else LEFT_OUT for block in mlps)
        attention_costs = tuple(costs[block][0] if block else nothing for block in attentions)
        mlp_costs = tuple(costs[block][1] if block else nothing for block in mlps)
        slots.append(Slot(f"blocks.{place}.attn", attention_names, attention_costs))
        slots.append(Slot(f"blocks.{place}.mlp", mlp_names, mlp_costs))
    return LatencyTable(base, tuple(slots), cost_model)


def vit_tables(
    spec: ViTSpec, dims: Sequence[int], blocks: Sequence[Alternatives], cost_model: CostModel, batch: int = 1
) -> LatencyTables:
    """`vit_table` for every width of the stream; the width is the outer choice."""
    tables = tuple(vit_table(replace(spec, dim=dim), blocks, cost_model, batch) for dim in dims)
    return LatencyTables("dim", tuple(str(dim) for dim in dims), tables)


def attention_label(block: BlockSpec) -> str:
    """For example `2 relu_softmax + 1 scaling of 32`: kinds in the order of the heads, and their width."""
    runs = " + ".join(f"{len(list(heads))} {kind}" for kind, heads in groupby(block.kinds))
    return f"{runs} of {block.head_dim}"


def mlp_label(block: BlockSpec) -> str:
    """For example `mlp 768 gelu`."""
    return f"mlp {block.mlp_width} {block.activation}"


def _nothing(cost_model: CostModel) -> Cost:
    return Cost.zero(cost_model.scheme.parties)


def _read(
    spec: ViTSpec, blocks: Iterable[BlockSpec | None], cost_model: CostModel, batch: int
) -> tuple[Cost, dict[BlockSpec, tuple[Cost, Cost]]]:
    """Cost of what stands around the blocks; and of both branches of every block, by block."""
    different = list(dict.fromkeys(block for block in blocks if block is not None)) or [spec.blocks[0]]
    costs: dict[BlockSpec, tuple[Cost, Cost]] = {}
    for start in range(0, len(different), _BLOCKS_A_READING):
        together = tuple(different[start : start + _BLOCKS_A_READING])
        trace = vit_trace(replace(spec, blocks=together), batch, cost_model.scheme.weights)
        for place, block in enumerate(together):
            attention, mlp = _branches(trace, f"blocks.{place}")
            costs[block] = (cost_model.cost(attention), cost_model.cost(mlp))
    around = Trace(tuple(operation for operation in trace.operations if not operation.site.startswith("blocks.")))
    return cost_model.cost(around), costs


def _branches(trace: Trace, site: str) -> tuple[Trace, Trace]:
    """A block's operations up to its second norm, and from there on."""
    operations = trace.within(site).operations
    second = next(i for i, operation in enumerate(operations) if operation.site == f"{site}.norm2")
    return Trace(operations[:second]), Trace(operations[second:])
