from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from models.spec import BlockSpec, ViTSpec

BLOCK = BlockSpec(("softmax", "scaling"), head_dim=4, mlp_width=16)
SPEC = ViTSpec(
    image_px=32, patch_px=4, dim=8, classes=10, blocks=(BLOCK, replace(BLOCK, activation="relu")), name="small"
)


def test_the_record_survives_json() -> None:
    spec = replace(SPEC, residual="pre_norm", qkv_bias=True, linformer_k=7, in_channels=1)
    assert ViTSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_is_a_key() -> None:
    again = ViTSpec.from_json(SPEC.to_json())
    assert {SPEC: 1}[again] == 1


def test_tokens_count_the_class_token() -> None:
    assert SPEC.tokens == 8 * 8 + 1


def test_with_kinds_changes_kinds_and_nothing_else() -> None:
    kinds = (("quad", "softmax"), ("scaling", "linformer"))
    changed = SPEC.with_kinds(kinds)
    assert changed.kinds_per_block == kinds
    assert changed.with_kinds(SPEC.kinds_per_block) == SPEC
    assert SPEC.with_kinds("quad").kinds_per_block == (("quad", "quad"), ("quad", "quad"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_px": 5}, r"patch_px 5 does not divide image_px 32; these do: 1, 2, 4, 8, 16, 32"),
        ({"dim": 0}, r"dim must be a whole number >= 1, got 0"),
        ({"classes": 2.5}, r"classes must be a whole number >= 1, got 2.5"),
        ({"blocks": ()}, r"at least one block"),
        ({"residual": "prenorm"}, r"unknown residual 'prenorm'; did you mean pre_norm\? Known: mpcvit, pre_norm"),
        ({"linformer_k": 66}, r"linformer_k 66 exceeds the 65 tokens"),
    ],
)
def test_a_spec_that_cannot_be_says_what_could(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ()}, r"at least one head"),
        ({"kinds": "softmax"}, r"write \('softmax',\) \* heads"),
        ({"kinds": ("softmx",)}, r"did you mean softmax\?"),
        ({"head_dim": 0}, r"head_dim must be"),
        ({"mlp_width": True}, r"mlp_width must be"),
        ({"activation": "relux"}, r"did you mean relu\?"),
    ],
)
def test_a_block_that_cannot_be_says_what_could(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BLOCK, **change)


def test_kinds_for_other_heads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"heads \(2, 1\) by block, the network has \(2, 2\)"):
        SPEC.with_kinds((("softmax", "softmax"), ("softmax",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"want a record 'spec' of schema 1, got 'spec' of schema 2"),
        ({"record": "candidate"}, r"got 'candidate'"),
        ({"image_size": 32}, r"unknown field of ViTSpec 'image_size'; did you mean image_px\?"),
        ({"blocks": [{"kinds": ["softmax"], "head_dim": 4}]}, r"BlockSpec lacks mlp_width"),
    ],
)
def test_a_record_that_is_no_spec_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTSpec.from_json({**SPEC.to_json(), **change})
