"""The secure reading under the tuned scheme: setup once, then deal and run, inside one party process."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpc.arguments import leaves, mapped
from mpc.fixed_point import encode
from mpc.ledger import Ledger, MessageLog
from mpc.party import Party
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.reading import shape_reading, weight_tensors
from mpc.scheme import Roles, Scheme
from mpc.secure import ForwardResult, check_weights, forget_peak, peak_bytes
from mpc.table import Row, form_of
from mpc.tensor import JOINS, Reading, SecureTensor, meta, module_sites
from mpc.trace import Operation, Trace
from mpc.traffic import Correlation
from mpc.tuned.dealing import Dealings, pairwise_key
from mpc.tuned.engine import Engine
from mpc.tuned.prg import Prg
from mpc.tuned.products import fix_weights
from mpc.tuned.rows import fixed_form, fixed_operand

_REVEAL_TAG = 6


class TunedReading(Reading):
    """Runs rows on ring tensors."""

    def __init__(self, engine: Engine, ranges: Ranges) -> None:
        super().__init__(ranges)
        self.engine = engine

    def run_row(self, entry: Row, operation: Operation, args: Any, kwargs: Any) -> Tensor:
        """Execute the row; a result of another shape than described is an error of the table."""
        form = form_of(entry, self.engine.scheme)
        with self.engine.ledger.operation(operation.op, operation.site):
            result: Tensor = form.secure(self.engine, operation, *_shares_of(args), **_shares_of(kwargs))
        if tuple(result.shape) != operation.output:
            raise RuntimeError(f"row {entry.name} gave shape {tuple(result.shape)}, described as {operation.output}")
        return result

    def move(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Move the shares as the operation moves data; a public float joins as the first party's share."""

        def raw(leaf: Any) -> Any:
            if isinstance(leaf, SecureTensor):
                return leaf.shares
            if isinstance(leaf, Tensor) and (func in JOINS or leaf.is_floating_point()):
                encoded = encode(leaf.float(), self.engine.scheme, "a public tensor")
                return encoded if self.engine.first else torch.zeros_like(encoded)
            return leaf

        return func(*mapped(raw, args), **mapped(raw, kwargs))


