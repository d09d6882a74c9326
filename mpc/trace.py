"""What a network does under secure computation: an ordered list of secure operations and where each one happened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any, Literal

from mpc.scheme import Scheme
from mpc.traffic import Event, Traffic, tally

Visibility = Literal["secret", "weight", "public"]
Attribute = tuple[str, int | float | str | bool | tuple[int, ...] | tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Operand:
    """One input of an operation: its shape and who can see it.

    A `weight` is a secret that stays the same between inputs.
    """

    shape: tuple[int, ...]
    visibility: Visibility

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Operation:
    """One secure operation: its row in the table (`op`), operands, output shape, attributes and module (`site`)."""

    op: str
    operands: tuple[Operand, ...]
    output: tuple[int, ...]
    attributes: tuple[Attribute, ...] = ()
    site: str = ""

    def __getitem__(self, attribute: str) -> Any:
        """The value of a named attribute; KeyError where the operation has none of that name."""
        return dict(self.attributes)[attribute]

    def get(self, attribute: str, default: Any = None) -> Any:
        """The value of a named attribute, `default` where the operation has none of that name."""
        return dict(self.attributes).get(attribute, default)

    @property
    def elements(self) -> int:
        """Number of output elements."""
        return prod(self.output)


@dataclass(frozen=True)
class Trace:
    """The secure operations of one forward pass, in program order, independent of scheme and network.

    A network repeats few operations often, so that sums over a trace go by `counts`.
    """

    operations: tuple[Operation, ...]

    @cached_property
    def counts(self) -> Mapping[Operation, int]:
        """How often each operation happens, modules disregarded (`site` is empty), in order of first appearance."""
        distinct, numbered = self._distinct
        return dict(zip(distinct, Counter(numbered).values(), strict=True))

    @cached_property
    def _distinct(self) -> tuple[tuple[Operation, ...], tuple[int, ...]]:
        """Operations without module, each once, and for every operation of the trace which of them it is."""
        numbers: dict[Operation, int] = {}
        numbered = tuple([numbers.setdefault(_anywhere(operation), len(numbers)) for operation in self.operations])
        return tuple(numbers), numbered

    def traffic(self, scheme: Scheme) -> Traffic:
        """Exact traffic of the whole pass. Sharing the input and revealing the result are not part of a trace."""
        parts = (operation_traffic(operation, scheme) * times for operation, times in self.counts.items())
        return sum(parts, Traffic.zero(scheme.parties))

    def events(self, scheme: Scheme) -> Iterator[tuple[Operation, tuple[Event, ...]]]:
        """Every operation with the messages and correlations that it costs under `scheme`."""
        for operation in self.operations:
            yield operation, operation_events(operation, scheme)

    def by_op(self, scheme: Scheme) -> dict[str, Traffic]:
        """Traffic summed over operations of one name."""
        return self._grouped(scheme, lambda operation: operation.op)

    def by_module(self, scheme: Scheme) -> dict[str, Traffic]:
        """Traffic summed over operations of one module (dotted names as in `named_modules`)."""
        return self._grouped(scheme, lambda operation: operation.site)

    def within(self, site: str) -> Trace:
        """The operations inside module `site` and its children."""
        return Trace(tuple(o for o in self.operations if o.site == site or o.site.startswith(site + ".")))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of linear layers, convolutions and matrix products, biases not counted."""
        return sum(
            operation["macs"] for operation in self.operations if operation.op in ("linear", "matmul", "convolution")
        )

    def _grouped(self, scheme: Scheme, key: Callable[[Operation], str]) -> dict[str, Traffic]:
        distinct, numbered = self._distinct
        each = [operation_traffic(operation, scheme) for operation in distinct]
        groups: dict[str, Counter[int]] = defaultdict(Counter)
        for number, operation in zip(numbered, self.operations, strict=True):
            groups[key(operation)][number] += 1
        return {name: _weighted_sum(each, times) for name, times in groups.items()}


def _weighted_sum(each: Sequence[Traffic], times: Mapping[int, int]) -> Traffic:
    """The sum of `each` that `times` numbers, as often as it says; at least one."""
    parts = [each[number] * count if count > 1 else each[number] for number, count in times.items()]
    return sum(parts[1:], parts[0])


def _anywhere(operation: Operation) -> Operation:
    """The operation without its module, on which its traffic does not depend."""
    if not operation.site:
        return operation
    return Operation(operation.op, operation.operands, operation.output, operation.attributes)


def operation_events(operation: Operation, scheme: Scheme) -> tuple[Event, ...]:
    """Messages and correlations of one operation under `scheme`, from its row in the table."""
    return _events(_anywhere(operation), scheme)


def operation_traffic(operation: Operation, scheme: Scheme) -> Traffic:
    """Exact traffic of one operation under `scheme`."""
    return _traffic(_anywhere(operation), scheme)


def forget_closed_forms() -> None:
    """Compute every operation's messages anew from now on; for measuring how long that takes."""
    _events.cache_clear()
    _traffic.cache_clear()


@lru_cache(maxsize=100_000)
def _events(operation: Operation, scheme: Scheme) -> tuple[Event, ...]:
    from mpc.table import form_of, row_named  # the table imports this module for its types

    return tuple(form_of(row_named(operation.op), scheme).sends(scheme, operation))


@lru_cache(maxsize=100_000)
def _traffic(operation: Operation, scheme: Scheme) -> Traffic:
    return tally(_events(operation, scheme), scheme.parties, scheme.transport)
