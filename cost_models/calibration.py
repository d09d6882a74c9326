"""What is run to fit the cost model, what is held out to test it, and where the result is kept.

Nothing here starts parties: the plan is plain values, and whoever runs it hands observations back.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cost_models.evaluation import Evaluation
from cost_models.linear import CostModel, Observation, write_json
from models.attention import Attention
from models.names import SPECS
from models.spec import Activation, BlockSpec, ViTSpec
from models.vit import VisionTransformer
from mpc.network import LOOPBACK, NetworkProfile
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from mpc.trace import Trace

_LATER_OPTIONS = ("truncation", "range_check")


@dataclass(frozen=True)
class AttentionWorkload:
    """One attention layer, projections included: a kind for every head, `tokens` x `dim` inputs, `batch` images."""

    kinds: tuple[str, ...]
    tokens: int
    dim: int
    batch: int = 1

    @property
    def what(self) -> str:
        """What records call it."""
        return f"attention {'+'.join(dict.fromkeys(self.kinds))}"

    @property
    def shape(self) -> str:
        """Its sizes, for records."""
        return f"batch {self.batch}, {self.tokens} tokens, {self.dim} wide, {len(self.kinds)} heads"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of its input."""
        return (self.batch, self.tokens, self.dim)

    @cached_property
    def module(self) -> nn.Module:
        """The layer, the same weights every time, of variance 1 / width.

        Scores of a unit-variance input then have about unit variance.
        """
        return self._layer(self.kinds)

    def head_traces(self, scheme: Scheme, ranges: Ranges = NOTHING_DECLARED) -> tuple[Trace, ...]:
        """Every head as a layer of its own, for the baseline that sums over heads; `ranges` are those of the layer."""
        return tuple(
            shape_reading(self._layer((kind,)), self.input_shape, scheme.weights, ranges) for kind in self.kinds
        )

    def _layer(self, kinds: tuple[str, ...]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = Attention(self.dim, kinds, self.dim // len(self.kinds), self.tokens)
            for linear in (layer.qkv, layer.proj):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        return layer.eval()


@dataclass(frozen=True)
class NetworkWorkload:
    """A whole vision transformer on `batch` images, weights as they are drawn."""

    spec: ViTSpec
    batch: int = 1

    @property
    def what(self) -> str:
        """What records call it."""
        return f"network {self.spec.name}"

    @property
    def shape(self) -> str:
        """Its sizes, for records."""
        s = self.spec
        return f"batch {self.batch}, {s.tokens} tokens, {s.dim} wide, {'+'.join(map(str, s.heads))} heads"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of its input."""
        return (self.batch, self.spec.in_channels, self.spec.image_px, self.spec.image_px)

    @cached_property
    def module(self) -> nn.Module:
        """The network, the same weights every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return VisionTransformer(self.spec).eval()

    def head_traces(self, scheme: Scheme, ranges: Ranges = NOTHING_DECLARED) -> tuple[Trace, ...]:
        """None: heads of a network are no networks."""
        return ()


Workload = AttentionWorkload | NetworkWorkload


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """Workloads to fit and workloads to test the fit on, which have other shapes; each is run `passes` times."""

    fit: tuple[Workload, ...]
    held_out: tuple[Workload, ...]
    passes: int = 5

    def schedule(self) -> Iterator[Workload]:
        """Every workload once in each pass, fitted and held out in one changing order; the same every time.

        The pace of a shared machine drifts over minutes: workloads run one after the other, or the fitted ones before
        the others, would each take the pace of their moment for their own.
        """
        for number in range(self.passes):
            workloads = [*self.fit, *self.held_out]
            random.Random(number).shuffle(workloads)
            yield from workloads


def plan() -> CalibrationPlan:
    """The standard plan: about a minute under CrypTen over gloo on 2 cores."""
    return CalibrationPlan(_fit_workloads(), _held_out_workloads())


def _fit_workloads() -> tuple[Workload, ...]:
    def layer(kind: str, tokens: int, dim: int, heads: int, batch: int = 1) -> AttentionWorkload:
        return AttentionWorkload((kind,) * heads, tokens, dim, batch)

    return (
        layer("softmax", 65, 256, 4),
        layer("softmax", 17, 64, 2),
        layer("softmax", 33, 128, 4),
        layer("softmax", 65, 64, 2, batch=4),
        layer("relu_softmax", 65, 256, 4),
        layer("relu_softmax", 33, 128, 2, batch=2),
        layer("relu_softmax", 17, 64, 4),
        layer("relu_softmax", 65, 64, 2, batch=8),
        layer("scaling", 65, 256, 4),
        layer("scaling", 17, 64, 2),
        layer("scaling", 65, 128, 4, batch=8),
        layer("scaling", 33, 384, 6),
        layer("scaling", 197, 128, 2),
        layer("quad", 65, 256, 4),
        layer("quad", 17, 64, 1),
        layer("linformer", 65, 128, 4),
        NetworkWorkload(_vit("fit_17_gelu", 16, 64, [("relu_softmax",) * 2] * 2, 128, "gelu")),
        NetworkWorkload(_vit("fit_65_relu", 32, 128, [("scaling",) * 4], 256, "relu")),
        NetworkWorkload(_vit("fit_17_batch", 16, 64, [("scaling",) * 2] * 2, 64, "gelu"), batch=4),
    )


def _held_out_workloads() -> tuple[Workload, ...]:
    relu_softmax, scaling, softmax = "relu_softmax", "scaling", "softmax"
    mixed = [(relu_softmax, relu_softmax, scaling, scaling)] * 2 + [(scaling,) * 4, (relu_softmax,) * 4]
    demo = SPECS["vit_4_4_32_demo"]
    return (
        AttentionWorkload((softmax,) * 3, 50, 192),
        AttentionWorkload((softmax,) * 3, 26, 96, batch=2),
        AttentionWorkload((relu_softmax,) * 3, 82, 192),
        AttentionWorkload((relu_softmax,) * 8, 50, 128, batch=2),
        AttentionWorkload((scaling,) * 6, 50, 192),
        AttentionWorkload((scaling,) * 5, 82, 320, batch=2),
        AttentionWorkload(("scaling_linear",) * 3, 82, 192),
        AttentionWorkload(("quad",) * 5, 50, 320),
        AttentionWorkload(("quad_noshift",) * 3, 26, 96, batch=3),
        AttentionWorkload(("linformer",) * 3, 50, 192),
        AttentionWorkload((softmax, relu_softmax, scaling), 50, 192),
        NetworkWorkload(replace(demo.with_kinds(mixed), name="demo_mixed")),
        NetworkWorkload(replace(demo.with_kinds(scaling), name="demo_scaling")),
        NetworkWorkload(_vit("held_37", 24, 96, [(softmax, relu_softmax, scaling), (scaling,) * 3], 192, "relu")),
        NetworkWorkload(_vit("held_26", 20, 96, [(relu_softmax, scaling, scaling)] * 3, 96, "gelu"), batch=2),
    )


def _vit(
    name: str, image_px: int, dim: int, kinds: Sequence[tuple[str, ...]], mlp_width: int, activation: Activation
) -> ViTSpec:
    blocks = tuple(BlockSpec(row, dim // len(row), mlp_width, activation) for row in kinds)
    return ViTSpec(image_px, 4, dim, 10, blocks, name=name)


def observe(
    workload: Workload,
    trace: Trace,
    scheme: Scheme,
    online_s: Sequence[float],
    dealer_s: Sequence[float] = (),
    network: NetworkProfile = LOOPBACK,
    ranges: Ranges = NOTHING_DECLARED,
) -> Observation:
    """What was measured of `workload`, seconds of all its repeats, ready to be fitted or evaluated.

    `trace` is of the run, so under the tuned scheme with the `ranges` that it was given.
    """
    heads = workload.head_traces(scheme, ranges)
    return Observation(workload.what, workload.shape, trace, scheme, tuple(online_s), tuple(dealer_s), network, heads)


def to_record(model: CostModel, fitted: Evaluation, held_out: Evaluation) -> dict[str, Any]:
    """The calibration record: the model, and both evaluations point by point; errors are those of `held_out`.

    Of each workload, `measured_s` is the median run and `predicted_s` p50; `samples_s` holds all runs, `undisturbed`
    compares the fitted seconds with the fastest. `CostModel.from_json` reads the record too.
    """
    return {
        **model.to_json(),
        "fit": [point.to_json() for point in fitted.points],
        "held_out": [point.to_json() for point in held_out.points],
        "median_error": held_out.median_error,
        "p90_error": held_out.p90_error,
        "undisturbed": held_out.undisturbed.to_json(),
        "coverage": held_out.coverage,
        "rank": {"spearman": held_out.scores.spearman, "kendall": held_out.scores.kendall},
        "baselines": held_out.to_json()["baselines"],
    }


def default_path(scheme: Scheme) -> Path:
    """Where this user's calibration for `scheme` is kept: $XDG_CONFIG_HOME/mpc-pareto, or ~/.config/mpc-pareto."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    default = Scheme().to_json()
    # Options that came after the first calibrations are in the name only where they are chosen.
    parts = {k: v for k, v in scheme.to_json().items() if k not in _LATER_OPTIONS or v != default[k]}
    key = "-".join(f"{k}-{v}" if k in _LATER_OPTIONS else str(v) for k, v in parts.items())
    return Path(folder) / "mpc-pareto" / f"calibration-{key}.json"


def save_default(record: dict[str, Any], scheme: Scheme) -> Path:
    """Keeps a calibration record as this user's default for `scheme`; returns where.

    Raises ValueError where the record is of another scheme or no calibration.
    """
    fitted_for = CostModel.from_json(record).scheme
    if fitted_for != scheme:
        raise ValueError(f"this calibration is for {fitted_for.label}; it cannot be the default for {scheme.label}")
    path = default_path(scheme)
    write_json(path, record)
    return path


def load_default(scheme: Scheme | None = None) -> CostModel | None:
    """This user's cost model for `scheme` (the default scheme where none is given); None where nothing was calibrated.

    Raises and warns as `CostModel.from_json`; a file that lacks what this version needs is a ValueError too.
    """
    path = default_path(scheme or Scheme())
    if not path.exists():
        return None
    try:
        return CostModel.load(path)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} was written by another version ({error}): run mpc-pareto calibrate again") from error