class SetupReading(TunedReading):
    """Follows shapes as the shape reading does, but carries the shares of weights to where they are used.

    There it opens them masked, once for all inferences.
    """

    def run_row(self, entry: Row, operation: Operation, args: Any, kwargs: Any) -> None:  # type: ignore[override]
        """Open the operation's fixed weights, if it has any."""
        index = fixed_operand(operation)
        if index is None:
            return
        operands = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        weights = operands[index].shares  # type: ignore[attr-defined]
        if weights is None:
            raise RuntimeError(f"weights of {operation.op} in {operation.site or '(top)'} reached it without shares")
        with self.engine.ledger.operation(operation.op, operation.site):
            fix_weights(self.engine, np.asarray(fixed_form(operation, weights).numpy(), order="C"))

    def move(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Move shares where all of them are here, shapes where one is not."""
        tensors = [a for a in leaves((args, kwargs)) if isinstance(a, SecureTensor)]
        if any(tensor.shares is None for tensor in tensors):
            return func(*meta(args), **meta(kwargs))
        return super().move(func, args, kwargs)

    def hold(self, moved: Tensor) -> Any:
        """Shares, if they are here."""
        return None if moved.is_meta else moved


def _shares_of(tree: Any) -> Any:
    return mapped(lambda leaf: leaf.shares if isinstance(leaf, SecureTensor) else leaf, tree)


def tuned_forward(
    module: nn.Module,
    inputs: Tensor | None,
    input_shape: tuple[int, ...],
    scheme: Scheme,
    roles: Roles,
    party: Party,
    repeats: int = 1,
    ranges: Ranges = NOTHING_DECLARED,
) -> ForwardResult:
    """`mpc.secure.secure_forward` for the tuned scheme: same roles, same result; called by both parties alike.

    Fixed weights are opened masked in a setup. For each inference all correlations are dealt first (offline), so that
    online time waits for no dealer.
    """
    forget_peak()
    peer, ledger = party.links[1 - party.number], party.ledger
    expected = shape_reading(module, input_shape, scheme.weights, ranges)
    program = [e for _, events in expected.events(scheme) for e in events if isinstance(e, Correlation)]
    dealings = Dealings(party.number, party.links, scheme, program)
    engine = Engine(party.number, peer, scheme, ledger, dealings.source)
    sharing = _Sharing(party.number, Prg(pairwise_key(party.number, peer)), scheme)
    secret = sharing.share(inputs, input_shape, roles.input_owner, "the input")
    if scheme.weights == "private":
        shared = {
            name: sharing.share(tensor, tuple(tensor.shape), roles.model_owner, f"weight {name}")
            for name, tensor in weight_tensors(module).items()
        }
    else:
        shared = check_weights(module, scheme)
    setup_log = _set_up(module, engine, ranges, input_shape, shared)
    logs = []
    with module_sites(module, reading := TunedReading(engine, ranges)):
        weights = {name: reading.wrap(share.shape, share, "weight") for name, share in shared.items()}
        for _ in range(repeats):
            reading.operations.clear()
            engine.outside[:] = 0
            x = reading.wrap(input_shape, secret, "secret")  # anew: a module may write into its input
            engine.meet()
            ledger.start()
            dealings.order()
            engine.stock(program)
            output = torch.func.functional_call(module, dict(weights), (x,))
            logs.append(ledger.stop())
            if engine.left:
                raise RuntimeError(f"{engine.left} correlations were dealt and not used")
    dealings.end()
    if not isinstance(output, SecureTensor):
        raise ValueError(f"the module returned {type(output).__name__}, not one tensor that depends on its input")
    engine.meet()
    ledger.start()
    with ledger.operation("reveal", ""):
        revealed, outside = _reveal(output.shares, roles.reveal_to, engine, party)
    reveal_log = ledger.stop()
    trace = Trace(tuple(reading.operations))
    logs_of_runs = tuple(logs)
    return ForwardResult(
        revealed, tuple(output.shape), logs_of_runs, reveal_log, trace, peak_bytes(), setup_log, outside
    )


class _Sharing:
    """Shares of values that one party owns, masked with a key stream that both parties hold: nothing is sent."""

    def __init__(self, number: int, pairwise: Prg, scheme: Scheme) -> None:
        self._number, self._pairwise, self._scheme = number, pairwise, scheme

    def share(self, values: Tensor | None, shape: tuple[int, ...], owner: int, what: str) -> Tensor:
        """This party's share; parties other than the owner need not pass values."""
        mask = torch.from_numpy(self._pairwise.ring(shape))
        if self._number != owner:
            return mask
        if values is None or values.is_meta:
            raise ValueError(f"party {owner} owns {what} but was not given it")
        return encode(values.detach(), self._scheme, what) - mask


def _set_up(
    module: nn.Module,
    engine: Engine,
    ranges: Ranges,
    input_shape: tuple[int, ...],
    shared: dict[str, Tensor],
) -> MessageLog:
    """Open every fixed weight once, in the order in which inferences use them."""
    ledger: Ledger = engine.ledger
    engine.meet()
    ledger.start()
    with module_sites(module, reading := SetupReading(engine, ranges)):
        weights: dict[str, Tensor] = {
            name: reading.wrap(share.shape, share, "weight") for name, share in shared.items()
        }
        if weights:
            torch.func.functional_call(module, weights, (reading.wrap(input_shape, None, "secret"),))
    return ledger.stop()


def _reveal(share: Tensor, to: int | None, engine: Engine, party: Party) -> tuple[Tensor | None, int | None]:
    """Open a share to both parties, or hand it to one, and with it the count of values outside their ranges.

    None at a party that learns nothing, and for the count where ranges are not checked.
    """
    mine = np.ascontiguousarray(share.numpy().reshape(-1))
    if engine.scheme.range_check:
        mine = np.append(mine, engine.outside)
    if to is None:
        (opened,) = engine.open(mine)
    else:
        theirs = np.empty_like(mine)
        link = party.links[1 - party.number]
        with engine.ledger.message("gather", to):
            engine.ledger.payload(mine.nbytes)
            if party.number == to:
                link.receive_into(theirs, _REVEAL_TAG)
            else:
                link.send(mine, _REVEAL_TAG)
        if party.number != to:
            return None, None
        opened = mine + theirs
    values = torch.from_numpy(opened[: share.numel()].astype(np.float64) / engine.one).float()
    return values.reshape(share.shape), int(opened[-1]) if engine.scheme.range_check else None
