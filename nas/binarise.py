"""From the probabilities of a search to a discrete network: which heads keep the dear kind.

Ties are broken by position: of equal heads, the one in the earlier layer, then of lower index, is kept.
"""

# L layers, H heads, K kinds

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

from torch import Tensor

Mode = Literal["global", "per_layer", "layer_wise"]
KindsPerLayer = tuple[tuple[str, ...], ...]
Scores = list[list[float]]  # one for each head of each layer


def kept_count(heads: int, ratio: float) -> int:
    """Heads that keep the dear kind at `ratio`: n - int((1 - ratio) n), computed exactly, which is a ceiling.

    Unlike the paper's code, which keeps 10 of 10 heads at 0.9 because int(0.99...) is 0: the decimal number that the
    caller wrote is taken at its word. Raises ValueError for a ratio outside [0, 1].
    """
    exact = Fraction(str(ratio))
    if not 0 <= exact <= 1:
        raise ValueError(f"ratio is the share of heads that keep the dear kind, in [0, 1]; got {ratio}")
    return heads - int((1 - exact) * heads)


def binarise(
    p_LHK: Tensor, kinds: Sequence[str], ratio: float, mode: Mode = "global", keep: str = "relu_softmax"
) -> KindsPerLayer:
    """Kinds of every head: the share `ratio` likeliest to be `keep` gets it, the rest each their likeliest other kind.

    `global` ranks all L*H heads together (the paper), `per_layer` ranks within each layer and keeps as many in each
    (its ablation), `layer_wise` ranks whole layers by their mean. Raises ValueError for an unknown mode or kind.
    """
    choose = _MODES.get(mode)
    if choose is None:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(_MODES)}")
    p = p_LHK.detach().double().cpu()
    column = kind_column(kinds, keep)
    kept = choose(p[:, :, column].tolist(), ratio)
    others = likeliest_others(p, kinds, column)
    return tuple(
        tuple(keep if (layer, head) in kept else other for head, other in enumerate(row))
        for layer, row in enumerate(others)
    )


def kind_column(kinds: Sequence[str], keep: str) -> int:
    """Where `keep` stands in `kinds`; ValueError naming the searched kinds where it does not, or stands alone."""
    if keep not in kinds or len(kinds) < 2:
        raise ValueError(
            f"cannot keep {keep!r} in a search over {', '.join(kinds)}: want it and at least one other kind"
        )
    return list(kinds).index(keep)


def likeliest_others(p_LHK: Tensor, kinds: Sequence[str], column: int) -> KindsPerLayer:
    """For every head its most probable kind other than `kinds[column]`; of equal ones the first."""
    others = [index for index in range(len(kinds)) if index != column]
    return tuple(tuple(kinds[max(others, key=head.__getitem__)] for head in layer) for layer in p_LHK.tolist())


def _keep_global(scores: Scores, ratio: float) -> set[tuple[int, int]]:
    heads = [(layer, head) for layer, row in enumerate(scores) for head in range(len(row))]
    ranked = sorted(heads, key=lambda at: -scores[at[0]][at[1]])  # sorted is stable: position breaks ties
    return set(ranked[: kept_count(len(heads), ratio)])


def _keep_per_layer(scores: Scores, ratio: float) -> set[tuple[int, int]]:
    return {(layer, head) for layer, row in enumerate(scores) for _, head in _keep_global([row], ratio)}


def _keep_layer_wise(scores: Scores, ratio: float) -> set[tuple[int, int]]:
    means = [[sum(row) / len(row)] for row in scores]
    return {(layer, head) for layer, _ in _keep_global(means, ratio) for head in range(len(scores[layer]))}


_MODES: dict[str, Callable[[Scores, float], set[tuple[int, int]]]] = {
    "global": _keep_global,
    "per_layer": _keep_per_layer,
    "layer_wise": _keep_layer_wise,
}
