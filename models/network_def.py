"""ViT-ResNAS's text form of a network: a tuple of one embedding, blocks and reductions, and one head.

`(0, d)` is a linear patch embedding, `(4, d)` and `(5, d, m)` a convolutional stem with 24 or m channels inside;
`(1, (d, heads, head_dim), (d, mlp_width), exists)` a transformer block, whose last entry 0 takes it out;
`(3, d_in, d_out)` a spatial reduction; `(2, d, classes)` the head.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from models.spec import BlockSpec
from models.staged_spec import Stage, StagedSpec

_LINEAR, _BLOCK, _HEAD, _REDUCTION, _STEM, _FLEXIBLE_STEM = range(6)
_STEM_CHANNELS = 24  # of an embedding of type 4
_SHAPES = {
    _LINEAR: "(0, dim)",
    _BLOCK: "(1, (dim, heads, head_dim), (dim, mlp_width), exists)",
    _HEAD: "(2, dim, classes)",
    _REDUCTION: "(3, dim_in, dim_out)",
    _STEM: "(4, dim)",
    _FLEXIBLE_STEM: "(5, dim, channels)",
}
_EXAMPLES = {_BLOCK: (1, (1, 1, 1), (1, 1), 1), _LINEAR: (0, 1), _STEM: (4, 1), _FLEXIBLE_STEM: (5, 1, 1)}
_EXAMPLES |= {_HEAD: (2, 1, 1), _REDUCTION: (3, 1, 1)}


def parse_network_def(
    text: str, image_px: int = 224, patch_px: int = 14, class_tokens: int = 1, name: str = ""
) -> StagedSpec:
    """The network that `text` defines, blocks that are taken out kept with their flag; every head is a softmax.

    Raises ValueError that names the entry that is wrong and what was expected there.
    """
    entries = _entries(text)
    _demand_order([entry[0] for entry in entries])
    embedding, head = entries[0], entries[-1]
    stages = _stages(embedding[1], entries[1:-1])
    if head[1] != stages[-1].dim:
        raise ValueError(f"the head {head} takes {head[1]} channels, the network gives {stages[-1].dim}")
    channels = {_LINEAR: None, _STEM: _STEM_CHANNELS}.get(embedding[0], embedding[-1])
    return StagedSpec(image_px, patch_px, head[2], stages, channels, class_tokens, name=name)


def write_network_def(spec: StagedSpec) -> str:
    """The text that `parse_network_def` reads, without image, patch and tokens; ValueError where it cannot say it."""
    blocks = [block for stage in spec.stages for block in stage.blocks]
    if any(set(block.kinds) != {"softmax"} or block.activation != "gelu" for block in blocks):
        raise ValueError("a network_def knows softmax heads and GELU only; keep this spec as JSON")
    first, last = spec.stages[0].dim, spec.stages[-1].dim
    entries: list[tuple[Any, ...]] = [_embedding(spec.stem_channels, first)]
    for index, stage in enumerate(spec.stages):
        if index:
            entries.append((_REDUCTION, spec.stages[index - 1].dim, stage.dim))
        for block, exists in zip(stage.blocks, stage.exists, strict=True):
            attention = (stage.dim, block.heads, block.head_dim)
            entries.append((_BLOCK, attention, (stage.dim, block.mlp_width), int(exists)))
    return str((*entries, (_HEAD, last, spec.classes)))


def _embedding(channels: int | None, dim: int) -> tuple[int, ...]:
    if channels is None:
        return (_LINEAR, dim)
    return (_STEM, dim) if channels == _STEM_CHANNELS else (_FLEXIBLE_STEM, dim, channels)


def _entries(text: str) -> list[tuple[Any, ...]]:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"cannot read the network_def: {error}; write ((4, 176), (1, ...), ..., (2, 704, 10))"
        ) from None
    if not isinstance(value, tuple) or not all(isinstance(entry, tuple) and entry for entry in value):
        raise ValueError("a network_def is a tuple of tuples: ((4, 176), (1, ...), ..., (2, 704, 10))")
    for place, entry in enumerate(value):
        _demand_entry(place, entry)
    return list(value)


def _demand_entry(place: int, entry: tuple[Any, ...]) -> None:
    kind = entry[0]
    if not isinstance(kind, int) or isinstance(kind, bool) or kind not in _SHAPES:
        raise ValueError(
            f"entry {place} of the network_def, {entry}, begins with none of {', '.join(_SHAPES.values())}"
        )
    if not _alike(entry, _EXAMPLES[kind]):
        raise ValueError(f"entry {place} of the network_def, {entry}, is not of the form {_SHAPES[kind]}")
    if kind == _BLOCK and entry[1][0] != entry[2][0]:
        raise ValueError(f"entry {place} of the network_def: attention of {entry[1][0]} channels, MLP of {entry[2][0]}")
    if kind == _BLOCK and entry[3] not in (0, 1):
        raise ValueError(f"entry {place} of the network_def ends with {entry[3]}; 1 keeps the block, 0 takes it out")


def _alike(value: Any, example: Any) -> bool:
    """Whether tuples nest alike and hold whole numbers."""
    if isinstance(example, tuple):
        same = isinstance(value, tuple) and len(value) == len(example)
        return same and all(_alike(*pair) for pair in zip(value, example, strict=True))
    return isinstance(value, int) and not isinstance(value, bool)


def _demand_order(kinds: Sequence[int]) -> None:
    inside = set(kinds[1:-1])
    if len(kinds) < 2 or kinds[0] not in (_LINEAR, _STEM, _FLEXIBLE_STEM) or kinds[-1] != _HEAD:
        raise ValueError("a network_def begins with an embedding (0, 4 or 5) and ends with a head (2)")
    if not inside <= {_BLOCK, _REDUCTION}:
        raise ValueError("between embedding and head of a network_def stand blocks (1) and reductions (3) only")


def _stages(dim: int, entries: Sequence[tuple[Any, ...]]) -> tuple[Stage, ...]:
    grouped: list[tuple[int, list[tuple[Any, ...]]]] = [(dim, [])]
    for entry in entries:
        running = grouped[-1][0]
        given = entry[1] if entry[0] == _REDUCTION else entry[1][0]
        if given != running:
            raise ValueError(f"{entry} takes {given} channels, what comes before it gives {running}")
        if entry[0] == _REDUCTION:
            grouped.append((entry[2], []))
        else:
            grouped[-1][1].append(entry)
    return tuple(
        Stage(
            width,
            tuple(BlockSpec(("softmax",) * block[1][1], block[1][2], block[2][1]) for block in blocks),
            tuple(block[3] == 1 for block in blocks),
        )
        for width, blocks in grouped
    )
