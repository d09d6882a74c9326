"""A made-up run directory, plausible in size and shape, for looking at reports."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from cost_models.linear import SCHEMA as CALIBRATION_SCHEMA

SCHEME = {
    "name": "crypten",
    "parties": 2,
    "functions": "documented",
    "dealer": "tfp",
    "transport": "gloo",
    "weights": "private",
    "precision_bits": 16,
}
MACHINE = {"cpu": "Example Processor 9000", "cores": 2, "memory_gib": 16.0, "python": "3.11.9", "torch": "2.11.0"}
LINKS = {"loopback": (0.0, math.inf), "cheetah-lan": (0.00015, 375e6), "cheetah-wan": (0.02, 50e6)}
# rounds and bytes of one attention layer, 65 tokens, 256 wide, 4 heads
KINDS = {
    "softmax": (119, 15_034_752, 0.30),
    "relu_softmax": (42, 7_035_072, 0.13),
    "quad": (40, 4_100_000, 0.10),
    "quad_noshift": (40, 4_050_000, 0.10),
    "linformer": (119, 6_100_000, 0.15),
    "scaling": (4, 2_897_952, 0.05),
    "scaling_linear": (4, 2_600_000, 0.045),
}
OPS = ("matmul", "linear", "gelu", "compare", "reciprocal", "layer_norm", "row_normalize", "conv2d", "mul", "reveal")


def phase(rounds: int, sent: int) -> dict[str, Any]:
    """Traffic of two equal parties."""
    party = {"rounds": rounds, "bytes": sent, "hops": 4 * rounds}
    return {**party, "per_party": [party, party]}


def spread(median: float, rng: random.Random, n: int = 7) -> dict[str, Any]:
    """Samples around a median."""
    samples = sorted(median * rng.lognormvariate(0, 0.03) for _ in range(n))
    return {"median": samples[n // 2], "iqr": samples[3 * n // 4] - samples[n // 4], "n": n, "samples": samples}


def seconds_on(link: str, rounds: int, sent: int, compute_s: float) -> float:
    """Compute, delay and transfer."""
    delay_s, bytes_per_s = LINKS[link]
    return compute_s + 4 * rounds * delay_s + sent / bytes_per_s


def attention(rng: random.Random) -> list[dict[str, Any]]:
    """Every kind on every link."""
    records = []
    for kind, (rounds, sent, compute_s) in KINDS.items():
        for link in LINKS:
            online = spread(seconds_on(link, rounds, sent, compute_s), rng)
            records.append(
                {
                    "schema": 1,
                    "record": "attention",
                    "workload": "attention",
                    "kind": kind,
                    "shape": {"tokens": 65, "dim": 256, "heads": 4, "batch": 1},
                    "scheme": SCHEME,
                    "network": link,
                    "mode": "measured" if link == "loopback" else "replayed",
                    "online": phase(rounds, sent),
                    "offline": phase(rounds, 2 * sent),
                    "setup": phase(4, 2_097_152),
                    "seconds": {
                        "online": online,
                        "dealer": spread(0.02, rng),
                        "total": spread(online["median"] + 0.02, rng),
                    },
                    "seconds_per_image": online["median"],
                    "peak_bytes": 310_000_000,
                    "max_abs_error": 4.1e-4,
                    "machine": MACHINE,
                }
            )
    return records


def candidates(rng: random.Random) -> list[dict[str, Any]]:
    """Uniform networks and three searches at several ratios and two seeds."""
    found: list[tuple[str, str, float | None, int, int, float, float]] = [
        ("all softmax", "uniform", None, 0, 16, 1.25, 0.9890)
    ]
    found += [("all relu", "uniform", None, 0, 16, 1.0, 0.9861), ("all scaling", "uniform", None, 0, 0, 1.0, 0.9472)]
    for family, short, gain in (
        ("mpcvit/latency@cheetah-lan", "lan", 0.001),
        ("mpcvit/latency@cheetah-wan", "wan", 0.003),
        ("mpcvit/l1", "l1", 0.0),
    ):
        for ratio in (0.25, 0.5, 0.75):
            for seed in (0, 1):
                accuracy = 0.9472 + 0.0389 * ratio**0.5 + gain + rng.gauss(0, 0.0025)
                heads = round(16 * ratio)
                fewer = 0.8 if short == "wan" else 1.0
                found.append((f"{short} {ratio:g} s{seed}", family, ratio, seed, heads, fewer, accuracy))
    return [_candidate(*row, rng=rng) for row in found]


def _candidate(
    name: str,
    family: str,
    ratio: float | None,
    seed: int,
    heads: int,
    factor: float,
    accuracy: float,
    rng: random.Random,
) -> dict[str, Any]:
    rounds = round(180 + 38 * 4 * factor * min(1.0, heads / 8 + 0.3 * (heads > 0)) * rng.uniform(0.95, 1.05))
    sent = round(30e6 + 1.5e6 * heads * factor)
    compute_s = 0.9 + 0.03 * heads * factor
    modelled = {link: seconds_on(link, rounds, sent, compute_s) for link in LINKS}
    most = "softmax" if name == "all softmax" else "relu_softmax"
    kinds = [[most if 4 * layer + head < heads else "scaling" for head in range(4)] for layer in range(4)]
    weights = [rng.uniform(0.3, 1.0) / (1 + index) for index in range(len(OPS))]
    measured = {link: spread(s * rng.uniform(0.92, 1.1), rng) for link, s in modelled.items() if seed == 0}
    secure = round(64 * accuracy) / 64
    return {
        "schema": 1,
        "record": "candidate",
        "name": name,
        "found_by": family,
        "seed": seed,
        "ratio": ratio,
        "kinds": kinds,
        "params": 812_298,
        "macs": 51_300_000 + 40_000 * heads,
        "accuracy": accuracy,
        "secure_accuracy": secure if seed == 0 else None,
        "secure_images": 64 if seed == 0 else 0,
        "agreement": rng.choice([1.0, 63 / 64]) if seed == 0 else None,
        "max_logit_difference": rng.uniform(0.004, 0.02) if seed == 0 else None,
        "min_plain_margin": rng.uniform(0.01, 0.2),
        "seconds": {k: {"p50": s, "p05": 0.93 * s, "p95": 1.08 * s, "mode": "predicted"} for k, s in modelled.items()},
        "measured_s": {
            link: {**values, "mode": "measured" if link == "loopback" else "replayed"}
            for link, values in measured.items()
        },
        "by_op_s": {
            link: {op: s * w / sum(weights) for op, w in zip(OPS, weights, strict=True)} for link, s in modelled.items()
        },
        "online": phase(rounds, sent),
        "scheme": SCHEME,
        "machine": MACHINE,
    }


BASELINES = ("FLOPs", "ReLU count", "bytes only", "rounds only", "rounds x RTT", "sum over heads")
GROUPS = {
    "operations": (80, 0.03),
    "layers": (12, 0.05),
    "networks": (32, 0.06),
    "links": (18, 0.07),
    "replays": (18, 0.03),
}


def _point(group: str, noise: float, rng: random.Random) -> dict[str, Any]:
    """A workload measured after the freeze; baselines scatter far more than the model."""
    measured = 10 ** rng.uniform(-3.5 if group == "operations" else -1.5, -1.5 if group == "operations" else 1.2)
    predicted = measured * rng.lognormvariate(0, noise)
    says: dict[str, float | None] = {name: measured * rng.lognormvariate(0, 0.8) for name in BASELINES}
    if group != "links":
        says["rounds x RTT"] = None
    if group != "layers":
        says["sum over heads"] = None
    if group == "replays":
        says = {}
    return {
        "what": group.removesuffix("s"),
        "shape": "batch 1, 65 tokens, 256 wide, 4 heads",
        "network": "200mbit/12ms" if group in ("links", "replays") else "loopback",
        "mode": "emulated-link" if group in ("links", "replays") else "measured",
        "measured_s": measured,
        "predicted_s": predicted,
        **{key: predicted * math.exp(z * noise) for key, z in (("p05_s", -1.6), ("p25_s", -0.7))},
        **{key: predicted * math.exp(z * noise) for key, z in (("p75_s", 0.7), ("p95_s", 1.6))},
        "repeatability": 0.01,
        "samples_s": [measured] * 9,
        "baselines": says,
    }


def _scores(known: list[tuple[float, float]]) -> dict[str, Any] | None:
    errors = sorted(abs(said / measured - 1) for measured, said in known)
    if not errors:
        return None
    return {
        "points": len(errors),
        "median_error": errors[len(errors) // 2],
        "p90_error": errors[int(0.9 * len(errors))],
        "worst_error": errors[-1],
        "within_10": sum(error <= 0.1 for error in errors) / len(errors),
        "spearman": 0.99,
        "kendall": None,
    }


def evaluation(group: str, count: int, noise: float, rng: random.Random) -> dict[str, Any]:
    """One group of an evaluation."""
    points = [_point(group, noise, rng) for _ in range(count)]
    own = _scores([(p["measured_s"], p["predicted_s"]) for p in points]) or {}
    inside = sum(p["p05_s"] <= p["measured_s"] <= p["p95_s"] for p in points) / count
    repeats = {"repeatability_median": 0.01, "repeatability_p90": None, "drift": 0.02}
    baselines = {
        name: _scores([(p["measured_s"], said) for p in points if (said := p["baselines"][name]) is not None])
        for name in (BASELINES if group != "replays" else ())
    }
    return {
        "points": points,
        "scores": {**own, "coverage_90": inside, "coverage_50": 0.5, **repeats},
        "baselines": baselines,
    }


def calibration(rng: random.Random) -> dict[str, Any]:
    """A fitted cost model and its evaluation on what it never saw."""
    return {
        "schema": CALIBRATION_SCHEMA,
        "record": "calibration",
        "operations": {"": {"operations": 2e-4, "ring_bytes": 2.1e-9}, "linear": {"macs": 4.4e-10, "operations": 3e-4}},
        "in_networks": {"": {"more_s": 0.0, "times": 1.1}, "linear": {"more_s": 2e-5, "times": 1.02}},
        "wake_s": 5e-5,
        "spread": {"common": 0.02, "independent": 0.1, "jitter_s": 0.001, "scores": [-1.6, -0.7, 0.7, 1.6]},
        "link_spread": 0.05,
        "threads": 1,
        "calibration_s": 300.0,
        "evaluation_s": 250.0,
        "frozen_at": "2030-01-01T00:00:00+00:00",
        "evaluation": {group: evaluation(group, *size, rng) for group, size in GROUPS.items()},
        "scheme": SCHEME,
        "machine": MACHINE,
    }


def remeasured(rng: random.Random) -> list[dict[str, Any]]:
    """A front of three networks; the first choice for the budget was too slow, the second was not."""
    records = []
    for name, heads, met in (("0.25", 4, None), ("0.5", 8, None), ("budget, try 1", 6, False), ("budget", 5, True)):
        measured = spread(10.0 + heads, rng, 5)
        predicted = 9.5 + 0.95 * heads
        quantiles = {"p05": 0.93 * predicted, "p25": 0.97 * predicted, "p75": 1.03 * predicted, "p95": 1.08 * predicted}
        parts = {"compute_s": 1.0, "delay_s": 0.9 * predicted - 1.0, "transfer_s": 0.1 * predicted}
        budget = {} if met is None else {"budget": {"asked_s": 15.5, "limit_s": 15.5, "met": met}}
        record = {
            "schema": 1,
            "record": "remeasured",
            "name": name,
            "kinds": [["relu_softmax" if 4 * layer + i < heads else "scaling" for i in range(4)] for layer in range(4)],
            "network": "cheetah-wan",
            "mode": "emulated-link",
            "scheme": SCHEME,
            "online": {"rounds": 100, "bytes": 30_000_000, "hops": 400},
            "measured_s": measured,
            "predicted_s": {"p50": predicted, **quantiles, **parts},
            "ratio": predicted / measured["median"],
            "within_90": 0.93 * predicted <= measured["median"] <= 1.08 * predicted,
            "machine": MACHINE,
        }
        records.append({**record, **budget})
    return records


def winners() -> dict[str, Any]:
    """Three networks: one of few rounds, one of few bytes, one in between; and an accuracy that only two reach."""
    bandwidths = [10 * 10 ** (3 * i / 19) for i in range(20)]
    round_trips = [0.1 * 10 ** (3.3 * i / 19) for i in range(20)]
    costs = (
        ("few rounds", 0.97, 0.3, 40, 90e6),
        ("between", 0.96, 0.3, 120, 40e6),
        ("few bytes", 0.93, 0.3, 300, 12e6),
    )

    def panel(accuracy: float, places: list[int]) -> dict[str, Any]:
        empty: dict[str, Any] = {
            key: [] for key in ("winner", "seconds", "runner_up", "runner_up_seconds", "ratio", "too_close")
        }
        for round_trip_ms in round_trips:
            rows: dict[str, list[Any]] = {key: [] for key in empty}
            for mbit in bandwidths:
                ranked = sorted(
                    (compute_s + rounds * round_trip_ms / 500 + 8e-6 * sent / mbit, place)
                    for place, (_, _, compute_s, rounds, sent) in enumerate(costs)
                    if place in places
                )
                (first_s, first), (second_s, second) = ranked[0], ranked[1]
                values = (first, first_s, second, second_s, second_s / first_s, second_s < 1.1 * first_s)
                for key, value in zip(rows, values, strict=True):
                    rows[key].append(value)
            for key, row in rows.items():
                empty[key].append(row)
        return {"accuracy": accuracy, "accuracy_within": 0.005, "contenders": places, **empty}

    return {
        "schema": 1,
        "record": "winner_map",
        "mode": "predicted",
        "what": "networks",
        "accuracy_source": "plain test accuracy, 360 images",
        "plane": {"bandwidth_mbit": bandwidths, "round_trip_ms": round_trips},
        "profiles": [
            {"name": "cheetah-lan", "bandwidth_mbit": 3000.0, "round_trip_ms": 0.3},
            {"name": "cheetah-wan", "bandwidth_mbit": 400.0, "round_trip_ms": 40.0},
        ],
        "contenders": [
            {"name": n, "accuracy": a, "compute_s": c, "rounds": r, "bytes": int(b), "hops": 4 * r}
            for n, a, c, r, b in costs
        ],
        "panels": [panel(0.96, [0, 1]), panel(0.93, [0, 1, 2])],
        "scheme": SCHEME,
        "machine": MACHINE,
    }


def search(rng: random.Random) -> list[dict[str, Any]]:
    """Two latency objectives and the L1 baseline, two seeds, 15 epochs."""
    records = []
    for objective, pull in (("latency@cheetah-lan", 0.04), ("latency@cheetah-wan", 0.3), ("l1", 0.1)):
        for seed in (0, 1):
            goals = [[rng.random() ** (1 + 3 * pull) for _ in range(4)] for _ in range(4)]
            for epoch in range(15):
                done = 1 - math.exp(-epoch / 4)
                p = [[0.5 + (goal - 0.5) * done for goal in row] for row in goals]
                norm = pull * math.exp(-epoch / 9) * rng.lognormvariate(0, 0.1)
                records.append(
                    {
                        "schema": 1,
                        "record": "search_epoch",
                        "objective": objective,
                        "seed": seed,
                        "epoch": epoch,
                        "loss": 2.3 * math.exp(-epoch / 6),
                        "cross_entropy": 2.2 * math.exp(-epoch / 6),
                        "latency_s": 20 - 4 * pull * done,
                        "latency_gradient_norm": None if objective == "l1" else norm,
                        "accuracy": 0.95 * done if epoch % 5 == 4 else None,
                        "p_relu_softmax": p,
                    }
                )
    return records


def cross_table() -> dict[str, Any]:
    """LAN and WAN searches on each other's network."""
    rows = [
        {
            "found_for": link,
            "ratio": 0.5,
            "seed": seed,
            "seconds": {"cheetah-lan": 1.2 + 0.02 * seed, "cheetah-wan": wan_s},
            "relu_softmax_heads": heads,
        }
        for link, wan_s, heads in (("cheetah-lan", 27.1, [3, 2, 1, 2]), ("cheetah-wan", 23.9, [4, 4, 0, 0]))
        for seed in (0, 1)
    ]
    verdict = (
        "Searching for cheetah-wan gives networks that take 12 % fewer seconds there than those found for cheetah-lan"
    )
    return {"schema": 1, "record": "cross_table", "rows": rows, "verdict": verdict}


def write_run(folder: Path, seed: int = 0) -> Path:
    """Writes every record of a run into `folder`."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in (
        ("attention.jsonl", attention(rng)),
        ("networks.jsonl", candidates(rng)),
        ("search.jsonl", search(rng)),
        ("remeasured.jsonl", remeasured(rng)),
    ):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    (folder / "calibration.json").write_text(json.dumps(calibration(rng)), "utf-8")
    (folder / "cross_table.json").write_text(json.dumps(cross_table()), "utf-8")
    (folder / "winners.json").write_text(json.dumps(winners()), "utf-8")
    manifest = {
        "versions": {"mpc-pareto": "0.1.0", "torch": "2.11.0", "crypten": "0.4.1"},
        "commit": "0123abc",
        "machine": MACHINE,
        "arguments": {"verb": "demo"},
        "seeds": [0, 1],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder
