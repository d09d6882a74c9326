"""What joins the folders: measuring what a search found, re-timing it, comparing what was found for whom."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from bench.attention import seconds_json, spread, traffic_json
from bench.health import health_of
from bench.infer import CALIBRATION_IMAGES, Inference, health_json, infer
from bench.machine import this_machine
from bench.run_directory import RunDirectory
from bench.running import ranges_for
from bench.secure_run import SecureRun, run_module
from cost_models.calibration import load_default
from cost_models.latency_term import MixtureLatency
from cost_models.linear import CostModel
from cost_models.replay import replay
from models.architecture import Network
from mpc.elapsed import together_s
from mpc.network import LOOPBACK, NetworkProfile
from mpc.parties import Parties
from mpc.ranges import NOTHING_DECLARED
from nas.data import load
from nas.retrain import load_network

Record = dict[str, Any]


def replayed_attention(run: SecureRun, record: Record, networks: Iterable[NetworkProfile]) -> list[Record]:
    """The record of an attention layer on other links: replayed, what the link adds going to every sample."""
    records = []
    for link in networks:
        link_s = _link_s(run, link)
        online = spread([sample + link_s for sample in run.online_s])
        seconds = {"online": online, "dealer": record["seconds"]["dealer"], "total": None, "setup_s": None}
        per_image_s = online["median"] / record["shape"]["batch"]
        changes = {"network": link.name, "mode": "replayed", "seconds": seconds, "seconds_per_image": per_image_s}
        records.append({**record, **changes})
    return records


def _link_s(run: SecureRun, network: NetworkProfile) -> float:
    """Seconds that `network` adds to the median repeat; a message that waited on loopback too may hide some."""
    return replay(run.logs, network).online.total_s - together_s(run.logs)


def candidate_record(
    parties: Parties,
    name: str,
    network: Network,
    found: Mapping[str, Any],
    images: Tensor,
    labels: Tensor,
    cost_model: CostModel | None,
    links: Sequence[NetworkProfile],
    repeats: int = 5,
    batch: int = 16,
    on_batch: Callable[[int, int], None] = lambda *_: None,
    training_images: Tensor | None = None,
) -> Record:
    """Measure a trained network: secure accuracy on `images`, latency of one image on loopback, replayed on `links`.

    `found` brings what training knows: accuracy, found_by, seed and ratio. Predicted seconds stand beside measured,
    where there is a cost model. Ranges of the tuned scheme are calibrated on `training_images`, or its defaults.
    """
    scheme = parties.scheme
    known = NOTHING_DECLARED if training_images is None else None
    others = images[:0] if training_images is None else training_images
    ranges = ranges_for([scheme], network, others, known).get(scheme, NOTHING_DECLARED)
    inference = infer(parties, network, images, labels, batch=batch, progress=on_batch, ranges=ranges)
    run = run_module(parties, network, images[:1], repeats=repeats, warm_up=1, ranges=ranges)
    profiles = (LOOPBACK, *links)
    return {
        "record": "candidate",
        "name": name,
        **found,
        "kinds": [list(block.kinds) for block in network.spec.blocks],
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "macs": run.trace.macs,
        **_secure_figures(inference),
        "seconds": {p.name: _interval(cost_model, run, p) for p in profiles} if cost_model else {},
        "measured_s": {p.name: _measured(run, p) for p in profiles},
        "by_op_s": {p.name: by_op_s(run, p) for p in profiles},
        **traffic_json(run),
        "scheme": scheme.to_json(),
        "roles": run.roles.to_json(),
        "peak_bytes": run.peak_bytes,
        "machine": this_machine(),
    }


def measure_run(
    path: Path,
    parties: Parties,
    data: str,
    images: int,
    batch: int,
    links: Sequence[NetworkProfile],
    on_network: Callable[[int, int, str], None] = lambda *_: None,
) -> list[Record]:
    """Measure every network that was trained in the run of a search; their records are its networks.jsonl.

    A network that was measured already in the same way is not measured again. Raises ValueError where nothing was
    trained, or the run is no search.
    """
    run = RunDirectory.existing(path)
    if run.manifest["verb"] != "search mpcvit":
        raise ValueError(f"{path} is a run of {run.manifest['verb']}; networks are measured in the run of a search")
    folders = sorted(file.parent for file in (path / "train").glob("*/retrained.json"))
    if not folders:
        raise ValueError(f"{path} holds no trained network; run: mpc-pareto retrain {path}")
    searched = run.manifest["arguments"]["link"]
    cost_model = load_default(parties.scheme)
    records = []
    for number, folder in enumerate(folders):
        on_network(number, len(folders), folder.name)
        trained = json.loads((folder / "retrained.json").read_text())
        teacher = folder.name == "teacher"
        found_by = "uniform" if teacher else f"mpcvit/{'l1' if searched == 'l1' else f'latency@{searched}'}"
        ratio = float(folder.name) if re.fullmatch(r"[0-9.]+", folder.name) else None
        known = {key: trained[key] for key in ("accuracy", "test_images", "seed")}
        network = load_network(folder)
        dataset = load(data, network.spec.image_px)
        test, labels = dataset.test_images[:images], dataset.test_labels[:images]
        found = {**known, "found_by": found_by, "ratio": ratio}
        measure = partial(
            candidate_record,
            parties,
            folder.name,
            network,
            found,
            test,
            labels,
            cost_model,
            links,
            batch=batch,
            training_images=dataset.train_images[:CALIBRATION_IMAGES],
        )
        asked = [parties.scheme.to_json(), data, images, batch, [link.name for link in links]]
        key = hashlib.sha256(json.dumps(asked).encode() + (folder / "weights.safetensors").read_bytes()).hexdigest()[
            :12
        ]
        records.append(run.step(f"measure-{folder.name}-{key}", measure))
    run.write_records("networks", records)
    return records


def _secure_figures(inference: Inference) -> Record:
    health = health_json(inference)
    return {
        "secure_accuracy": inference.secure_accuracy,
        "secure_images": len(inference.plain_logits),
        "agreement": inference.agreement,
        "max_logit_difference": inference.max_logit_difference,
        "min_plain_margin": inference.min_plain_margin,
        **{key: health[key] for key in ("ranges", "functions_outside_their_domain", "outside_securely")},
        "health": inference.health,
    }


def _interval(cost_model: CostModel, run: SecureRun, network: NetworkProfile) -> Record:
    estimate = cost_model.seconds(run.trace, run.scheme, network)
    return {"p50": estimate.p50_s, "p05": estimate.p05_s, "p95": estimate.p95_s, "mode": "predicted"}


def _measured(run: SecureRun, network: NetworkProfile) -> Record:
    link_s = 0.0 if network is LOOPBACK else _link_s(run, network)
    mode = "measured" if network is LOOPBACK else "replayed"
    return {**spread([sample + link_s for sample in run.online_s]), "mode": mode}


def by_op_s(run: SecureRun, network: NetworkProfile) -> dict[str, float]:
    """Online seconds by operation, from the spans of the slowest party's log, replayed on other links than loopback.

    Work between operations is under `between operations`; all add up to the seconds of the median repeat.
    """
    log = run.log if network == LOOPBACK else replay(run.logs, network).log
    return {**log.op_s, "between operations": log.online_s - sum(log.op_s.values())}


def network_rows(
    run: SecureRun,
    model: str,
    batch: int,
    figures: Mapping[str, Any],
    links: Sequence[NetworkProfile],
    place: Mapping[str, str] = MappingProxyType({"network": LOOPBACK.name, "mode": "measured"}),
) -> list[Record]:
    """A record of a whole network where it was measured, and one on each link, replayed.

    `figures` are those of the output (`output_figures`). Total and setup seconds of a replay are unknown: None.
    """
    row = {
        "record": "network",
        "workload": "model",
        "model": model,
        "batch": batch,
        "scheme": run.scheme.to_json(),
        "roles": run.roles.to_json(),
        **place,
        **traffic_json(run),
        "seconds": seconds_json(run),
        "seconds_per_image": statistics.median(run.online_s) / batch,
        "by_op_s": by_op_s(run, LOOPBACK),
        "peak_bytes": run.peak_bytes,
        **figures,
        "machine": this_machine(),
    }
    rows = [row]
    for link in links:
        online = _measured(run, link)
        changes = {
            "network": link.name,
            "mode": online.pop("mode"),
            "seconds": {"online": online, "dealer": row["seconds"]["dealer"], "total": None, "setup_s": None},
            "seconds_per_image": online["median"] / batch,
            "by_op_s": by_op_s(run, link),
        }
        rows.append({**row, **changes})
    return rows


def output_figures(run: SecureRun, module: nn.Module, inputs: Tensor) -> Record:
    """How right a run's output is, against the plain reading of the same inputs, and what a plain shadow saw."""
    with torch.no_grad():
        plain = module(inputs.clone())
    return {
        "max_abs_error": float((run.output - plain).abs().max()),
        "top1_agreement": float((run.output.argmax(-1) == plain.argmax(-1)).double().mean()),
        "health": health_of(module, inputs, run),
    }


