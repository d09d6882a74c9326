"""Operations to measure for a cost model: a designed sweep of shapes, run one after the other in one forward pass.

Every operation is a module of its own, so that the spans of a message log say what each took, among others and in the
same process, as it runs inside a network. Nothing here starts parties.
"""

# B images, N tokens, C channels of the stream, H heads, D head_dim, M width of the MLP

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpc.operators import row_normalize

TOKENS = (16, 577)
DIMS = (32, 64, 96, 128, 192, 256, 320, 384, 512, 768)
HEAD_DIMS = (16, 32, 48, 64)
HEADS = (1, 12)
MLP_RATIOS = (0.5, 1.0, 2.0, 4.0)
RUNS = 4  # in a row; the first warms up, the median of the others is a sample
FEWEST = 4  # shapes of one kind of operation that a fit of its own needs
BATCHES = (1, 1, 1, 2, 4, 8, 16, 32)  # most predictions are for single images


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a network that one operation of the sweep is taken from."""

    batch: int
    tokens: int
    dim: int
    heads: int
    head_dim: int
    mlp_width: int

    @property
    def stream(self) -> tuple[int, ...]:
        """B N C."""
        return self.batch, self.tokens, self.dim

    @property
    def hidden(self) -> tuple[int, ...]:
        """B N M."""
        return self.batch, self.tokens, self.mlp_width

    @property
    def scores(self) -> tuple[int, ...]:
        """B H N N."""
        return self.batch, self.heads, self.tokens, self.tokens

    @property
    def queries(self) -> tuple[int, ...]:
        """B H N D."""
        return self.batch, self.heads, self.tokens, self.head_dim


# Functions by name: a module that holds a name can be sent to another process.
_FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "scores": lambda q, k: q @ k.transpose(-2, -1),
    "values": torch.matmul,
    "scale": lambda x: x * 0.17,
    "divide": lambda x: x / 65,
    "shift": lambda x: x + 5.0,
    "residual": torch.add,
    "softmax": lambda x: x.softmax(-1),
    "relu": F.relu,
    "relu_hidden": F.relu,
    "square": torch.square,
    "normalize": lambda x: row_normalize(x, 2.0**-16),
    "gelu": F.gelu,
}


class _Case(nn.Module):
    """An operation on tensors of `shapes`.

    A product does `products` multiply-accumulates an element of the first, and sums up `summed` for one of its result.
    """

    shapes: tuple[tuple[int, ...], ...]
    products: int = 0
    summed: int = 0


class _Function(_Case):
    def __init__(self, name: str, *shapes: tuple[int, ...], products: int = 0) -> None:
        super().__init__()
        self.name, self.shapes, self.products = name, shapes, products
        self.summed = shapes[0][-1] if products else 0

    def forward(self, *inputs: Tensor) -> Tensor:
        return _FUNCTIONS[self.name](*inputs)


class _Layer(_Case):
    def __init__(self, layer: nn.Linear | nn.Conv2d | nn.LayerNorm, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.shapes = layer, (shape,)
        if not isinstance(layer, nn.LayerNorm):
            self.products, self.summed = layer.weight.shape[0], layer.weight[0].numel()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


class _Plus(_Case):
    """A weight added to every image, as position codes are."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.shapes = nn.Parameter(torch.randn(1, *shape[1:])), (shape,)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


def _patches(s: Sizes) -> _Case:
    side = max(2, round((s.tokens - 1) ** 0.5))
    patch_px = 4 if s.head_dim < 48 else 8
    return _Layer(nn.Conv2d(3, s.dim, patch_px, patch_px), (s.batch, 3, side * patch_px, side * patch_px))


def _linear(width_in: str, width_out: Callable[[Sizes], int]) -> Callable[[Sizes], _Case]:
    def make(s: Sizes) -> _Case:
        wide = getattr(s, width_in)
        return _Layer(nn.Linear(wide, width_out(s)), (s.batch, s.tokens, wide))

    return make


