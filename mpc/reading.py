"""The shape reading: what a module would send, from shapes and visibility alone; no data, no parties, no CrypTen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpc import rows  # noqa: F401 - importing registers the table
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.scheme import Weights
from mpc.table import Row
from mpc.tensor import Reading, SecureTensor, meta, module_sites
from mpc.trace import Operation, Trace


class ShapeReading(Reading):
    """Follows shapes; nothing is computed."""

    def run_row(self, entry: Row, operation: Operation, args: Any, kwargs: Any) -> None:
        """Nothing to compute."""

    def move(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Shapes alone."""
        return func(*meta(args), **meta(kwargs))

    def hold(self, moved: Tensor) -> None:
        """Nothing to hold."""


def shape_reading(
    module: nn.Module,
    input_shape: tuple[int, ...],
    weights: Weights = "private",
    ranges: Ranges = NOTHING_DECLARED,
) -> Trace:
    """The secure operations of one forward pass of `module` on a secret input of `input_shape`.

    The module is neither run on data nor changed; it must be in evaluation mode. Raises SecretError where it does what
    shares cannot do, ValueError where it is in training mode.
    """
    _demand_evaluation(module)
    reading = ShapeReading(ranges)
    with module_sites(module, reading):
        secret = reading.wrap(input_shape, None, "secret")
        shared = weight_tensors(module) if weights == "private" else {}
        wrapped: dict[str, Tensor] = {
            name: reading.wrap(tensor.shape, None, "weight") for name, tensor in shared.items()
        }
        output = torch.func.functional_call(module, wrapped, (secret,))
    _demand_secret(output)
    return Trace(tuple(reading.operations))


def weight_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Floating parameters and buffers by name, each once: what the model owner shares. Index buffers stay public."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _demand_evaluation(module: nn.Module) -> None:
    if module.training:
        raise ValueError("the module is in training mode; call model.eval() before a secure reading")


def _demand_secret(output: object) -> None:
    if not isinstance(output, SecureTensor):
        raise ValueError(f"the module returned {type(output).__name__}, not one tensor that depends on its input")
