"""Networks whose weights nobody draws: for readings that look at shapes only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

# What initialisation does to a parameter, in place. Anything not named here is done as usual, which is slower only.
_DISTRIBUTIONS = {"bernoulli_", "exponential_", "log_normal_", "normal_", "uniform_"}
_ARITHMETIC = {"add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "sub_", "zero_"}
_WRITES = _DISTRIBUTIONS | _ARITHMETIC


class Undrawn(TorchFunctionMode):
    """While active, what would be written into a parameter in place is not: a new network's weights hold anything.

    Drawing random weights is most of what building a network takes. Tensors that are no parameters (position codes,
    index tables, drop rates) are computed as usual, so that a constructor which reads their values goes the same way.
    Torch's random generator is left as it is.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """The written tensor as it is, or what `func` gives."""
        given: Mapping[str, Any] = kwargs or {}
        target = args[0] if args else given.get("tensor")
        if isinstance(target, nn.Parameter) and _writes(func):
            return target
        return func(*args, **given)


def _writes(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return name in _WRITES or (name.endswith("_") and getattr(func, "__module__", "") == "torch.nn.init")
