"""CrypTen's collectives over direct links: the same protocol and payload, one hop each.

What CrypTen sends at start-up and as pickled objects stays with gloo; no protocol of its sends either later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ReduceOp

from mpc.ledger import Ledger
from mpc.transport import Link, exchange_all, tag_of

_REDUCTIONS: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    ReduceOp.SUM: Tensor.add_,
    ReduceOp.BXOR: Tensor.bitwise_xor_,
    ReduceOp.PRODUCT: Tensor.mul_,
}


def use_links(links: dict[int, Link], party: int, ledger: Ledger) -> None:
    """Make CrypTen's communicator use `links` in this process; before `mpc.ledger.attach`, once."""
    from crypten.communicator.distributed_communicator import DistributedCommunicator

    collectives = _Collectives(links, party, ledger)
    for name in ("all_reduce", "all_gather", "reduce", "gather", "scatter", "broadcast", "barrier", "send", "recv"):
        setattr(DistributedCommunicator, name, _method(getattr(collectives, name)))


def _method(collective: Any) -> Any:
    """A method of the communicator: `collective` needs nothing of it."""

    def method(_: Any, *args: Any, **kwargs: Any) -> Any:
        return collective(*args, **kwargs)

    return method


class _Collectives:
    """The collectives of one party, with the arguments and results of CrypTen's communicator.

    Tensors are on the CPU. Sizes and operation are in every tag, so that parties out of step notice.
    """

    def __init__(self, links: dict[int, Link], party: int, ledger: Ledger) -> None:
        self._links = links
        self._party = party
        self._ledger = ledger

    def all_reduce(self, input: Any, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """The reduction of every party's tensors, at all of them; a list is one message."""
        tensors: Sequence[Tensor] = input if batched else [input]
        own = self._handed_over(tensors)
        received = own.new_empty((len(self._links), own.numel()))
        tag = tag_of(f"all_reduce {op}", *(tensor.shape for tensor in tensors))
        exchange_all([(link, _bytes(own), _bytes(row)) for link, row in zip(self._others, received, strict=True)], tag)
        return _cut(_reduced(own, received, op), tensors, batched)

    def reduce(self, input: Any, dst: int, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """The reduction of every party's tensors at `dst`; None elsewhere."""
        tensors: Sequence[Tensor] = input if batched else [input]
        own = self._handed_over(tensors)
        received = self._collected(own, dst, tag_of(f"reduce {op}", *(tensor.shape for tensor in tensors)))
        return None if received is None else _cut(_reduced(own, received, op), tensors, batched)

    def gather(self, tensor: Tensor, dst: int) -> list[Tensor | None]:
        """Every party's tensor at `dst`, in party order; [None] elsewhere."""
        own = self._handed_over([tensor])
        received = self._collected(own, dst, tag_of("gather", tensor.shape))
        return [None] if received is None else self._in_order(tensor, own, received)

    def all_gather(self, tensor: Tensor) -> list[Tensor | None]:
        """Every party's tensor at all parties, in party order."""
        own = self._handed_over([tensor])
        received = own.new_empty((len(self._links), own.numel()))
        messages = [(link, _bytes(own), _bytes(row)) for link, row in zip(self._others, received, strict=True)]
        exchange_all(messages, tag_of("all_gather", tensor.shape))
        return self._in_order(tensor, own, received)

    def scatter(self, scatter_list: Any, src: int, size: Any = None, device: Any = None) -> Tensor:
        """The tensor that `src` holds for this party."""
        if self._party == src:
            pieces = [self._handed_over([scatter_list[peer]]) for peer in sorted(self._links)]
            tag = tag_of("scatter", scatter_list[src].shape)
            exchange_all([(link, _bytes(p), None) for link, p in zip(self._others, pieces, strict=True)], tag)
            kept: Tensor = scatter_list[src].data
            return kept
        received = torch.empty(scatter_list[self._party].size() if size is None else size, dtype=torch.long)
        self._ledger.payload(received.nbytes)
        self._links[src].receive_into(_bytes(received), tag_of("scatter", received.shape))
        return received

    def broadcast(self, input: Any, src: int, group: Any = None, batched: bool = False) -> Any:
        """`src`'s tensors, written into everyone's."""
        tensors: Sequence[Tensor] = input if batched else [input]
        own = self._handed_over(tensors)
        tag = tag_of("broadcast", *(tensor.shape for tensor in tensors))
        if self._party == src:
            exchange_all([(link, _bytes(own), None) for link in self._others], tag)
            return input
        self._links[src].receive_into(_bytes(own), tag)
        for tensor, value in zip(tensors, _cut(own, tensors, batched=True), strict=True):
            tensor.data.copy_(value)
        return input

    def barrier(self) -> None:
        """Returns when every party has called it."""
        exchange_all([(link, b"", bytearray()) for link in self._others], tag_of("barrier"))

    def send(self, tensor: Tensor, dst: int) -> None:
        """One tensor to `dst`."""
        self._links[dst].send(_bytes(self._handed_over([tensor])), tag_of("send", tensor.shape))

    def recv(self, tensor: Tensor, src: int) -> Tensor:
        """A tensor like `tensor` from `src`."""
        received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        self._links[src].receive_into(_bytes(received), tag_of("send", tensor.shape))
        return received

    @property
    def _others(self) -> list[Link]:
        return [self._links[peer] for peer in sorted(self._links)]

    def _handed_over(self, tensors: Sequence[Tensor]) -> Tensor:
        """A flat copy of `tensors` for one message, reported to the ledger tensor by tensor."""
        parts = [tensor.detach().reshape(-1) for tensor in tensors]
        for part in parts:
            self._ledger.payload(part.nbytes)
        return torch.cat(parts)

    def _collected(self, own: Tensor, dst: int, tag: int) -> Tensor | None:
        """Everyone's flat tensor but the own, one in a row, at `dst`; None elsewhere."""
        if self._party != dst:
            self._links[dst].send(_bytes(own), tag)
            return None
        received = own.new_empty((len(self._links), own.numel()))
        exchange_all([(link, None, _bytes(row)) for link, row in zip(self._others, received, strict=True)], tag)
        return received

    def _in_order(self, tensor: Tensor, own: Tensor, received: Tensor) -> list[Tensor | None]:
        rows = dict(zip(sorted(self._links), received, strict=True)) | {self._party: own}
        return [rows[party].view(tensor.shape) for party in sorted(rows)]


def _bytes(tensor: Tensor) -> memoryview:
    shared: memoryview = tensor.numpy().data
    return shared


def _reduced(own: Tensor, received: Tensor, op: Any) -> Tensor:
    """`own` combined with every row of `received`, in place."""
    if op not in _REDUCTIONS:
        raise ValueError(f"reduction {op} does not exist over direct; choose from SUM, BXOR, PRODUCT")
    for row in received:
        _REDUCTIONS[op](own, row)
    return own


def _cut(flat: Tensor, tensors: Sequence[Tensor], batched: bool) -> Any:
    """`flat` as tensors of the shapes of `tensors`."""
    pieces = torch.split_with_sizes(flat, [tensor.numel() for tensor in tensors])
    shaped = [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]
    return shaped if batched else shaped[0]
