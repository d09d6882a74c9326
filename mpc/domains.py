"""Which values a module's functions meet, seen by the plain reading, against the domains where shares are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpc import functions as f
from mpc.scheme import Scheme
from mpc.tensor import module_sites

aten = torch.ops.aten
Span = tuple[float, float]
_RING_SPAN = (-32768.0, 32768.0)  # magnitudes beyond this do not survive a product at 16 fraction bits

_RELEASED_RECIPROCAL = (1e-3, 667.0)
_RELEASED_ROOT = (0.1, 100.0)


def _gap(x: Tensor, dim: int, *_: object) -> Tensor:
    return x - x.amax(dim, keepdim=True)


def _variance(x: Tensor, shape: list[int], *_: object) -> Tensor:
    return x.flatten(-len(shape)).var(-1, unbiased=False)


def _mean_row(x: Tensor, eps: float) -> Tensor:
    return x.mean(-1)


def _itself(x: Tensor, *_: object) -> Tensor:
    return x


# overload -> (name, what the function's domain is about, domain as documented, domain as released)
_DOMAINS: dict[Any, tuple[str, Callable[..., Tensor], Span, Span]] = {
    aten.softmax.int: ("softmax", _gap, (f.EXP_DOMAIN[0], 0.0), (-512.0, 0.0)),
    aten._softmax.default: ("softmax", _gap, (f.EXP_DOMAIN[0], 0.0), (-512.0, 0.0)),
    aten.exp.default: ("exp", _itself, f.EXP_DOMAIN, (-512.0, 10.0)),
    aten.layer_norm.default: ("layer_norm", _variance, f.VARIANCE_DOMAIN, _RELEASED_ROOT),
    aten.reciprocal.default: ("reciprocal", torch.abs, f.POSITIVE_DOMAIN, _RELEASED_RECIPROCAL),
    aten.rsqrt.default: ("inverse_square_root", _itself, f.POSITIVE_DOMAIN, _RELEASED_ROOT),
    aten.gelu.default: ("gelu", _itself, _RING_SPAN, (-1.5, 1.5)),
    aten.relu.default: ("relu", _itself, _RING_SPAN, _RING_SPAN),
    aten.linear.default: ("linear", _itself, _RING_SPAN, _RING_SPAN),
}


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's `__init_subclass__`
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.site = ""
        self.spans: dict[tuple[str, Any], Span] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DOMAINS:
            argument = _DOMAINS[func][1](*args, **(kwargs or {}))
            low, high = float(argument.min()), float(argument.max())
            before = self.spans.get((self.site, func), (low, high))
            self.spans[self.site, func] = (min(low, before[0]), max(high, before[1]))
        elif func is aten.scaled_dot_product_attention.default:
            query, key = args[0], args[1]
            scores = query @ key.transpose(-2, -1) * ((kwargs or {}).get("scale") or query.shape[-1] ** -0.5)
            self.__torch_dispatch__(aten.softmax.int, types, (scores, -1))
        elif func is torch.ops.mpc_pareto.row_normalize.default:
            mean = _mean_row(*args)
            self.spans[self.site, func] = (float(mean.min()), float(mean.max()))
        return func(*args, **(kwargs or {}))


def observe_domains(module: nn.Module, inputs: Tensor, scheme: Scheme) -> list[dict[str, Any]]:
    """The span of every function's argument on these inputs, by module, and whether it lies inside the scheme's domain.

    Runs the plain reading once; values are looked at here only, never at a party.
    """
    from mpc import operators  # noqa: F401 - importing registers the operator

    observer = _Observer()
    with module_sites(module, observer), observer:
        module(inputs)
    return [_row(site, func, span, scheme) for (site, func), span in observer.spans.items()]


def _row(site: str, func: Any, span: Span, scheme: Scheme) -> dict[str, Any]:
    released = scheme.functions == "released"
    if func in _DOMAINS:
        name, _, documented_domain, released_domain = _DOMAINS[func]
        domain = released_domain if released else documented_domain
    else:  # a row of zeros is right at any reciprocal, so only the upper end can be left
        name, domain = "row_normalize", (0.0, _RELEASED_RECIPROCAL[1] if released else f.POSITIVE_DOMAIN[1])
    inside = domain[0] <= span[0] and span[1] <= domain[1]
    return {"op": name, "site": site, "low": span[0], "high": span[1], "domain": list(domain), "inside": inside}
