"""The architecture of a staged vision transformer (ViT-ResNAS) as a value: small, validated, hashable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from models.spec import BlockSpec, demand_counts, demand_fields

SCHEMA = 1
_RECORD = "staged_spec"


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one width and resolution. `exists` says of every block whether it is kept; left out: all of them.

    A block that is taken out costs nothing and has no parameters; it stands here because a search may bring it back.
    """

    dim: int
    blocks: tuple[BlockSpec, ...]
    exists: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        demand_counts(self, "dim")
        object.__setattr__(self, "blocks", tuple(self.blocks))
        object.__setattr__(self, "exists", tuple(self.exists) or (True,) * len(self.blocks))
        if len(self.exists) != len(self.blocks):
            raise ValueError(f"a stage of {len(self.blocks)} blocks has {len(self.exists)} flags; give one a block")


@dataclass(frozen=True, slots=True)
class StagedSpec:
    """A pyramid: an embedding, stages of transformer blocks, between them reductions to half the resolution.

    `stem_channels` is the width inside the convolutional stem, None a linear patch embedding. `class_tokens` is 2 with
    a distillation token. Raises ValueError where the pieces do not fit, with what would.
    """

    image_px: int
    patch_px: int
    classes: int
    stages: tuple[Stage, ...]
    stem_channels: int | None = None
    class_tokens: int = 1
    in_channels: int = 3
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        demand_counts(self, "image_px", "patch_px", "classes", "in_channels")
        if self.class_tokens not in (1, 2):
            raise ValueError(f"class_tokens is 1, or 2 with a distillation token, got {self.class_tokens!r}")
        if not any(any(stage.exists) for stage in self.stages):
            raise ValueError("a network has at least one block that exists")
        if self.stem_channels is not None:
            demand_counts(self, "stem_channels")
            if self.patch_px % 2:
                raise ValueError(
                    f"a convolutional stem halves the image first: patch_px must be even, got {self.patch_px}"
                )
        step_px = self.patch_px * 2 ** (len(self.stages) - 1)
        if self.image_px % step_px:
            near = [px for px in (self.image_px // step_px * step_px, -(-self.image_px // step_px) * step_px) if px]
            raise ValueError(
                f"image_px {self.image_px} is no multiple of {step_px}, patch times reductions; "
                f"near are {', '.join(map(str, near))}"
            )
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if after.dim < before.dim:
                raise ValueError(f"a reduction cannot narrow the stream from {before.dim} to {after.dim} channels")

    @property
    def grids(self) -> tuple[int, ...]:
        """Patches along one side in every stage."""
        return tuple(self.image_px // self.patch_px // 2**index for index in range(len(self.stages)))

    @property
    def tokens(self) -> tuple[int, ...]:
        """Patches and class tokens in every stage."""
        return tuple(grid**2 + self.class_tokens for grid in self.grids)

    @property
    def blocks(self) -> Iterator[BlockSpec]:
        """The blocks that exist."""
        for stage in self.stages:
            yield from (block for block, exists in zip(stage.blocks, stage.exists, strict=True) if exists)

    def canonical(self) -> StagedSpec:
        """The same network without the blocks that are taken out: equal networks are equal specs."""

        def kept(stage: Stage) -> Stage:
            pairs = zip(stage.blocks, stage.exists, strict=True)
            return Stage(stage.dim, tuple(block for block, exists in pairs if exists))

        return replace(self, stages=tuple(kept(stage) for stage in self.stages))

    def with_kinds(self, kind: str) -> StagedSpec:
        """The same network with another attention kind, the same for all heads."""

        def changed(stage: Stage) -> Stage:
            blocks = (replace(block, kinds=(kind,) * block.heads) for block in stage.blocks)
            return replace(stage, blocks=tuple(blocks))

        return replace(self, stages=tuple(changed(stage) for stage in self.stages))

    def to_json(self) -> dict[str, Any]:
        """A record of plain values."""
        return {"schema": SCHEMA, "record": _RECORD, **asdict(self)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> StagedSpec:
        """The spec that `to_json` wrote; ValueError for another record or schema, and for unknown or missing fields."""
        if (record.get("schema"), record.get("record")) != (SCHEMA, _RECORD):
            got = f"{record.get('record')!r} of schema {record.get('schema')!r}"
            raise ValueError(f"want a record {_RECORD!r} of schema {SCHEMA}, got {got}")
        values = {key: value for key, value in record.items() if key not in ("schema", "record")}
        demand_fields(cls, values)
        return cls(**{**values, "stages": tuple(_stage(stage) for stage in values["stages"])})


def _stage(values: Mapping[str, Any]) -> Stage:
    demand_fields(Stage, values)
    for block in values["blocks"]:
        demand_fields(BlockSpec, block)
    return Stage(**{**values, "blocks": tuple(BlockSpec(**block) for block in values["blocks"])})