def _of(name: str, *shapes: str) -> Callable[[Sizes], _Case]:
    return lambda s: _Function(name, *(getattr(s, shape) for shape in shapes))


# What networks are made of, and where in a vision transformer each stands.
CASES: Mapping[str, Callable[[Sizes], _Case]] = {
    "qkv": _linear("dim", lambda s: 3 * s.heads * s.head_dim),
    "fc1": _linear("dim", lambda s: s.mlp_width),
    "fc2": _linear("mlp_width", lambda s: s.dim),
    "head": lambda s: _Layer(nn.Linear(s.dim, 10 if s.heads < 6 else 100), (s.batch, s.dim)),
    "patches": _patches,
    "scores": lambda s: _Function("scores", s.queries, s.queries, products=s.tokens),
    "values": lambda s: _Function("values", s.scores, s.queries, products=s.head_dim),
    "scale": _of("scale", "scores"),
    "divide": _of("divide", "scores"),
    "shift": _of("shift", "scores"),
    "residual": _of("residual", "stream", "stream"),
    "position": lambda s: _Plus(s.stream),
    "softmax": _of("softmax", "scores"),
    "relu": _of("relu", "scores"),
    "relu_hidden": _of("relu_hidden", "hidden"),
    "square": _of("square", "scores"),
    "normalize": _of("normalize", "scores"),
    "gelu": _of("gelu", "hidden"),
    "layer_norm": lambda s: _Layer(nn.LayerNorm(s.dim), s.stream),
    "class_norm": lambda s: _Layer(nn.LayerNorm(s.dim), (s.batch, s.dim)),
}

