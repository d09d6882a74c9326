"""Who knows what while correlations are dealt: one script for each kind, run by the dealer and by both parties.

A script draws masks and shares values computed from them. The dealer holds the keys of both parties and so knows every
value; party 1 expands its key; party 0 expands its own and gets one *correction* for each value that is not random: the
value less what party 1 drew. So only corrections travel, and only to party 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np

from mpc.tuned.prg import Prg, Ring, Words

Array = TypeVar("Array", Ring, Words)


@dataclass(slots=True)
class Drawn(Generic[Array]):
    """A random value: `share` is this party's part of it, `value` the dealer's alone."""

    share: Any
    value: Any


@dataclass(slots=True)
class FixedMask:
    """The mask of weights that stay: drawn once, used by every inference.

    `opened` is weights - mask, public after the setup; `masked` is this party's share that multiplies opened inputs.
    """

    mask: Drawn[Ring]
    opened: Ring | None = None
    masked: Ring | None = None


@dataclass
class Source(ABC):
    """One role's view of dealing: `first` for party 0; `dealt_bytes` counts corrections as they are made or skipped."""

    first: bool = True
    fixed: list[FixedMask] = field(default_factory=list)
    dealt_bytes: int = 0
    _next_fixed: int = 0

    @abstractmethod
    def ring(self, shape: tuple[int, ...]) -> Drawn[Ring]:
        """A random ring mask, its shares additive."""

    @abstractmethod
    def words(self, shape: tuple[int, ...]) -> Drawn[Words]:
        """A random mask of bits, its shares under exclusive or."""

    @abstractmethod
    def _share_ring(self, shape: tuple[int, ...], compute: Callable[[], Ring]) -> Any: ...

    @abstractmethod
    def _share_words(self, shape: tuple[int, ...], compute: Callable[[], Words]) -> Any: ...

    def share_ring(self, shape: tuple[int, ...], compute: Callable[[], Ring]) -> Any:
        """Additive share of a value that only the dealer computes."""
        self.dealt_bytes += 8 * prod(shape)
        return self._share_ring(shape, compute)

    def share_words(self, shape: tuple[int, ...], compute: Callable[[], Words]) -> Any:
        """Share under exclusive or of bits that only the dealer computes."""
        self.dealt_bytes += 8 * prod(shape)
        return self._share_words(shape, compute)

    def fix(self, shape: tuple[int, ...]) -> FixedMask:
        """Draw the mask of one more fixed weight."""
        self.fixed.append(FixedMask(self.ring(shape)))
        return self.fixed[-1]

    def next_fixed(self) -> FixedMask:
        """The mask that the next product with a fixed weight uses; inferences use them in the order of the setup."""
        if self._next_fixed >= len(self.fixed):
            raise RuntimeError(f"an inference uses more fixed weights than the {len(self.fixed)} that were set up")
        fixed = self.fixed[self._next_fixed]
        self._next_fixed += 1
        return fixed

    def restart(self) -> None:
        """The next product with a fixed weight is the first of an inference."""
        self._next_fixed = 0


class DealerSource(Source):
    """Knows both keys: party 0 under TFP, where `send` is None, or a third process, which sends corrections."""

    def __init__(self, key_0: bytes, key_1: bytes, send: Callable[[Any], None] | None = None) -> None:
        super().__init__()
        self._first, self._second, self._send = Prg(key_0), Prg(key_1), send

    def ring(self, shape: tuple[int, ...]) -> Drawn[Ring]:
        """Mask and value."""
        share = self._first.ring(shape)
        return Drawn(share, share + self._second.ring(shape))

    def words(self, shape: tuple[int, ...]) -> Drawn[Words]:
        """Mask and value."""
        share = self._first.words(shape)
        return Drawn(share, share ^ self._second.words(shape))

    def _share_ring(self, shape: tuple[int, ...], compute: Callable[[], Ring]) -> Any:
        return self._sent(compute() - self._second.ring(shape), shape)

    def _share_words(self, shape: tuple[int, ...], compute: Callable[[], Words]) -> Any:
        return self._sent(compute() ^ self._second.words(shape), shape)

    def _sent(self, correction: Any, shape: tuple[int, ...]) -> Any:
        if correction.shape != shape:
            raise RuntimeError(f"a correction of shape {correction.shape} was dealt as {shape}")
        if self._send is not None:
            self._send(np.asarray(correction, order="C"))
        return correction


class FirstPartySource(Source):
    """Party 0 with a third-party dealer: its own key, and corrections as they arrive in `receive(count)`."""

    def __init__(self, key: bytes, receive: Callable[[int], Ring]) -> None:
        super().__init__()
        self._own, self._receive = Prg(key), receive

    def ring(self, shape: tuple[int, ...]) -> Drawn[Ring]:
        """Mask, its value unknown."""
        return Drawn(self._own.ring(shape), None)

    def words(self, shape: tuple[int, ...]) -> Drawn[Words]:
        """Mask, its value unknown."""
        return Drawn(self._own.words(shape), None)

    def _share_ring(self, shape: tuple[int, ...], compute: Callable[[], Ring]) -> Any:
        return self._receive(prod(shape)).reshape(shape)

    def _share_words(self, shape: tuple[int, ...], compute: Callable[[], Words]) -> Any:
        return self._receive(prod(shape)).view(np.uint64).reshape(shape)


class SecondPartySource(Source):
    """Party 1: everything comes out of its own key."""

    def __init__(self, key: bytes) -> None:
        super().__init__(first=False)
        self._own = Prg(key)

    def ring(self, shape: tuple[int, ...]) -> Drawn[Ring]:
        """Mask, its value unknown."""
        return Drawn(self._own.ring(shape), None)

    def words(self, shape: tuple[int, ...]) -> Drawn[Words]:
        """Mask, its value unknown."""
        return Drawn(self._own.words(shape), None)

    def _share_ring(self, shape: tuple[int, ...], compute: Callable[[], Ring]) -> Any:
        return self._own.ring(shape)

    def _share_words(self, shape: tuple[int, ...], compute: Callable[[], Words]) -> Any:
        return self._own.words(shape)
