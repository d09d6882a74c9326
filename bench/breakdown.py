"""Where online time goes: arithmetic, Python, transfer and waiting, against a floor that nobody can pass."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from bench.machine import this_machine
from bench.running import SchemeParties, run_in_turn
from bench.secure_run import SecureRun
from mpc.network import LOOPBACK, NetworkProfile
from mpc.parties import Parties, Party
from mpc.ranges import Ranges
from mpc.scheme import Scheme

BATCHES = (1, 2, 4)
_PROBE_BYTES = 1 << 22
_PROBE_TAG = 7


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Online seconds of one run at its slowest party, in four parts that add up to `online_s`.

    `python_s` is what is left of a party's own time when the batch goes to 0: dispatch, bookkeeping and the fixed cost
    of calls, the intercept of a line through several batches. `arithmetic_s` is the rest of its own time.
    `transfer_s` is bytes over bandwidth, `waiting_s` what it waited beyond that: delays, wake-ups and the other party.
    `floor_s` is bytes / bandwidth + hops x one-way delay.
    """

    online_s: float
    arithmetic_s: float
    python_s: float
    transfer_s: float
    waiting_s: float
    floor_s: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(self)


def breakdown(runs: Mapping[int, SecureRun], network: NetworkProfile, bytes_per_s: float) -> Breakdown:
    """The parts of `runs[1]`, from runs of the same workload at several batches, all measured on `network`.

    `bytes_per_s` is the bandwidth of the link: the profile's, or on loopback what `link_bytes_per_s` measured. Raises
    ValueError without batch 1 and at least one more.
    """
    if 1 not in runs or len(runs) < 2:
        raise ValueError(f"a breakdown needs batch 1 and at least one more, got batches {sorted(runs)}")
    own_s = {batch: _own_s(run) for batch, run in runs.items()}
    intercept_s = float(np.polyfit(list(own_s), list(own_s.values()), 1)[1])
    log = runs[1].log
    traffic = log.traffic.online
    waited_s = sum(entry.wait_s for entry in log.messages)
    python_s = min(max(intercept_s, 0.0), own_s[1])
    transfer_s = min(traffic.bytes[log.party] / bytes_per_s, waited_s)
    delay_s = 0.0 if network == LOOPBACK else network.link_s(traffic.hops[log.party], 0)
    return Breakdown(
        online_s=log.online_s,
        arithmetic_s=log.online_s - waited_s - python_s,
        python_s=python_s,
        transfer_s=transfer_s,
        waiting_s=waited_s - transfer_s,
        floor_s=traffic.bytes[log.party] / bytes_per_s + delay_s,
    )


def measure_breakdown(
    running: SchemeParties,
    workload: str,
    module: nn.Module,
    inputs: Tensor,
    ranges: Mapping[Scheme, Ranges],
    network: NetworkProfile = LOOPBACK,
    repeats: int = 9,
) -> list[dict[str, Any]]:
    """A record for every scheme of `running`: the breakdown of `module` on the first image of `inputs`.

    `inputs` holds at least as many images as the largest batch, 4.
    """
    by_batch = {batch: _in_turn(running, module, inputs[:batch], ranges, repeats) for batch in BATCHES}
    direct = next((running.of(scheme) for scheme in running.schemes if scheme.transport == "direct"), None)
    loopback_bytes_per_s = link_bytes_per_s(direct) if direct is not None and network == LOOPBACK else float("inf")
    bytes_per_s = loopback_bytes_per_s if network == LOOPBACK else network.bytes_per_s
    records = []
    for scheme in running.schemes:
        runs = {batch: by_scheme[scheme] for batch, by_scheme in by_batch.items()}
        records.append(
            {
                "record": "breakdown",
                "workload": workload,
                "scheme": scheme.to_json(),
                "network": network.name,
                "mode": running.mode,
                "batches": list(BATCHES),
                "rounds": max(runs[1].traffic.online.rounds),
                "bytes": max(runs[1].traffic.online.bytes),
                "link_bytes_per_s": None if bytes_per_s == float("inf") else bytes_per_s,
                "seconds": breakdown(runs, network, bytes_per_s).to_json(),
                "online_s": {str(batch): list(run.online_s) for batch, run in runs.items()},
                "machine": this_machine(),
            }
        )
    return records


def _in_turn(
    running: SchemeParties, module: nn.Module, inputs: Tensor, ranges: Mapping[Scheme, Ranges], repeats: int
) -> dict[Scheme, SecureRun]:
    return run_in_turn(running, module, inputs, running.schemes, None, repeats, ranges)


def _own_s(run: SecureRun) -> float:
    """Online seconds of the median run in which its slowest party did not wait for a message."""
    return run.log.online_s - sum(entry.wait_s for entry in run.log.messages)


def link_bytes_per_s(parties: Parties, exchanges: int = 15) -> float:
    """What a direct link between the first two parties carries in each direction while both send: median of some."""
    rates: list[float] = parties.run(_exchange, [(exchanges,)] * parties.scheme.parties)
    return min(rates)


def _exchange(party: Party, exchanges: int) -> float:
    if party.number > 1:
        return float("inf")
    import time

    outgoing, incoming = np.zeros(_PROBE_BYTES, np.uint8), np.zeros(_PROBE_BYTES, np.uint8)
    rates = []
    for _ in range(exchanges):
        start_s = time.perf_counter()
        party.links[1 - party.number].exchange(outgoing, incoming, _PROBE_TAG)
        rates.append(_PROBE_BYTES / (time.perf_counter() - start_s))
    return statistics.median(rates)
