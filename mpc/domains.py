"""Which values a module's functions meet, seen by the plain reading, against the domains where shares are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any

import torch
from torch import Tensor, nn

from mpc import functions as f
from mpc import operators  # noqa: F401 - importing registers our own operators with torch
from mpc.arguments import mapped
from mpc.fixed_point import largest_magnitude
from mpc.ranges import DEFAULT, NOTHING_DECLARED, Ranges
from mpc.reading import weight_tensors
from mpc.scheme import Scheme
from mpc.table import Row
from mpc.tensor import Reading, SecureTensor, module_sites
from mpc.trace import Operation
from mpc.tuned.approximations import EXP_RELATIVE_BOUND

Span = tuple[float, float]
_ANY = (-inf, inf)
_RING = (nan, nan)  # stands for the magnitudes that survive a product, which depend on the fraction bits

# CrypTen's reciprocal is off by 3 % at 50, by 30 % at 150 (worst of 2,000 elements); from 244 on it is garbage, because
# its start, exp(1 - 2 x), leaves the domain of its own exp.
_RELEASED_RECIPROCAL = (1e-3, 50.0)
_RELEASED_ROOT = (0.1, 100.0)


@dataclass(frozen=True, slots=True)
class _Domain:
    """Where a function is right, as documented and as released."""

    documented: Span
    released: Span


# A row of zeros is right at any reciprocal, so sums of rows can leave only the upper end.
_DOMAINS = {
    "softmax gap": _Domain((f.EXP_DOMAIN[0], 0.0), (-512.0, 0.0)),
    "softmax sum": _Domain((0.0, f.POSITIVE_DOMAIN[1]), (0.0, _RELEASED_RECIPROCAL[1])),
    "exp": _Domain(f.EXP_DOMAIN, (-512.0, f.EXP_DOMAIN[1])),
    "layer_norm variance": _Domain(f.VARIANCE_DOMAIN, _RELEASED_ROOT),
    "reciprocal": _Domain(f.POSITIVE_DOMAIN, _RELEASED_RECIPROCAL),
    "inverse_square_root": _Domain(f.POSITIVE_DOMAIN, _RELEASED_ROOT),
    "row_normalize mean": _Domain((0.0, f.POSITIVE_DOMAIN[1]), _ANY),
    "row_normalize sum": _Domain(_ANY, (0.0, _RELEASED_RECIPROCAL[1])),
    "gelu": _Domain(_RING, (-1.5, 1.5)),
    "relu": _Domain(_RING, _RING),
    "linear": _Domain(_RING, _RING),
}

# What is observed, and the operation whose range it is under the tuned scheme.
_RANGED = {
    "softmax gap": "softmax",
    "exp": "exp",
    "layer_norm variance": "layer_norm",
    "reciprocal": "reciprocal",
    "inverse_square_root": "inverse_square_root",
    "row_normalize mean": "row_normalize",
    **{name: name for name in ("gelu", "silu", "sigmoid", "tanh", "abs", "maximum", "relu")},
}
_POSITIVE = {"layer_norm", "reciprocal", "inverse_square_root", "row_normalize"}
_MARGIN = 2.0  # how much wider a declared range is than what calibration saw
_SMALLEST = 2.0**-14  # positive values below keep no digits with 16 fraction bits
_GAP_MARGIN = 1.5  # the same for softmax, whose range costs a round for every doubling

Observed = dict[str, Tensor]


def _softmax(x: Tensor, dim: int, *_: object) -> Observed:
    gap = x - x.amax(dim, keepdim=True)
    return {"softmax gap": gap, "softmax sum": gap.exp().sum(dim), "softmax score": x}


def _layer_norm(x: Tensor, shape: list[int], *_: object) -> Observed:
    return {"layer_norm variance": x.flatten(-len(shape)).var(-1, unbiased=False)}


def _row_normalize(x: Tensor, eps: float) -> Observed:
    mean = x.mean(-1)
    return {"row_normalize mean": mean[mean > 0], "row_normalize sum": x.sum(-1)}  # rows of zeros stay zeros


def _itself(name: str) -> Callable[..., Observed]:
    return lambda x, *_, **__: {name: x}


# What is seen of the arguments of each row, and under which names.
_OBSERVED: dict[str, Callable[..., Observed]] = {
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "row_normalize": _row_normalize,
    "reciprocal": lambda x: {"reciprocal": x.abs()},
    **{
        name: _itself(name)
        for name in (
            *("exp", "inverse_square_root", "gelu", "silu", "sigmoid", "tanh", "abs", "maximum", "relu", "linear"),
        )
    },
}


class ShadowReading(Reading):
    """The plain values behind secure tensors: the rows that the secure reading runs, module by module, in the clear."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: dict[tuple[str, str], Span] = {}

    def run_row(self, entry: Row, operation: Operation, args: Any, kwargs: Any) -> Tensor:
        """The result in floating point; spans of the arguments are kept."""
        plain_args, plain_kwargs = _plain(args), _plain(kwargs)
        if entry.name in _OBSERVED:
            for name, values in _OBSERVED[entry.name](*plain_args, **plain_kwargs).items():
                if values.numel():
                    low, high = float(values.min()), float(values.max())
                    before = self.spans.get((self.site, name), (low, high))
                    self.spans[self.site, name] = (min(low, before[0]), max(high, before[1]))
        result: Tensor = self.running(*plain_args, **plain_kwargs)
        return result

    def move(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Move the values."""
        return func(*_plain(args), **_plain(kwargs))


def _plain(tree: Any) -> Any:
    return mapped(lambda leaf: leaf.shares if isinstance(leaf, SecureTensor) else leaf, tree)


def _spans(module: nn.Module, inputs: Tensor, scheme: Scheme) -> dict[tuple[str, str], Span]:
    with module_sites(module, reading := ShadowReading()):
        shared = weight_tensors(module) if scheme.weights == "private" else {}
        weights: dict[str, Tensor] = {
            name: reading.wrap(tensor.shape, tensor.detach().float(), "weight") for name, tensor in shared.items()
        }
        torch.func.functional_call(module, weights, (reading.wrap(inputs.shape, inputs.float(), "secret"),))
    return reading.spans


def observe_domains(
    module: nn.Module, inputs: Tensor, scheme: Scheme, ranges: Ranges = NOTHING_DECLARED
) -> list[dict[str, Any]]:
    """The span of every function's argument on these inputs, by module, and whether it lies inside the scheme's domain.

    Runs the plain reading once; values are looked at here only, never at a party. Under the tuned scheme a function's
    domain is its declared range, or the default.
    """
    rows = []
    for (site, name), (low, high) in _spans(module, inputs, scheme).items():
        domain = _domain(name, site, scheme, ranges)
        if domain is not None:
            inside = domain[0] <= low and high <= domain[1]
            rows.append({"op": name, "site": site, "low": low, "high": high, "domain": list(domain), "inside": inside})
    return rows


def _domain(name: str, site: str, scheme: Scheme, ranges: Ranges) -> Span | None:
    """Where the function that is observed as `name` in module `site` is right; None where it is right anywhere."""
    if scheme.name == "tuned":
        op = _ranged(scheme).get(name)
        if op is not None:
            default = DEFAULT["softmax_max_free"] if name == "softmax score" else DEFAULT[op]
            return ranges.of(op, site) or default
        domain = _RING if name == "linear" else _ANY
    elif name in _DOMAINS:
        domain = _DOMAINS[name].released if scheme.functions == "released" else _DOMAINS[name].documented
    else:
        return None
    if isnan(domain[0]):
        domain = (-largest_magnitude(scheme), largest_magnitude(scheme))
    return None if domain == _ANY else domain


def _ranged(scheme: Scheme) -> dict[str, str]:
    if scheme.functions != "max_free":
        return _RANGED
    return {**{name: op for name, op in _RANGED.items() if op != "softmax"}, "softmax score": "softmax"}


def declared_ranges(module: nn.Module, inputs: Tensor, scheme: Scheme) -> Ranges:
    """Ranges for the tuned scheme from a calibration pass on plain `inputs`, wider than what was seen.

    Not for the inputs that are then computed on: those nobody may see. Raises ValueError for another scheme.
    """
    if scheme.name != "tuned":
        raise ValueError(f"ranges are declared for scheme tuned, not for {scheme.name}")
    rows: dict[tuple[str, str], Span] = {}
    for (site, name), span in _spans(module, inputs, scheme).items():
        op = _ranged(scheme).get(name)
        if op is not None:
            rows[site, op] = _widened(op, name, span)
    return Ranges(tuple((site, op, low, high) for (site, op), (low, high) in rows.items()))


def _widened(op: str, name: str, span: Span) -> Span:
    low, high = span
    if op in _POSITIVE:
        widened = max(low / _MARGIN, _SMALLEST)
        return widened, max(min(high * _MARGIN, DEFAULT[op][1]), 2 * widened)
    if name == "softmax gap":
        return min(low, -1.0) * _GAP_MARGIN, 0.0
    if op == "exp" and high <= 0:
        return min(low, -1.0) * _GAP_MARGIN, 0.0
    seen = max(abs(low), abs(high), 2.0**-8)
    bound = _MARGIN * seen
    if op in ("exp", "softmax"):  # e^x is fitted up to a bound that its margin must not pass
        bound = max(seen, min(bound, EXP_RELATIVE_BOUND))
    return -bound, bound
