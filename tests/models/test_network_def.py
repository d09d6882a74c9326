from __future__ import annotations

import pytest

from models.network_def import parse_network_def, write_network_def
from models.resnas import STAGED_SPECS

SMALL = (
    "((5, 8, 4), (1, (8, 2, 3), (8, 16), 1), (1, (8, 1, 3), (8, 4), 0), (3, 8, 12), "
    "(1, (12, 3, 2), (12, 8), 1), (2, 12, 7))"
)


def test_a_definition_says_what_it_says() -> None:
    spec = parse_network_def(SMALL, image_px=56)
    assert [stage.dim for stage in spec.stages] == [8, 12]
    assert [stage.exists for stage in spec.stages] == [(True, False), (True,)]
    assert [(b.heads, b.head_dim, b.mlp_width) for b in spec.blocks] == [(2, 3, 16), (3, 2, 8)]
    assert (spec.stem_channels, spec.classes, spec.grids, spec.tokens) == (4, 7, (4, 2), (17, 5))


@pytest.mark.parametrize("first", ["(0, 8)", "(4, 8)", "(5, 8, 4)"])
def test_text_survives_a_round_trip(first: str) -> None:
    text = SMALL.replace("(5, 8, 4)", first)
    assert write_network_def(parse_network_def(text, image_px=56)) == text


@pytest.mark.parametrize("name", STAGED_SPECS)
def test_published_networks_survive_their_text(name: str) -> None:
    spec = STAGED_SPECS[name]
    assert parse_network_def(write_network_def(spec), name=name) == spec


def test_a_spec_with_other_attention_has_no_text() -> None:
    with pytest.raises(ValueError, match="softmax heads and GELU only; keep this spec as JSON"):
        write_network_def(parse_network_def(SMALL, image_px=56).with_kinds("scaling"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("((4, 8)", r"cannot read the network_def"),
        ("__import__('os')", r"cannot read the network_def"),
        ("(4, 8)", r"is a tuple of tuples"),
        ("([4], 8)", r"is a tuple of tuples"),
        ("((6, 8), (2, 8, 3))", r"entry 0 of the network_def, \(6, 8\), begins with none of"),
        ("(([4], 8), (2, 8, 3))", r"begins with none of"),
        ("((4, 8), (1, (8, 2), (8, 4), 1), (2, 8, 3))", r"is not of the form \(1, \(dim, heads, head_dim\)"),
        ("((4, 8, 2), (2, 8, 3))", r"is not of the form \(4, dim\)"),
        ("((4, 8.0), (2, 8, 3))", r"is not of the form \(4, dim\)"),
        ("((4, 8), (1, (8, 2, 3), (9, 4), 1), (2, 8, 3))", r"attention of 8 channels, MLP of 9"),
        ("((4, 8), (1, (8, 2, 3), (8, 4), 2), (2, 8, 3))", r"ends with 2; 1 keeps the block, 0 takes it out"),
        ("((4, 8), (1, (9, 2, 3), (9, 4), 1), (2, 9, 3))", r"takes 9 channels, what comes before it gives 8"),
        ("((4, 8), (3, 9, 12), (2, 12, 3))", r"takes 9 channels, what comes before it gives 8"),
        ("((4, 8), (1, (8, 2, 3), (8, 4), 1), (2, 9, 3))", r"head \(2, 9, 3\) takes 9 channels, the network gives 8"),
        ("((4, 8), (4, 8), (2, 8, 3))", r"stand blocks \(1\) and reductions \(3\) only"),
        ("((4, 8), (1, (8, 2, 3), (8, 4), 0), (2, 8, 3))", r"at least one block that exists"),
        ("((4, 8), (1, (8, 2, 3), (8, 4), 1), (3, 8, 4), (2, 4, 3))", r"cannot narrow the stream from 8 to 4"),
        ("((4, 8), (1, (8, 0, 3), (8, 4), 1), (2, 8, 3))", r"at least one head"),
    ],
)
def test_a_definition_that_is_none_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_network_def(text)


def test_an_image_that_does_not_halve_often_enough_says_which_do() -> None:
    with pytest.raises(ValueError, match=r"image_px 60 is no multiple of 28, .* near are 56, 84"):
        parse_network_def(SMALL, image_px=60)
