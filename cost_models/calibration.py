"""What is run to fit the cost model, what it is tested on afterwards, and where the result is kept.

Nothing here starts parties: the plan is plain values, and whoever runs it hands observations back.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from cost_models.linear import CostModel, write_json
from cost_models.sweep import FITTED_SHARES, LIMITS, Case, draw_cases
from models.attention import Attention
from models.spec import Activation, BlockSpec, ViTSpec
from models.vit import VisionTransformer
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from mpc.trace import Trace

_Option = TypeVar("_Option")
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
    """What is fitted: operations of a sweep and whole networks, each run once in each of `passes`.

    On a machine where the passes would take longer than `budget_s` there are fewer, but FEWEST_PASSES in any case.
    """

    cases: tuple[Case, ...]
    networks: tuple[NetworkWorkload, ...]
    passes: int
    budget_s: float = math.inf


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What a frozen model is tested on: operations, layers and networks of other shapes, and links, after the fit.

    The median over all passes is a point. A pass has `sweeps` times as many sweeps as the transport asks for. Of the
    calibration, `reference_networks` and `reference_cases` run among the test's, to read the machine's pace: no points.
    """

    cases: tuple[Case, ...]
    layers: tuple[AttentionWorkload, ...]
    networks: tuple[NetworkWorkload, ...]
    passes: int
    links: int = 0
    link_repeats: int = 1
    sweeps: int = 1
    reference_networks: int = 4
    reference_cases: int = 10


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured, as in `EvaluationPlan`; `cases` are of each operation."""

    cases: int
    layers: int
    networks: int
    passes: int
    links: int = 0
    link_repeats: int = 1
    sweeps: int = 1
    reference_networks: int = 4
    reference_cases: int = 10


# CrypTen's protocols over gloo take ten times as long as the tuned ones, so that they run less often.
CALIBRATIONS: Mapping[str, Effort] = {
    "crypten": Effort(cases=14, layers=0, networks=12, passes=11),
    "tuned": Effort(cases=20, layers=0, networks=15, passes=28),
}
EVALUATIONS: Mapping[str, Effort] = {
    "quick": Effort(cases=3, layers=6, networks=6, passes=5, links=3, link_repeats=3),
    "full": Effort(
        cases=15,
        layers=12,
        networks=32,
        passes=9,
        links=13,
        link_repeats=9,
        sweeps=2,
        reference_networks=8,
        reference_cases=40,
    ),
}
# With starting, fitting and links, a calibration then takes no more than ten minutes.
_BUDGET_S = 450.0
FEWEST_PASSES = 9
# No named profile, and none that the test runs on.
CALIBRATION_LINKS = ("1gbit/1ms", "300mbit/35ms")
_ALIKE = 12  # cases of about as many elements, of which one is fitted
_CALIBRATION_SEED, _EVALUATION_SEED = 1, 14


def plan(protocols: str = "crypten", effort: Effort | None = None) -> CalibrationPlan:
    """The plan for a protocol set, of its own effort unless another is given: a few minutes on 2 cores."""
    effort = effort or CALIBRATIONS[protocols]
    cases = draw_cases(_CALIBRATION_SEED, effort.cases, LIMITS[protocols], (), FITTED_SHARES, _ALIKE)
    networks = spread_networks(_CALIBRATION_SEED, effort.networks, protocols)
    return CalibrationPlan(tuple(cases), networks, effort.passes, _BUDGET_S)


def evaluation_plan(
    calibrated: CalibrationPlan, protocols: str = "crypten", wanted: Effort = EVALUATIONS["quick"]
) -> EvaluationPlan:
    """What to test a model on that was fitted to `calibrated`: nothing that it saw."""
    cases = draw_cases(_EVALUATION_SEED, wanted.cases, LIMITS[protocols], calibrated.cases)
    networks = draw_networks(_EVALUATION_SEED, wanted.networks, protocols)
    return EvaluationPlan(
        tuple(cases),
        _LAYERS[: wanted.layers],
        networks,
        wanted.passes,
        wanted.links,
        wanted.link_repeats,
        wanted.sweeps,
        wanted.reference_networks,
        wanted.reference_cases,
    )


_LAYERS = (
    AttentionWorkload(("softmax",) * 3, 50, 192),
    AttentionWorkload(("relu_softmax",) * 3, 82, 192),
    AttentionWorkload(("scaling",) * 6, 50, 192),
    AttentionWorkload(("softmax", "relu_softmax", "scaling"), 50, 192),
    AttentionWorkload(("quad",) * 5, 50, 320),
    AttentionWorkload(("linformer",) * 3, 50, 192),
    AttentionWorkload(("softmax",) * 3, 26, 96, batch=2),
    AttentionWorkload(("relu_softmax",) * 8, 50, 128, batch=2),
    AttentionWorkload(("scaling",) * 5, 82, 320, batch=2),
    AttentionWorkload(("scaling_linear",) * 3, 82, 192),
    AttentionWorkload(("quad_noshift",) * 3, 26, 96, batch=3),
    AttentionWorkload(("softmax", "quad_noshift"), 65, 128),
)


class _Space(NamedTuple):
    """What the random networks are drawn from; CrypTen's take twenty times as long, so they are smaller."""

    depths: tuple[int, ...]
    images_px: tuple[int, ...]
    dims: tuple[int, ...]
    batches: tuple[int, ...] = (1, 1, 1, 2, 1, 1, 1, 4)
    activations: tuple[Activation, ...] = ("gelu", "gelu", "relu")


