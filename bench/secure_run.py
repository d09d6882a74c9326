"""Running a module on real parties and keeping everything that was measured about it."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mpc.ledger import MessageLog
from mpc.parties import Parties, Party
from mpc.reading import shape_reading
from mpc.scheme import Roles, Scheme
from mpc.secure import ForwardResult, secure_forward
from mpc.trace import Trace
from mpc.traffic import WORD_BYTES, Message, Traffic


@dataclass(frozen=True, slots=True)
class SecureRun:
    """One module, run `repeats` times on one input. Seconds hold a value for each repeat, of the slowest party.

    `traffic` was counted at the wire and found equal to the shape reading's. `output` is what the party that learns
    the result saw. `log` is the message log of the repeat with the median online time, at its slowest party.
    """

    scheme: Scheme
    roles: Roles
    trace: Trace
    traffic: Traffic
    online_s: tuple[float, ...]
    dealer_s: tuple[float, ...]
    total_s: tuple[float, ...]
    output: Tensor
    log: MessageLog
    reveal_log: MessageLog
    peak_bytes: int

    @property
    def op_s(self) -> dict[str, float]:
        """Online seconds by operation in the median repeat, at its slowest party."""
        return dict(self.log.op_s)


def run_module(
    parties: Parties,
    module: nn.Module,
    inputs: Tensor,
    scheme: Scheme | None = None,
    roles: Roles | None = None,
    repeats: int = 1,
    warm_up: int = 0,
) -> SecureRun:
    """Run `module` on shares of `inputs`; each party process receives only what its role may hold.

    Raises PartyError where a party fails, SecretError where the module does what shares cannot do, and RuntimeError
    where the traffic on the wire is not the traffic that the table of operations promises.
    """
    scheme = scheme or parties.scheme
    roles = roles or Roles()
    if (scheme.parties, scheme.dealer) != (parties.scheme.parties, parties.scheme.dealer):
        raise ValueError(f"these parties were started for {parties.scheme.label}; start others for {scheme.label}")
    roles.check(scheme.parties)
    shape = tuple(inputs.shape)
    inputs = inputs.detach().clone()  # a slice would travel with everything that it is a slice of
    expected = shape_reading(module, shape, scheme.weights)  # also refuses what cannot run, before any party works
    skeleton = structure_of(module) if scheme.weights == "private" else module
    arguments = [
        (
            module if number == roles.model_owner else skeleton,
            inputs if number == roles.input_owner else None,
            shape,
            scheme,
            roles,
            repeats + warm_up,
        )
        for number in range(scheme.parties)
    ]
    results: list[ForwardResult] = parties.run(_forward, arguments)
    return _merge(results, expected, scheme, roles, warm_up)


def _forward(party: Party, *arguments: Any) -> ForwardResult:
    module, inputs, shape, scheme, roles, repeats = arguments
    return secure_forward(module, inputs, shape, scheme, roles, party.ledger, repeats)


def structure_of(module: nn.Module) -> nn.Module:
    """A copy of `module` without its floating weights: what a party that does not own the model may see.

    Integer buffers, plain attributes and the code stay, they are public. Raises ValueError for a tensor of floating
    numbers that is neither parameter nor buffer: it would travel with the copy.
    """
    _refuse_unregistered(module)
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            empty = torch.empty_like(tensor, device="meta")
            memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def _refuse_unregistered(module: nn.Module) -> None:
    registered = {"_parameters", "_buffers", "_modules"}
    for name, child in module.named_modules():
        for attribute, value in vars(child).items():
            loose = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            if loose and attribute not in registered:
                raise ValueError(
                    f"module {name or '(top)'} holds a tensor in {attribute!r} that is neither parameter nor buffer: "
                    "all parties would see it; use register_buffer, or run with public weights"
                )


def _merge(results: Sequence[ForwardResult], expected: Trace, scheme: Scheme, roles: Roles, warm_up: int) -> SecureRun:
    runs = list(zip(*(result.logs for result in results), strict=True))[warm_up:]
    for logs in runs:
        for log in logs:
            _demand_equal(log, expected, scheme)
    online_s = tuple(max(log.online_s for log in logs) for logs in runs)
    middle = online_s.index(statistics.median_low(online_s))
    _demand_reveal(results, roles)
    knows = roles.reveal_to if roles.reveal_to is not None else 0
    output = results[knows].output
    assert output is not None
    return SecureRun(
        scheme,
        roles,
        expected,
        runs[0][0].traffic,
        online_s,
        tuple(max(log.dealer_s for log in logs) for logs in runs),
        tuple(max(log.online_s + log.dealer_s for log in logs) for logs in runs),
        output,
        max(runs[middle], key=lambda log: log.online_s),
        results[knows].reveal_log,
        max(result.peak_bytes for result in results),
    )


def _demand_reveal(results: Sequence[ForwardResult], roles: Roles) -> None:
    """Revealing opens 8 bytes an element to all, or gathers them at one party."""
    size_bytes = WORD_BYTES * prod(results[0].output_shape)
    collective = "all_reduce" if roles.reveal_to is None else "gather"
    promised = Message(collective, (size_bytes,), roles.reveal_to or 0)
    for party, result in enumerate(results):
        seen = [entry.event for entry in result.reveal_log.entries]
        if seen != [promised]:
            raise RuntimeError(f"party {party} revealed the result by {seen}, not by {promised}")


def _demand_equal(log: MessageLog, expected: Trace, scheme: Scheme) -> None:
    """The events on the wire are, one by one, those of the table; a difference names the first operation at fault."""
    measured = [entry for entry in log.entries if not entry.of_dealer]
    promised = [(operation, event) for operation, events in expected.events(scheme) for event in events]
    for entry, (operation, event) in zip(measured, promised, strict=False):
        if entry.event != event:
            raise RuntimeError(
                f"party {log.party} sent {entry.event} in {entry.op} of {entry.site or '(top)'}, "
                f"where the table promises {event} in {operation.op} of {operation.site or '(top)'}"
            )
    if len(measured) != len(promised):
        raise RuntimeError(
            f"party {log.party} recorded {len(measured)} events where the table promises {len(promised)}"
        )
