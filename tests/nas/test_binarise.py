from __future__ import annotations

import pytest
import torch

from nas.binarise import binarise, kept_count

KINDS = ("relu_softmax", "scaling")


def _p(dear: list[list[float]]) -> torch.Tensor:
    p = torch.tensor(dear, dtype=torch.float64)
    return torch.stack([p, 1 - p], dim=-1)


@pytest.mark.parametrize(("ratio", "kept"), [(0.1, 3), (0.3, 9), (0.5, 14), (0.7, 20), (0.9, 26), (0.0, 0), (1.0, 28)])
def test_the_papers_table_for_28_heads(ratio: float, kept: int) -> None:
    assert kept_count(28, ratio) == kept


def test_a_ratio_is_the_decimal_number_it_was_written_as() -> None:
    assert kept_count(10, 0.9) == 9  # 1 - 0.9 in floating point times 10 is below 1, which would keep all 10
    assert [kept_count(10, k / 10) for k in range(11)] == list(range(11))


def test_a_ratio_outside_0_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 1\.5"):
        kept_count(4, 1.5)


def test_global_keeps_the_largest_over_all_layers() -> None:
    kinds = binarise(_p([[0.9, 0.8], [0.1, 0.7]]), KINDS, 0.5)
    assert kinds == (("relu_softmax", "relu_softmax"), ("scaling", "scaling"))


def test_per_layer_keeps_as_many_in_each() -> None:
    kinds = binarise(_p([[0.9, 0.8], [0.1, 0.7]]), KINDS, 0.5, "per_layer")
    assert kinds == (("relu_softmax", "scaling"), ("scaling", "relu_softmax"))


def test_layer_wise_keeps_whole_layers_by_mean() -> None:
    kinds = binarise(_p([[0.9, 0.1], [0.6, 0.6]]), KINDS, 0.5, "layer_wise")
    assert kinds == (("scaling", "scaling"), ("relu_softmax", "relu_softmax"))


def test_equal_heads_are_kept_from_the_first_layer_on() -> None:
    kinds = binarise(_p([[0.5, 0.5], [0.5, 0.5]]), KINDS, 0.75)
    assert kinds == (("relu_softmax", "relu_softmax"), ("relu_softmax", "scaling"))


def test_with_three_kinds_the_rest_take_their_likeliest_other() -> None:
    p = torch.tensor([[[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.1, 0.6, 0.3]]])
    assert binarise(p, ("relu_softmax", "scaling", "quad"), 0.3) == (("relu_softmax", "quad", "scaling"),)


def test_unknown_modes_and_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown mode 'local'; known: global"):
        binarise(_p([[0.5]]), KINDS, 0.5, "local")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot keep 'softmax'"):
        binarise(_p([[0.5]]), KINDS, 0.5, keep="softmax")
