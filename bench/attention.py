"""The attention workload: one attention layer, projections included, on unit-variance inputs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.health import health_of
from bench.machine import this_machine
from bench.running import Running, SchemeParties, ranges_for, run_in_turn, schemes_of
from bench.secure_run import SecureRun
from models.attention import Attention
from models.kinds import KINDS
from mpc.ranges import Ranges
from mpc.scheme import Roles, Scheme

_CALIBRATION_INPUTS = 8  # inputs on which ranges are declared


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Tokens, model width, heads and images of one attention layer."""

    tokens: int = 65
    dim: int = 256
    heads: int = 4
    batch: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.dim % self.heads:
            near = [h for h in range(1, self.dim + 1) if self.dim % h == 0]
            raise ValueError(f"{self.heads} heads do not divide width {self.dim}; numbers that do: {near}")


def attention_layer(
    kinds: Sequence[str] | str, shape: AttentionShape, linformer_k: int | None = None, seed: int = 0
) -> nn.Module:
    """An attention layer whose scores have about unit variance: projections are normal with variance 1 / width.

    `kinds` is one kind for all heads, or one for each.
    """
    names = (kinds,) * shape.heads if isinstance(kinds, str) else tuple(kinds)
    layer = Attention(shape.dim, names, shape.dim // shape.heads, shape.tokens, linformer_k=linformer_k)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for linear in (layer.qkv, layer.proj):
            linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) / shape.dim**0.5)
    return layer.eval()


def unit_input(shape: AttentionShape, seed: int = 0) -> Tensor:
    """A unit-variance input of the layer."""
    return torch.randn(shape.batch, shape.tokens, shape.dim, generator=torch.Generator().manual_seed(seed + 1))


def measure_attention(
    running: Running,
    shape: AttentionShape,
    kinds: Sequence[str] = tuple(KINDS),
    schemes: Sequence[Scheme] = (),
    repeats: int = 5,
    linformer_k: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
    roles: Roles | None = None,
    declared: Ranges | None = None,
) -> list[tuple[SecureRun, dict[str, Any]]]:
    """Measure every kind under every scheme, schemes interleaved run by run; a run and its record for each.

    Without `schemes` they are those that `running` was started for.
    Ranges of the tuned scheme come from other inputs of the same distribution where none are `declared`; a plain shadow
    checks them on the measured input.
    """
    measured = []
    schemes = schemes or schemes_of(running)
    x = unit_input(shape, seed)
    others = torch.cat([unit_input(shape, seed + 1000 + i) for i in range(_CALIBRATION_INPUTS)])
    for kind in kinds:
        layer = attention_layer(kind, shape, linformer_k, seed)
        ranges = ranges_for(schemes, layer, others, declared)
        progress(kind)
        for run in run_in_turn(running, layer, x, schemes, roles, repeats, ranges).values():
            with torch.no_grad():
                error = float((run.output - layer(x)).abs().max())
            record = attention_record(run, kind, shape, error)
            measured.append((run, {**record, **where(running), "health": health_of(layer, x, run)}))
    return measured


def where(running: Running) -> dict[str, str]:
    """`network` and `mode` of what runs on these parties."""
    if isinstance(running, SchemeParties):
        return {"network": running.network, "mode": running.mode}
    return {"network": "loopback", "mode": "measured"}


def attention_record(run: SecureRun, kind: str, shape: AttentionShape, max_abs_error: float) -> dict[str, Any]:
    """The record of one measured attention layer, raw samples included."""
    seconds = seconds_json(run)
    return {
        "record": "attention",
        "workload": "attention",
        "kind": kind,
        "shape": asdict(shape),
        "scheme": run.scheme.to_json(),
        "transport": run.scheme.transport,
        "dealer": run.scheme.dealer,
        "parties": run.scheme.parties,
        "roles": run.roles.to_json(),
        "network": "loopback",
        "mode": "measured",
        **traffic_json(run),
        "seconds": seconds,
        "seconds_per_image": seconds["online"]["median"] / shape.batch,
        "peak_bytes": run.peak_bytes,
        "max_abs_error": max_abs_error,
        "machine": this_machine(),
    }


def seconds_json(run: SecureRun) -> dict[str, Any]:
    """Seconds by phase: online, the dealer's work (offline), both together, and the setup of fixed weights, once."""
    return {
        "online": spread(run.online_s),
        "dealer": spread(run.dealer_s),
        "total": spread(run.total_s),
        "setup_s": run.setup_s,
    }


def reference_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The kind that seconds are relative to: softmax where it was measured, else the first kind."""
    kinds = [row["kind"] for row in rows]
    return "softmax" if "softmax" in kinds else str(kinds[0])


def relative_seconds(rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Median online seconds of each row over the reference's under the same scheme on the same network.

    None where the reference was not measured there.
    """
    reference = reference_of(rows) if rows else ""

    def case(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return *row["scheme"].values(), row["network"]

    reference_s = {case(row): row["seconds"]["online"]["median"] for row in rows if row["kind"] == reference}
    return [
        row["seconds"]["online"]["median"] / reference_s[case(row)] if case(row) in reference_s else None
        for row in rows
    ]


def traffic_json(run: SecureRun) -> dict[str, Any]:
    """Traffic by phase, hops of the online phase on top, and the reveal as a row of its own."""
    phases = run.traffic.to_json()
    reveal = run.reveal_log.traffic.online.to_json()
    derived = run.scheme.dealer == "tfp"
    phases["offline"]["derived"] = derived  # what a third party would have sent; under TFP nobody sends it
    return {**phases, "hops": phases["online"]["hops"], "reveal": reveal}


def spread(samples_s: Sequence[float]) -> dict[str, Any]:
    """Median, interquartile range, count and the raw samples."""
    quartiles = statistics.quantiles(samples_s, n=4, method="inclusive") if len(samples_s) > 1 else [samples_s[0]] * 3
    return {
        "median": statistics.median(samples_s),
        "iqr": quartiles[2] - quartiles[0],
        "n": len(samples_s),
        "samples": list(samples_s),
    }
