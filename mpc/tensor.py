"""SecureTensor: a tensor whose values nobody holds, and the dispatch that both readings share.

The secure reading puts CrypTen shares behind it, the shape reading puts nothing. Which row an operation takes, how it
is described and where it happened is decided here, once, from shapes and visibility alone: so both readings see the
same.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from mpc.arguments import key_of, leaves, mapped
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.table import COMPOSITES, ROWS, STRUCTURAL, Row
from mpc.trace import Operand, Operation, Visibility

aten = torch.ops.aten
_NEEDS_A_VALUE = {
    aten._local_scalar_dense.default,
    aten.item.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
}
JOINS = {aten.cat.default, aten.stack.default}
_COPIES = JOINS | {
    aten.clone.default,
    aten.constant_pad_nd.default,
    aten.flip.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.repeat.default,
    aten.roll.default,
}
# What lies behind a secure tensor may lie in memory otherwise than the contiguous tensor that it stands for.
_VIEWS = {aten.view.default, aten._unsafe_view.default}
_NO_ROW = "there is no row for it in the table of secure operations (mpc.table.row_names() lists them)"
_CONSTANTS = {
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.zeros_like.default,
    aten.ones_like.default,
}


_DESCRIBED: dict[Any, Operation] = {}  # operations by function and argument shapes, without module and range
_DESCRIBED_LIMIT = 100_000


def forget_descriptions() -> None:
    """Describe every operation anew from now on; for measuring how long that takes."""
    _DESCRIBED.clear()


class SecretError(ValueError):
    """A module did something with a secret that shares cannot do; the message names module and operation."""


class SecureTensor(torch.Tensor):
    """A float tensor known by shape and visibility only; `shares` is None in the shape reading."""

    shares: Any
    visibility: Visibility
    reading: Reading
    aliases: weakref.WeakSet[SecureTensor]

    @staticmethod
    def __new__(
        cls: type[SecureTensor], shape: Sequence[int], shares: Any, visibility: Visibility, reading: Reading
    ) -> SecureTensor:
        """Wrap `shares` of a tensor of `shape`; strides are always reported as contiguous."""
        cpu = torch.device("cpu")
        tensor = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=torch.float32, device=cpu)
        tensor.shares, tensor.visibility, tensor.reading = shares, visibility, reading
        tensor.aliases = weakref.WeakSet([tensor])
        return tensor

    def __init__(self, *_: object) -> None:
        """Everything is set in `__new__`."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operation on secrets: look its row up, refuse it by name, or let torch decompose it."""
        kwargs = kwargs or {}
        first = next(a for a in leaves((args, kwargs)) if isinstance(a, SecureTensor))
        return first.reading.dispatch(func, args, kwargs)

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        """Shape and visibility; there are no values to print."""
        return f"SecureTensor(shape={tuple(self.shape)}, visibility={self.visibility!r})"

    def numpy(self, **_: object) -> NoReturn:
        """Always raises SecretError."""
        self.reading.refuse("numpy()", "it needs the value of a secret")

    def tolist(self) -> NoReturn:
        """Always raises SecretError."""
        self.reading.refuse("tolist()", "it needs the value of a secret")


