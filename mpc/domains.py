"""Which values a module's functions meet, seen by the plain reading, against the domains where shares are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpc import functions as f
from mpc import operators  # noqa: F401 - importing registers our own operators with torch
from mpc.fixed_point import largest_magnitude
from mpc.ranges import DEFAULT, NOTHING_DECLARED, Ranges
from mpc.scheme import Scheme
from mpc.tensor import module_sites
from mpc.tuned.approximations import EXP_RELATIVE_BOUND

aten = torch.ops.aten
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


def _attention(query: Tensor, key: Tensor, *_: object, scale: float | None = None, **__: object) -> Observed:
    return _softmax(query @ key.transpose(-2, -1) * (scale or query.shape[-1] ** -0.5), -1)


def _layer_norm(x: Tensor, shape: list[int], *_: object) -> Observed:
    return {"layer_norm variance": x.flatten(-len(shape)).var(-1, unbiased=False)}


def _row_normalize(x: Tensor, eps: float) -> Observed:
    mean = x.mean(-1)
    return {"row_normalize mean": mean[mean > 0], "row_normalize sum": x.sum(-1)}  # rows of zeros stay zeros


def _itself(name: str) -> Callable[..., Observed]:
    return lambda x, *_, **__: {name: x}


_OBSERVED: dict[Any, Callable[..., Observed]] = {
    aten.softmax.int: _softmax,
    aten._softmax.default: _softmax,
    aten.scaled_dot_product_attention.default: _attention,
    aten.layer_norm.default: _layer_norm,
    torch.ops.mpc_pareto.row_normalize.default: _row_normalize,
    aten.exp.default: _itself("exp"),
    aten.reciprocal.default: lambda x: {"reciprocal": x.abs()},
    aten.rsqrt.default: _itself("inverse_square_root"),
    aten.gelu.default: _itself("gelu"),
    aten.silu.default: _itself("silu"),
    aten.sigmoid.default: _itself("sigmoid"),
    aten.tanh.default: _itself("tanh"),
    aten.abs.default: _itself("abs"),
    aten.amax.default: _itself("maximum"),
    aten.relu.default: _itself("relu"),
    aten.linear.default: _itself("linear"),
}


class _Observer(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.site = ""
        self.spans: dict[tuple[str, str], Span] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _OBSERVED:
            for name, values in _OBSERVED[func](*args, **kwargs).items():
                if not values.numel():
                    continue
                low, high = float(values.min()), float(values.max())
                before = self.spans.get((self.site, name), (low, high))
                self.spans[self.site, name] = (min(low, before[0]), max(high, before[1]))
        return func(*args, **kwargs)


def _spans(module: nn.Module, inputs: Tensor) -> dict[tuple[str, str], Span]:
    observer = _Observer()
    with module_sites(module, observer), observer:
        module(inputs)
    return observer.spans


def observe_domains(
    module: nn.Module, inputs: Tensor, scheme: Scheme, ranges: Ranges = NOTHING_DECLARED
) -> list[dict[str, Any]]:
    """The span of every function's argument on these inputs, by module, and whether it lies inside the scheme's domain.

    Runs the plain reading once; values are looked at here only, never at a party. Under the tuned scheme a function's
    domain is its declared range, or the default.
    """
    rows = []
    for (site, name), (low, high) in _spans(module, inputs).items():
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
    for (site, name), span in _spans(module, inputs).items():
        op = _ranged(scheme).get(name)
        if op is not None:
            rows[site, op] = _widened(op, name, span)
    return Ranges(tuple((site, op, low, high) for (site, op), (low, high) in rows.items()))


def _widened(op: str, name: str, span: Span) -> Span:
    low, high = span
    if op in _POSITIVE:
        return max(low / _MARGIN, _SMALLEST), min(high * _MARGIN, DEFAULT[op][1])
    if name == "softmax gap":
        return min(low, -1.0) * _GAP_MARGIN, 0.0
    seen = max(abs(low), abs(high), 2.0**-8)
    bound = _MARGIN * seen
    if op in ("exp", "softmax"):  # e^x is fitted up to a bound that its margin must not pass
        bound = max(seen, min(bound, EXP_RELATIVE_BOUND))
    return -bound, bound
