"""Running a module on real parties and keeping everything that was measured about it."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mpc.elapsed import together_s
from mpc.ledger import LogEntry, MessageLog
from mpc.parties import Parties, Party
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.reading import shape_reading
from mpc.scheme import Roles, Scheme
from mpc.secure import ForwardResult, secure_forward
from mpc.trace import Operation, Trace
from mpc.traffic import WORD_BYTES, Correlation, Event, Message, Phase, Traffic


@dataclass(frozen=True, slots=True)
class SecureRun:
    """One module, run `repeats` times on one input. Seconds hold a value for each repeat, of the slowest party.

    Online seconds count from when the last party was ready. `traffic` was counted at the wire and found equal to the
    shape reading's. `output` is what the party that learns the result saw. `logs` are the message logs of all parties
    in the repeat with the median online time. `setup_s` is what opening fixed weights once took; `ranges` are those
    that the tuned protocols were given, and `outside` is the secure range check's count of values outside them (None
    where the scheme does not check).
    """

    scheme: Scheme
    roles: Roles
    trace: Trace
    traffic: Traffic
    online_s: tuple[float, ...]
    dealer_s: tuple[float, ...]
    total_s: tuple[float, ...]
    output: Tensor
    logs: tuple[MessageLog, ...]
    reveal_log: MessageLog
    peak_bytes: int
    setup_s: float = 0.0
    ranges: Ranges = NOTHING_DECLARED
    outside: int | None = None

    @property
    def log(self) -> MessageLog:
        """The log of the slowest party of the median repeat."""
        return max(self.logs, key=lambda log: log.online_s)

    @property
    def op_s(self) -> dict[str, float]:
        """Online seconds by operation in the median repeat, at its slowest party."""
        return self.log.op_s


def run_module(
    parties: Parties,
    module: nn.Module,
    inputs: Tensor,
    scheme: Scheme | None = None,
    roles: Roles | None = None,
    repeats: int = 1,
    warm_up: int = 0,
    ranges: Ranges = NOTHING_DECLARED,
) -> SecureRun:
    """Run `module` on shares of `inputs`; each party process receives only what its role may hold.

    `ranges` are the declared ranges of the tuned scheme; CrypTen's protocols have no use for them.

    Raises PartyError where a party fails, SecretError where the module does what shares cannot do, and RuntimeError
    where the traffic on the wire is not the traffic that the table of operations promises.
    """
    scheme = scheme or parties.scheme
    roles = roles or Roles()
    if started_for(scheme) != started_for(parties.scheme):
        raise ValueError(f"these parties were started for {parties.scheme.label}; start others for {scheme.label}")
    roles.check(scheme.parties)
    shape = tuple(inputs.shape)
    inputs = inputs.detach().clone()  # a slice would travel with everything that it is a slice of
    # Also refuses what cannot run, before any party works.
    expected = shape_reading(module, shape, scheme.weights, ranges)
    expected.traffic(scheme)
    skeleton = structure_of(module) if scheme.weights == "private" else module
    arguments = [
        (
            module if number == roles.model_owner else skeleton,
            inputs if number == roles.input_owner else None,
            shape,
            scheme,
            roles,
            repeats + warm_up,
            ranges,
        )
        for number in range(scheme.parties)
    ]
    results: list[ForwardResult] = parties.run(_forward, arguments)
    return _merge(results, expected, scheme, roles, warm_up, ranges)


def started_for(scheme: Scheme) -> tuple[Any, ...]:
    """What parties decide on when they start; everything else can change from run to run."""
    return scheme.name, scheme.parties, scheme.dealer, scheme.transport


def _forward(party: Party, *arguments: Any) -> ForwardResult:
    module, inputs, shape, scheme, roles, repeats, ranges = arguments
    if scheme.name == "tuned":
        from mpc.tuned.forward import tuned_forward

        return tuned_forward(module, inputs, shape, scheme, roles, party, repeats, ranges)
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


def _merge(
    results: Sequence[ForwardResult], expected: Trace, scheme: Scheme, roles: Roles, warm_up: int, ranges: Ranges
) -> SecureRun:
    runs = list(zip(*(result.logs for result in results), strict=True))[warm_up:]
    for logs in runs:
        for log in logs:
            _demand_equal(log, expected, scheme)
    online_s = tuple(together_s(logs) for logs in runs)
    middle = online_s.index(statistics.median_low(online_s))
    _demand_reveal(results, roles, scheme)
    setups = [result.setup_log for result in results if result.setup_log is not None]
    for log in setups:
        _demand_equal(log, expected, scheme, "setup")
    traffic = replace(runs[0][0].traffic, setup=setups[0].traffic.setup) if setups else runs[0][0].traffic
    knows = roles.reveal_to if roles.reveal_to is not None else 0
    output = results[knows].output
    assert output is not None
    return SecureRun(
        scheme,
        roles,
        expected,
        traffic,
        online_s,
        tuple(max(log.dealer_s for log in logs) for logs in runs),
        tuple(s + max(log.dealer_s for log in logs) for s, logs in zip(online_s, runs, strict=True)),
        output,
        runs[middle],
        results[knows].reveal_log,
        max(result.peak_bytes for result in results),
        max((log.online_s for log in setups), default=0.0),
        ranges,
        results[knows].outside,
    )


def _demand_reveal(results: Sequence[ForwardResult], roles: Roles, scheme: Scheme) -> None:
    """Revealing opens 8 bytes an element to all, or gathers them at one party; a range check adds its count."""
    size_bytes = WORD_BYTES * (prod(results[0].output_shape) + scheme.range_check)
    everyone = "open" if scheme.name == "tuned" else "all_reduce"
    collective = everyone if roles.reveal_to is None else "gather"
    promised = Message(collective, (size_bytes,), roles.reveal_to or 0)
    for party, result in enumerate(results):
        seen = [entry.event for entry in result.reveal_log.entries]
        if seen != [promised]:
            raise RuntimeError(f"party {party} revealed the result by {seen}, not by {promised}")


def _demand_equal(log: MessageLog, expected: Trace, scheme: Scheme, phase: Phase = "online") -> None:
    """Messages on the wire and correlations are, one by one, those of the table.

    A difference names the first operation at fault. What is dealt ahead is not in order with messages, only in itself.
    """
    promised = [(operation, event) for operation, events in expected.events(scheme) for event in events]
    for kind in (Message, Correlation):
        seen = [e for e in log.entries if not e.of_dealer and isinstance(e.event, kind)]
        wanted = [(operation, event) for operation, event in promised if isinstance(event, kind)]
        if kind is Message:
            wanted = [(o, e) for o, e in wanted if isinstance(e, Message) and e.phase == phase]
        elif phase == "setup":
            wanted = []  # nothing is dealt for a setup: masks of weights are in the key streams
        _demand_same(log.party, seen, wanted)


def _demand_same(party: int, seen: Sequence[LogEntry], wanted: Sequence[tuple[Operation, Event]]) -> None:
    for entry, (operation, event) in zip(seen, wanted, strict=False):
        if entry.event != event:
            raise RuntimeError(
                f"party {party} sent {entry.event} in {entry.op} of {entry.site or '(top)'}, "
                f"where the table promises {event} in {operation.op} of {operation.site or '(top)'}"
            )
    if len(seen) != len(wanted):
        raise RuntimeError(f"party {party} recorded {len(seen)} events where the table promises {len(wanted)}")
