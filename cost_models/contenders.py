"""What competes in a winner map: attention kinds as layers, or the networks that were trained in a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from bench.records import read
from bench.run_directory import RunDirectory
from cost_models.calibration import AttentionWorkload, load_default
from cost_models.linear import Cost, CostModel
from cost_models.winners import Contender, Plane, winner_map
from models.spec import ViTSpec
from models.vit import VisionTransformer
from mpc.reading import shape_reading
from mpc.scheme import Scheme


def kinds_that_compete(layers: Sequence[AttentionWorkload], cost_model: CostModel) -> list[Contender]:
    """Attention layers, projections included, by the name of their kind. A kind has no accuracy of its own."""
    weights = cost_model.scheme.weights
    return [
        Contender(
            "+".join(dict.fromkeys(layer.kinds)),
            cost_model.cost(shape_reading(layer.module, layer.input_shape, weights)),
        )
        for layer in layers
    ]


def networks_that_compete(run: Path, cost_model: CostModel) -> tuple[list[Contender], str]:
    """The networks trained in a run with their test accuracies, one image each, and where the accuracies are from.

    They are those of networks.jsonl, else those in train/. Raises ValueError where nothing was trained.
    """
    known = _accuracies(run)
    contenders = [
        Contender(
            name,
            _cost(ViTSpec.from_json(json.loads(spec.read_text())), cost_model),
            accuracy,
            math.sqrt(accuracy * (1 - accuracy) / count),
        )
        for name, (accuracy, count, spec) in known.items()
    ]
    images = sorted({count for _, count, _ in known.values()})
    return contenders, f"plain test accuracy, {' to '.join(map(str, images[:: max(1, len(images) - 1)]))} images"


def _accuracies(run: Path) -> dict[str, tuple[float, int, Path]]:
    """Accuracy, number of test images and spec file of every trained network by name."""
    records = read(run / "networks.jsonl", "candidate") if (run / "networks.jsonl").exists() else []
    found = {
        row["name"]: (row["accuracy"], row["test_images"], run / "train" / row["name"].replace(" ", "-") / "spec.json")
        for row in records
    }
    if not found:
        for file in sorted((run / "train").glob("*/retrained.json")):
            row = json.loads(file.read_text())
            found[file.parent.name] = (row["accuracy"], row["test_images"], file.with_name("spec.json"))
    found = {name: row for name, row in found.items() if row[2].is_file()}
    if not found:
        raise ValueError(f"{run} holds no trained network to compare; run: mpc-pareto retrain {run}")
    return found


def _cost(spec: ViTSpec, cost_model: CostModel) -> Cost:
    with torch.random.fork_rng(devices=[]):  # weights are drawn and not used
        network = VisionTransformer(spec).eval()
    shape = (1, spec.in_channels, spec.image_px, spec.image_px)
    return cost_model.cost(shape_reading(network, shape, cost_model.scheme.weights))


def scheme_of_run(run: Path) -> Scheme:
    """The scheme that a run's networks were measured under, else that of its search, else the default."""
    if (run / "networks.jsonl").exists() and (records := read(run / "networks.jsonl", "candidate")):
        return Scheme(**records[0]["scheme"])
    manifest = RunDirectory.existing(run).manifest
    if not manifest["verb"].startswith("search"):
        return Scheme()
    arguments = manifest["arguments"]
    return Scheme(**{field.name: arguments[field.name] for field in fields(Scheme) if field.name in arguments})


def cost_model_of_run(run: Path, scheme: Scheme) -> CostModel | None:
    """The run's own calibration where it is of `scheme`, else this user's; None where there is neither."""
    own = run / "calibration.json"
    if own.exists():
        model = CostModel.load(own)
        if model.scheme == scheme:
            return model
    return load_default(scheme)


def map_of_run(run: Path) -> dict[str, Any] | None:
    """The winner map of a run's networks at the best accuracy; None where there is nothing to compare or to predict by.

    That is: fewer than two trained networks, or a machine that is not calibrated for the run's scheme.
    """
    try:
        cost_model = cost_model_of_run(run, scheme_of_run(run))
        contenders, source = networks_that_compete(run, cost_model) if cost_model else ([], "")
    except (ValueError, OSError):
        return None
    if cost_model is None or len(contenders) < 2:
        return None
    return winner_map("networks", contenders, cost_model, Plane(), accuracy_source=source)