_SPACES: Mapping[str, _Space] = {
    "crypten": _Space((1, 2, 3), (16, 20, 24, 28), (64, 96, 128)),
    "tuned": _Space((1, 2, 3, 4, 5, 6, 7), (16, 20, 24, 28, 32, 40), (64, 96, 128, 192, 256)),
}
_KINDS = ("softmax", "relu_softmax", "scaling", "quad")


def draw_networks(seed: int, count: int, protocols: str) -> tuple[NetworkWorkload, ...]:
    """Random vision transformers, the same for the same seed; no shape of one seed is tried for another.

    They come from the spaces of the searches together: an attention kind for every head (MPCViT), depth, width, heads,
    width of heads and of the MLP by block (ViTAS, ViT-ResNAS, UVC). One in four runs 2 or 4 images at once.
    """
    generator, space = random.Random(seed), _SPACES[protocols]
    networks = []
    for number in range(count):
        depth, image_px, dim, batch = map(generator.choice, (space.depths, space.images_px, space.dims, space.batches))
        sizes = depth, image_px, dim, batch, generator.choice(space.activations)
        networks.append(_network(generator, f"random-{seed}-{number}", *sizes))
    return tuple(networks)


def spread_networks(seed: int, count: int, protocols: str) -> tuple[NetworkWorkload, ...]:
    """Networks as `draw_networks` has them, but evenly: a few have every depth, width, image size and batch."""
    generator, space = random.Random(seed), _SPACES[protocols]
    dealt = zip(
        _deck(generator, space.depths, count),
        _deck(generator, space.images_px, count),
        _deck(generator, space.dims, count),
        _deck(generator, space.batches, count),
        _deck(generator, space.activations, count),
        strict=True,
    )
    return tuple(_network(generator, f"spread-{seed}-{number}", *sizes) for number, sizes in enumerate(dealt))


def _deck(generator: random.Random, options: tuple[_Option, ...], count: int) -> list[_Option]:
    """Each of `options` as often as the others, or once more, shuffled."""
    return generator.sample((options * count)[:count], count)


def _network(
    generator: random.Random, name: str, depth: int, image_px: int, dim: int, batch: int, activation: Activation
) -> NetworkWorkload:
    kinds = generator.sample(_KINDS, 2)
    blocks = []
    for _ in range(depth):
        heads = generator.randint(1, 6 if dim > 96 else 4)
        head_dim, mlp_width = generator.choice((16, 24, 32, 48, 64)), round(dim * generator.uniform(0.5, 4.0))
        chosen = tuple(generator.choice(kinds) for _ in range(heads))
        blocks.append(BlockSpec(chosen, head_dim, mlp_width, activation))
    spec = ViTSpec(image_px, 4, dim, generator.choice((10, 100)), tuple(blocks), name=name)
    return NetworkWorkload(spec, batch)


def default_path(scheme: Scheme, threads: int = 1) -> Path:
    """Where this user's calibration for `scheme` is kept: $XDG_CONFIG_HOME/mpc-pareto, or ~/.config/mpc-pareto."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    default = Scheme().to_json()
    # Options that came after the first calibrations are in the name only where they are chosen.
    parts = {k: v for k, v in scheme.to_json().items() if k not in _LATER_OPTIONS or v != default[k]}
    key = "-".join(f"{k}-{v}" if k in _LATER_OPTIONS else str(v) for k, v in parts.items())
    more = f"-threads-{threads}" if threads != 1 else ""
    return Path(folder) / "mpc-pareto" / f"calibration-{key}{more}.json"


def save_default(record: dict[str, Any], scheme: Scheme) -> Path:
    """Keeps a calibration record as this user's default for `scheme`; returns where.

    Raises ValueError where the record is of another scheme or no calibration.
    """
    model = CostModel.from_json(record)
    if model.scheme != scheme:
        raise ValueError(f"this calibration is for {model.scheme.label}; it cannot be the default for {scheme.label}")
    path = default_path(scheme, model.threads)
    write_json(path, record)
    return path


def load_record(scheme: Scheme, threads: int = 1) -> dict[str, Any] | None:
    """The whole calibration record that is this user's default for `scheme`; None where nothing was calibrated.

    Of whatever schema it is. Raises ValueError for a file that is no record.
    """
    path = default_path(scheme, threads)
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it, and calibrate again") from error
    if not isinstance(record, dict) or "schema" not in record or not isinstance(record.get("machine"), dict):
        raise ValueError(f"{path} holds no calibration: remove it, and calibrate again")
    return record


def load_default(scheme: Scheme | None = None, threads: int = 1) -> CostModel | None:
    """This user's cost model for `scheme` (the default scheme where none is given); None where nothing was calibrated.

    Raises and warns as `CostModel.from_json`; a file that lacks what this version needs is a ValueError too.
    """
    path = default_path(scheme or Scheme(), threads)
    if not path.exists():
        return None
    try:
        return CostModel.load(path)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} was written by another version ({error}): run mpc-pareto calibrate again") from error