def cross_table(
    found: Sequence[tuple[str, int, float, Sequence[Sequence[str]]]], latencies: Mapping[str, MixtureLatency], keep: str
) -> Record:
    """Networks found for one link, predicted on every link: a row for each, and a verdict with the spread over seeds.

    `found` holds objective, seed, ratio and the kinds of every head; `latencies` the cost model's seconds by link.
    """
    rows = [
        {
            "found_for": objective,
            "mode": "predicted",
            "seed": seed,
            "ratio": ratio,
            "seconds": {name: latency.exact_s(kinds) for name, latency in latencies.items()},
            f"{keep}_heads": [list(layer).count(keep) for layer in kinds],
        }
        for objective, seed, ratio, kinds in found
    ]
    return {"schema": 1, "record": "cross_table", "rows": rows, "verdict": _verdict(rows, list(latencies), keep)}


def _verdict(rows: Sequence[Record], links: Sequence[str], keep: str) -> str:
    """One sentence for each pair of links: how much slower a link's networks are than those found for it.

    The spread is that over seeds, of the mean over ratios.
    """
    sentences = []
    for here in links:
        own = _by_case(rows, f"latency@{here}")
        for other in links:
            foreign = _by_case(rows, f"latency@{other}")
            cases = sorted(own.keys() & foreign.keys())
            if other == here or not cases:
                continue
            excess: dict[int, list[float]] = defaultdict(list)
            for case in cases:
                excess[case[0]].append(foreign[case]["seconds"][here] / own[case]["seconds"][here] - 1)
            by_seed = [statistics.mean(ratios) for ratios in excess.values()]
            differing = sum(own[case][f"{keep}_heads"] != foreign[case][f"{keep}_heads"] for case in cases)
            sentences.append(
                f"On {here}, by predicted seconds, networks found for {other} take {statistics.mean(by_seed):+.1%} "
                f"({_spread_over_seeds(by_seed)}; heads per layer differ in {differing} of {len(cases)} networks)"
            )
    return "; ".join(sentences) + "." if sentences else "Only one link was searched for: nothing to compare."


def _spread_over_seeds(by_seed: Sequence[float]) -> str:
    if len(by_seed) < 2:
        return "one seed: no spread"
    deviation = statistics.stdev(by_seed)
    judged = "no difference beyond the spread" if abs(statistics.mean(by_seed)) <= deviation else "more than the spread"
    return f"standard deviation {deviation:.1%} over {len(by_seed)} seeds: {judged}"


def _by_case(rows: Sequence[Record], objective: str) -> dict[tuple[int, float], Record]:
    return {(row["seed"], row["ratio"]): row for row in rows if row["found_for"] == objective}