class Reading(ABC):
    """One pass over a module. Subclasses say what a row and a structural operation do with shares."""

    def __init__(self, ranges: Ranges = NOTHING_DECLARED) -> None:
        self.ranges = ranges
        self.operations: list[Operation] = []
        self.site = ""
        self.running: Any = None  # the torch operation whose row runs

    @abstractmethod
    def run_row(self, entry: Row, operation: Operation, args: Any, kwargs: Any) -> Any:
        """Shares of the result of a row."""

    @abstractmethod
    def move(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The outputs of an operation that only moves data: tensors of the right shapes that `hold` understands."""

    def hold(self, moved: Tensor) -> Any:
        """Shares of one output of `move`."""
        return moved

    def wrap(self, shape: Sequence[int], shares: Any, visibility: Visibility) -> SecureTensor:
        """A secure tensor that belongs to this reading."""
        return SecureTensor(shape, shares, visibility, self)

    def refuse(self, what: str, why: str) -> NoReturn:
        """Raise SecretError for an operation in the module that is running."""
        raise SecretError(f"{what} in module {self.site or '(top)'}: {why}")

    def dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation of the forward pass."""
        if func in COMPOSITES:
            result = self._located(func, COMPOSITES[func], args, kwargs)
            if result is not NotImplemented:
                return result
        if func in STRUCTURAL:
            return self._structural(func, args, kwargs)
        if func in ROWS:
            return self._row(ROWS[func], func, args, kwargs)
        if func in _CONSTANTS:
            return func(torch.empty(args[0].shape), *args[1:], **kwargs)
        if func in _NEEDS_A_VALUE:
            self.refuse(str(func), "it needs the value of a secret; compute it without data-dependent control flow")
        if func._schema.is_mutable:
            return self._in_place(func, args, kwargs)
        result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            self.refuse(str(func), _NO_ROW)
        return result

    def _located(self, func: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call `function`; what it refuses is refused with the operation and the module."""
        try:
            return function(*args, **kwargs)
        except SecretError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise SecretError(f"{func} in module {self.site or '(top)'}: {error}") from error

    def _row(self, entry: Row, func: Any, args: Any, kwargs: Any) -> SecureTensor:
        described = self._described(entry, func, args, kwargs)
        declared = self.ranges.of(entry.name, self.site)
        attributes = described.attributes
        if declared is not None:
            attributes = tuple(sorted({**dict(attributes), "range": declared}.items()))
        operation = Operation(entry.name, described.operands, described.output, attributes, self.site)
        self.operations.append(operation)
        self.running = func
        shares = self._located(func, self.run_row, (entry, operation, args, kwargs), {})
        return self.wrap(operation.output, shares, "secret")

    def _described(self, entry: Row, func: Any, args: Any, kwargs: Any) -> Operation:
        """The operation by its shapes; remembered, unless a public tensor takes part, whose values may matter."""
        key = None
        if not any(isinstance(a, Tensor) and not isinstance(a, SecureTensor) for a in leaves((args, kwargs))):
            key = (func, key_of(args, _leaf_key), key_of(kwargs, _leaf_key))
            if key in _DESCRIBED:
                return _DESCRIBED[key]
        shape = tuple(func(*meta(args), **meta(kwargs)).shape)
        if any(a.numel() == 0 for a in leaves((args, kwargs)) if isinstance(a, SecureTensor)):
            self.refuse(str(func), "a tensor without elements has nothing to compute on; leave the operation out")
        described = self._located(func, entry.describe, (shape, *args), kwargs)
        operands = tuple(_operand(a) for a in leaves((args, kwargs)) if isinstance(a, Tensor))
        operation = Operation(entry.name, operands, shape, tuple(sorted(described.items())))
        if key is not None and len(_DESCRIBED) < _DESCRIBED_LIMIT:
            _DESCRIBED[key] = operation
        return operation

    def _structural(self, func: Any, args: Any, kwargs: Any) -> Any:
        joins = func in JOINS  # every tensor is data there; elsewhere an integer tensor is an index
        sources = [a for a in leaves((args, kwargs)) if isinstance(a, Tensor) and (joins or a.is_floating_point())]
        kept = all(isinstance(a, SecureTensor) and a.visibility == "weight" for a in sources)
        outputs = self.move(aten.reshape.default if func in _VIEWS else func, args, kwargs)
        aliases = next(a for a in sources if isinstance(a, SecureTensor)).aliases

        def wrap(moved: Tensor) -> SecureTensor:
            tensor = self.wrap(moved.shape, self.hold(moved), "weight" if kept else "secret")
            if func not in _COPIES:
                aliases.add(tensor)
                tensor.aliases = aliases
            return tensor

        return mapped(wrap, outputs)

    def _in_place(self, func: Any, args: Any, kwargs: Any) -> SecureTensor:
        target = args[0]
        functional = _functional(func)
        if not isinstance(target, SecureTensor):
            self.refuse(
                str(func), "it writes a secret into a public tensor; build the result with cat or stack instead"
            )
        if functional is None:
            self.refuse(str(func), _NO_ROW)
        if any(other is not target for other in target.aliases):
            self.refuse(str(func), "it writes in place into a tensor that other views share; use the out-of-place form")
        result = self.dispatch(functional, args, kwargs)
        target.shares, target.visibility = result.shares, result.visibility
        return target


def _functional(func: Any) -> Any:
    """The out-of-place overload of an in-place one, where the table knows it."""
    packet = getattr(aten, func._schema.name.removeprefix("aten::").removesuffix("_"), None)
    overload = getattr(packet, func._overloadname, None) if packet is not None else None
    return overload if overload in ROWS or overload in STRUCTURAL or overload in COMPOSITES else None


def meta(tree: Any) -> Any:
    """The arguments of an operation with shapes in place of values."""

    def empty(leaf: Any) -> Any:
        if isinstance(leaf, SecureTensor) or (isinstance(leaf, Tensor) and leaf.is_floating_point()):
            return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")
        return leaf.to("meta") if isinstance(leaf, Tensor) else leaf

    return mapped(empty, tree)


def _leaf_key(leaf: Any) -> Any:
    """What matters of an argument: shape and visibility of a secret, type and value of anything else."""
    if isinstance(leaf, SecureTensor):
        return tuple(leaf.shape), leaf.visibility
    return type(leaf), leaf


def _operand(tensor: Tensor) -> Operand:
    visibility = tensor.visibility if isinstance(tensor, SecureTensor) else "public"
    return Operand(tuple(tensor.shape), visibility)


class Sited(Protocol):
    """Anything that wants to know which module is running."""

    site: str


@contextmanager
def module_sites(module: nn.Module, reading: Sited) -> Iterator[None]:
    """While active, `reading.site` is the dotted name of the innermost module that is running.

    Inference mode is on and the fast path of multi-head attention off, so that composite operations arrive whole.
    """
    handles = []
    stack: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            stack.append(reading.site)
            reading.site = name

        return hook

    def leave(*_: object) -> None:
        reading.site = stack.pop()

    for name, child in module.named_modules():
        handles.append(child.register_forward_pre_hook(enter(name)))
        handles.append(child.register_forward_hook(leave, always_call=False))
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
