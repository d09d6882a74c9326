"""The label that every figure and table carries: scheme, transport, dealer, phases, mode, machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reports.records import SchemeRecord
from reports.style import FOOTER_SEPARATOR

TFP_MEANING = (
    "TFP (trusted first party): party 0 deals the correlated randomness itself. It could read every secret, so these "
    "runs are benchmarks of time and traffic only; a deployment needs a dealer of its own (TTP) or an offline protocol."
)

_DEALER = {"tfp": "TFP: benchmark only", "ttp": "TTP"}
_MACHINE_KEYS = ("cpu", "cpu_model", "processor", "cores", "cpu_count", "memory_gib", "gpu")
_MACHINE_UNITS = {"cores": "cores", "cpu_count": "cores", "memory_gib": "GiB"}


def scheme_label(scheme: SchemeRecord) -> str:
    """Scheme, transport, dealer and what the dealer means, in one line."""
    dealer = _DEALER.get(scheme["dealer"], scheme["dealer"])
    return (
        f"{scheme['name']} ({scheme['functions']} functions), {scheme['parties']} parties, "
        f"transport {scheme['transport']}, dealer {dealer}, weights {scheme['weights']}, "
        f"{scheme['precision_bits']} fraction bits"
    )


def machine_label(machine: Mapping[str, Any]) -> str:
    """The machine in a few words: its `label` if it has one, else processor, cores, memory and GPU."""
    if label := machine.get("label"):
        return str(label)
    known = [(key, machine[key]) for key in _MACHINE_KEYS if machine.get(key)]
    scalars = [(key, value) for key, value in machine.items() if isinstance(value, str | int) and value]
    return ", ".join(_quantity(key, value) for key, value in known or scalars[:4]) or "machine not recorded"


def _quantity(key: str, value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return f"{text} {_MACHINE_UNITS[key]}" if key in _MACHINE_UNITS else text


def footer(records: Iterable[Mapping[str, Any]], *, phases: str, modes: Iterable[str]) -> str:
    """The label of a figure drawn from `records`; where they differ in scheme or machine, all are named."""
    records = list(records)
    schemes = _distinct(scheme_label(record["scheme"]) for record in records)
    machines = _distinct(machine_label(record["machine"]) for record in records)
    return FOOTER_SEPARATOR.join(
        (
            f"scheme: {' / '.join(schemes) or 'none'}",
            f"phases: {phases}",
            f"mode: {', '.join(_distinct(modes))}",
            f"machine: {' / '.join(machines)}",
        )
    )


def mode_by_network(pairs: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """`measured (loopback)`, ... from pairs of mode and network."""
    networks: dict[str, dict[str, None]] = {}
    for mode, network in pairs:
        networks.setdefault(mode, {})[network] = None
    return tuple(f"{mode} ({', '.join(names)})" for mode, names in networks.items())


def mixture_note(records: Iterable[Mapping[str, Any]]) -> str | None:
    """A sentence when `records` come from more than one machine or scheme: such numbers do not compare directly."""
    records = list(records)
    machines = _distinct(machine_label(record["machine"]) for record in records)
    schemes = _distinct(scheme_label(record["scheme"]) for record in records)
    several = [
        f"{len(found)} {what}" for found, what in ((machines, "machines"), (schemes, "schemes")) if len(found) > 1
    ]
    return f"Records of {' and '.join(several)} are shown together; compare only within one." if several else None


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
