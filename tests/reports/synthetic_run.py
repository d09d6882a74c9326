"""A made-up run directory, plausible in size and shape, for looking at reports."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

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


def calibration(rng: random.Random) -> dict[str, Any]:
    """A fit over two decades and what was held out of it."""

    def point(what: str, noise: float) -> dict[str, Any]:
        measured = 10 ** rng.uniform(-2, 1.2)
        seconds = {"measured_s": measured, "predicted_s": measured * rng.lognormvariate(0, noise)}
        return {"what": what, "shape": [1, 65, 256], "network": "loopback", **seconds}

    return {
        "schema": 1,
        "record": "calibration",
        "coefficients": {"round_s": 0.00031, "byte_s": 2.1e-9, "multiplication_s": 4.4e-10},
        "fit": [point("attention", 0.04) for _ in range(40)],
        "held_out": [point("attention", 0.08) for _ in range(16)],
        "median_error": 0.05,
        "p90_error": 0.12,
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
    ):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    (folder / "calibration.json").write_text(json.dumps(calibration(rng)), "utf-8")
    (folder / "cross_table.json").write_text(json.dumps(cross_table()), "utf-8")
    manifest = {
        "versions": {"mpc-pareto": "0.1.0", "torch": "2.11.0", "crypten": "0.4.1"},
        "commit": "0123abc",
        "machine": MACHINE,
        "arguments": {"verb": "demo"},
        "seeds": [0, 1],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder
