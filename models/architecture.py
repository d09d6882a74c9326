"""What the two forms of our networks have in common: a spec, plain or staged, to JSON and to a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.spec import ViTSpec
from models.staged import StagedTransformer
from models.staged_spec import StagedSpec
from models.vit import VisionTransformer

Spec = ViTSpec | StagedSpec
Network = VisionTransformer | StagedTransformer


def spec_from_json(record: Mapping[str, Any]) -> Spec:
    """The spec that either class's `to_json` wrote; ValueError for any other record."""
    return (StagedSpec if record.get("record") == "staged_spec" else ViTSpec).from_json(record)


def network_of(
    spec: Spec,
    attn_dropout: float = 0.0,
    drop_path: float = 0.0,
    patch_head: bool = False,
    batch_norm: bool = True,
) -> Network:
    """The network of `spec`, with fresh weights; `patch_head` and `batch_norm` are for staged ones.

    Raises ValueError for a patch head of a network without stages, which has no patches to label at its end.
    """
    if isinstance(spec, StagedSpec):
        return StagedTransformer(spec, attn_dropout, drop_path, patch_head, batch_norm)
    if patch_head:
        raise ValueError("a patch head belongs to a staged network (resnas:); leave it out")
    return VisionTransformer(spec, attn_dropout, drop_path)