# Cases to fit, in shares of one name's: products have the most to tell apart (rows, columns, caches), those of two
# secrets and convolutions are fitted by themselves, and what only adds or scales is soon known.
FITTED_SHARES: Mapping[str, float] = {
    "patches": 2.0,
    "scores": 2.0,
    "values": 2.0,
    **dict.fromkeys(("qkv", "fc1", "fc2", "head", "relu", "relu_hidden"), 0.75),
    **dict.fromkeys(("scale", "divide", "shift", "residual", "class_norm"), 0.5),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One operation of CASES at one size."""

    name: str
    sizes: Sizes

    @property
    def label(self) -> str:
        """Its name and shapes, for records."""
        outline = _outline(self)
        shapes = [tuple(tensor.shape) for tensor in outline.parameters()] + list(outline.shapes)
        return f"{self.name} {' '.join('x'.join(map(str, shape)) for shape in shapes)}"

    @property
    def elements(self) -> int:
        """Elements of its inputs, or of its result where they are more."""
        outline = _outline(self)
        result = self.macs // outline.summed if outline.summed else 0
        return max(sum(prod(shape) for shape in outline.shapes), result)

    @property
    def place(self) -> tuple[float, ...]:
        """Logarithms of its first input's sizes, and of what a product makes of an element."""
        outline = _outline(self)
        return tuple(math.log(size) for size in (*outline.shapes[0], max(1, outline.products)))

    @property
    def macs(self) -> int:
        """Multiply-accumulates, for products."""
        outline = _outline(self)
        return int(prod(outline.shapes[0]) * outline.products)

    def module(self) -> _Case:
        """The operation; `shapes` are those of its inputs. Random weights come from the caller's generator."""
        return CASES[self.name](self.sizes)


@lru_cache(maxsize=20_000)
def _outline(case: Case) -> _Case:
    """The operation without data: a plan draws thousands to choose from."""
    with torch.device("meta"):
        return case.module()


class Sweep(nn.Module):
    """Cases one after the other in any `order`, each on the first elements of one long input, which is not negative.

    Each runs RUNS times in a row, of which the first does not count: inside a network, too, an operation finds memory
    and code as others like it left them. The module of case number i is `cases.i`, which is the site of its operations.
    The result is the last case's.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = [case.module() for case in cases]
        self.cases = nn.ModuleList(made)
        self.shapes = [module.shapes for module in made]
        self.order = list(range(len(made)))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input that is long enough for every case."""
        return (max(prod(shape) for shapes in self.shapes for shape in shapes),)

    def forward(self, x: Tensor) -> Tensor:
        """The last case's result."""
        y = x
        for number in self.order:
            for _ in range(RUNS):
                y = self.cases[number](*(x[: prod(shape)].reshape(shape) for shape in self.shapes[number]))
        return y


def number_of(site: str) -> int:
    """Which case of a sweep an operation belongs to, by its site."""
    return int(site.split(".")[1])


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest operations of a sweep: elements of their inputs and results, and multiply-accumulates of products."""

    elements: int
    macs: int


# About what one layer of DeiT-Ti at 224 pixels needs; CrypTen's comparisons send ten times the bytes of the tuned ones.
LIMITS: Mapping[str, Limits] = {"crypten": Limits(120_000, 200_000_000), "tuned": Limits(600_000, 400_000_000)}


def draw_cases(
    seed: int,
    each: int,
    limits: Limits,
    avoid: Sequence[Case] = (),
    shares: Mapping[str, float] | None = None,
    alike: int = 1,
) -> list[Case]:
    """`each` cases of every name within `limits`, spread evenly over the logarithm of their elements, in random order.

    A name in `shares` has that many times as many, but no fewer than FEWEST unless `each` is. Same seed, same cases;
    none has the shapes of one of `avoid`. Sizes are drawn as networks have them; of `alike` cases of as many elements
    that which is least like those before is taken. Raises ValueError where too few of those drawn are within the
    limits.
    """
    generator = random.Random(seed)
    taken = {case.label for case in avoid}
    cases: list[Case] = []
    for name in CASES:
        count = max(min(each, FEWEST), round(each * (shares or {}).get(name, 1.0)))
        pool: dict[str, Case] = {}
        for _ in range(30 * count):
            case = Case(name, _draw_sizes(generator))
            if case.elements <= limits.elements and case.macs <= limits.macs and case.label not in taken:
                pool[case.label] = case
        if len(pool) < count:
            raise ValueError(f"only {len(pool)} of {count} cases of {name} are within {limits}; allow larger ones")
        cases += _spread(sorted(pool.values(), key=lambda case: case.elements), count, alike)
    generator.shuffle(cases)
    return cases


def _draw_sizes(generator: random.Random) -> Sizes:
    def log_uniform(low: int, high: int) -> int:
        return round(math.exp(generator.uniform(math.log(low), math.log(high))))

    heads, head_dim = log_uniform(*HEADS), generator.choice(HEAD_DIMS)
    dim = generator.choice(DIMS)
    mlp_width = max(16, round(dim * generator.choice(MLP_RATIOS)))
    return Sizes(generator.choice(BATCHES), log_uniform(*TOKENS), dim, heads, head_dim, mlp_width)


def _spread(cases: Sequence[Case], count: int, alike: int = 1) -> Iterator[Case]:
    """For each of `count` numbers of elements at equal ratios, of the `alike` cases nearest to it, one; no case twice.

    It is the one whose other sizes are furthest from those of all before: of the same number of elements, one case has
    long rows and another many images, and the fit is to have seen both.
    """
    left, chosen = list(cases), list[tuple[float, ...]]()
    low, high = math.log(cases[0].elements), math.log(cases[-1].elements)
    for number in range(count):
        wanted = low + (high - low) * (number + 0.5) / count
        nearest = sorted(left, key=lambda case: abs(math.log(case.elements) - wanted))[:alike]
        case = max(nearest, key=lambda case: min((math.dist(case.place, before) for before in chosen), default=0.0))
        left.remove(case)
        chosen.append(case.place)
        yield case
