"""The architecture of a vision transformer as a value: small, validated, hashable, with a JSON round trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from models.kinds import kind_named, unknown_name

Activation = Literal["gelu", "relu", "identity"]
Residual = Literal["mpcvit", "pre_norm"]

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """One transformer block: the attention kind of every head, width of a head, hidden width of the MLP.

    Raises ValueError for an unknown kind or activation, no heads, or a width below 1.
    """

    kinds: tuple[str, ...]
    head_dim: int
    mlp_width: int
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        if isinstance(self.kinds, str):
            raise ValueError(f"kinds names one attention kind a head: write ({self.kinds!r},) * heads")
        object.__setattr__(self, "kinds", tuple(self.kinds))
        if not self.kinds:
            raise ValueError("a block has at least one head: give one attention kind a head")
        for kind in self.kinds:
            kind_named(kind)
        demand_counts(self, "head_dim", "mlp_width")
        if self.activation not in get_args(Activation):
            raise unknown_name("activation", self.activation, get_args(Activation))

    @property
    def heads(self) -> int:
        """Heads of the block."""
        return len(self.kinds)

    @property
    def attention_width(self) -> int:
        """Width of the queries of all heads together; it need not be the width of the stream."""
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class ViTSpec:
    """A vision transformer with a class token and learnable positions.

    `residual` is MPCViT's (the middle LayerNorm replaces the stream) or timm's standard pre-norm block. `linformer_k`
    None means round(0.3 tokens). Raises ValueError where the pieces do not fit, with what would.
    """

    image_px: int
    patch_px: int
    dim: int
    classes: int
    blocks: tuple[BlockSpec, ...]
    in_channels: int = 3
    residual: Residual = "mpcvit"
    qkv_bias: bool = False
    linformer_k: int | None = None
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        demand_counts(self, "image_px", "patch_px", "dim", "classes", "in_channels")
        if self.image_px % self.patch_px:
            divisors = ", ".join(str(px) for px in range(1, self.image_px + 1) if self.image_px % px == 0)
            raise ValueError(f"patch_px {self.patch_px} does not divide image_px {self.image_px}; these do: {divisors}")
        if not self.blocks:
            raise ValueError("a network has at least one block")
        if self.residual not in get_args(Residual):
            raise unknown_name("residual", self.residual, get_args(Residual))
        if self.linformer_k is not None:
            demand_counts(self, "linformer_k")
            if self.linformer_k > self.tokens:
                raise ValueError(f"linformer_k {self.linformer_k} exceeds the {self.tokens} tokens; choose less")

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_px // self.patch_px) ** 2 + 1

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads of every block."""
        return tuple(block.heads for block in self.blocks)

    @property
    def kinds_per_block(self) -> tuple[tuple[str, ...], ...]:
        """Attention kind of every head of every block."""
        return tuple(block.kinds for block in self.blocks)

    def with_kinds(self, kinds: str | Sequence[Sequence[str]]) -> ViTSpec:
        """The same network with other attention kinds: one for all heads, or one for every head of every block.

        Raises ValueError where the heads do not match this spec.
        """
        rows = [[kinds] * heads for heads in self.heads] if isinstance(kinds, str) else kinds
        given = tuple(len(row) for row in rows)
        if given != self.heads:
            raise ValueError(f"kinds are given for heads {given} by block, the network has {self.heads}")
        blocks = tuple(replace(block, kinds=tuple(row)) for block, row in zip(self.blocks, rows, strict=True))
        return replace(self, blocks=blocks)

    def to_json(self) -> dict[str, Any]:
        """A record of plain values."""
        values = asdict(self)
        values["blocks"] = [{**block, "kinds": list(block["kinds"])} for block in values["blocks"]]
        return {"schema": SCHEMA, "record": "spec", **values}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ViTSpec:
        """The spec that `to_json` wrote; ValueError for another record or schema, and for unknown or missing fields."""
        if (record.get("schema"), record.get("record")) != (SCHEMA, "spec"):
            got = f"{record.get('record')!r} of schema {record.get('schema')!r}"
            raise ValueError(f"want a record 'spec' of schema {SCHEMA}, got {got}")
        values = {key: value for key, value in record.items() if key not in ("schema", "record")}
        demand_fields(cls, values)
        for block in values["blocks"]:
            demand_fields(BlockSpec, block)
        return cls(**{**values, "blocks": tuple(BlockSpec(**block) for block in values["blocks"])})


def demand_counts(spec: object, *names: str) -> None:
    """Raises ValueError unless each of these attributes of `spec` is a whole number >= 1."""
    for name in names:
        value = getattr(spec, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")


def demand_fields(cls: type[Any], values: Mapping[str, Any]) -> None:
    """Raises ValueError for a name in `values` that is no field of the dataclass `cls`, and for one that lacks."""
    known = [field.name for field in fields(cls)]
    for name in values:
        if name not in known:
            raise unknown_name(f"field of {cls.__name__}", name, known)
    required = [field.name for field in fields(cls) if field.default is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{cls.__name__} lacks {', '.join(missing)}")
