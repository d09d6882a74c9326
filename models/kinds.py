"""The table of attention kinds: what a head computes from its queries, keys and values.

A *map* kind turns scores S = Q K^T / sqrt(d) into attention weights A, and the layer computes A V for all such heads at
once. A *whole* kind turns q, k and v into the head's output by itself. Adding a kind is one function and its decorator.
"""

# B images, H heads (of one kind), N tokens, D head_dim, R rows of Linformer's projection

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpc.operators import row_normalize

Form = Literal["map", "whole"]
Definition = TypeVar("Definition", bound=Callable[..., Any])

EPS = 2.0**-16  # the smallest fixed-point number with 16 fractional bits; the paper's 1e-5 encodes to 0 there
QUAD_SHIFT = 5.0  # MPCFormer's c
LINFORMER_RATIO = 0.3  # of the tokens; the smallest of the three that MPCViT compares with


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """What a kind with parameters may need to know of the layer it stands in; `tokens` counts the class token."""

    tokens: int
    head_dim: int
    linformer_k: int | None = None
    attn_dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table: `make(layout)` is the module that computes the kind over all its heads in a layer."""

    name: str
    form: Form
    make: Callable[[AttentionLayout], nn.Module]
    summary: str


KINDS: dict[str, Kind] = {}


class FunctionKind(nn.Module):
    """A kind without parameters as a module, so that a trace names it as the site of its operations."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *operands: Tensor) -> Tensor:
        """What the function says: scores for a map kind; q, k and v for a whole one."""
        return self._function(*operands)


def attention_kind(name: str, form: Form = "map") -> Callable[[Definition], Definition]:
    """Register the decorated function, or `nn.Module` class, as the attention kind `name`.

    A map kind is called with `scores_BHNN` and returns weights of that shape; a whole kind is called with `q_BHND`,
    `k_BHND` and `v_BHND` and returns the output of that shape. A class is constructed with an `AttentionLayout`.
    Use ordinary functional torch operations, none in place, so that the secure reading can run it.
    Raises ValueError for a name that is taken or that cannot name a module.
    """
    if name in KINDS:
        raise ValueError(f"attention kind {name!r} is registered already; choose another name")
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ValueError(f"{name!r} cannot name an attention kind: want an identifier that nn.ModuleDict does not use")
    if form not in ("map", "whole"):
        raise unknown_name("form of an attention kind", form, ("map", "whole"))

    def register(definition: Definition) -> Definition:
        summary = (definition.__doc__ or "").partition("\n")[0]
        KINDS[name] = Kind(name, form, _maker(definition), summary)
        return definition

    return register


def _maker(definition: Any) -> Callable[[AttentionLayout], nn.Module]:
    if isinstance(definition, type) and issubclass(definition, nn.Module):
        return definition
    return lambda layout: FunctionKind(definition)


def kind_named(name: str) -> Kind:
    """The row called `name`; ValueError naming the nearest where there is none."""
    if name not in KINDS:
        raise unknown_name("attention kind", name, KINDS)
    return KINDS[name]


def unknown_name(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is not in a table: the nearest one, then all of them, or the near ones of very many."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=5)
    hint = f"; did you mean {near[0]}?" if near else "."
    listed = f" Known: {', '.join(names)}" if len(names) <= 40 else f" Near: {', '.join(near)}" if near[1:] else ""
    return ValueError(f"unknown {what} {name!r}{hint}{listed}")


@attention_kind("softmax")
def softmax(scores_BHNN: Tensor) -> Tensor:
    """exp(S) / sum exp(S)."""
    return torch.softmax(scores_BHNN, dim=-1)


@attention_kind("relu_softmax")
def relu_softmax(scores_BHNN: Tensor, eps: float = EPS) -> Tensor:
    """relu(S) / (sum relu(S) + eps), MPCViT's RSAttn.

    Unlike the paper's code (1e-5 and 1e-8), eps is representable in fixed point, so a row without a positive score
    gives 0 under secure computation too.
    """
    weights_BHNN: Tensor = row_normalize(torch.relu(scores_BHNN), eps)
    return weights_BHNN


@attention_kind("scaling")
def scaling(scores_BHNN: Tensor) -> Tensor:
    """S / N, MPCViT's ScaleAttn; N counts the class token."""
    return scores_BHNN / scores_BHNN.shape[-1]


@attention_kind("scaling_linear", form="whole")
def scaling_linear(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    """Q (K^T V) / (N sqrt(d)): `scaling` in linear order, 2 N d^2 multiplications a head instead of 2 N^2 d.

    Unlike the paper, which divides Q and K by sqrt(N) each, the small product K^T V carries all public factors.
    """
    tokens, head_dim = q_BHND.shape[-2:]
    context_BHDD = (k_BHND.transpose(-2, -1) @ v_BHND) * float(head_dim**-0.5) / tokens
    return q_BHND @ context_BHDD


@attention_kind("quad")
def quad(scores_BHNN: Tensor, shift: float = QUAD_SHIFT) -> Tensor:
    """(S + 5)^2 / sum (S + 5)^2, MPCFormer's 2Quad with its shift; without eps, as published."""
    weights_BHNN: Tensor = row_normalize(torch.square(scores_BHNN + shift), 0.0)
    return weights_BHNN


@attention_kind("quad_noshift")
def quad_noshift(scores_BHNN: Tensor, eps: float = EPS) -> Tensor:
    """S^2 / (sum S^2 + eps), 2Quad as MPCViT's code has it."""
    weights_BHNN: Tensor = row_normalize(torch.square(scores_BHNN), eps)
    return weights_BHNN


@attention_kind("linformer", form="whole")
class Linformer(nn.Module):
    """softmax(Q (E K)^T / sqrt(d)) (E V) with one learnable E of R rows, shared by heads, keys and values.

    R is `linformer_k` of the layout, or round(0.3 N). Keys and values pass E in one product, which opens E once.
    """

    def __init__(self, layout: AttentionLayout) -> None:
        super().__init__()
        rows = layout.linformer_k or round(LINFORMER_RATIO * layout.tokens)
        self.projection = nn.Parameter(torch.empty(max(rows, 1), layout.tokens))
        nn.init.xavier_uniform_(self.projection, gain=2**0.5)
        self.dropout = nn.Dropout(layout.attn_dropout)

    def forward(self, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        """Output of every head, B H N D."""
        head_dim = q_BHND.shape[-1]
        both = torch.cat([k_BHND, v_BHND], dim=-1).transpose(-2, -1)  # B H 2D N
        keys_BHDR, values_BHDR = torch.split(F.linear(both, self.projection), head_dim, dim=-2)
        weights_BHNR = torch.softmax((q_BHND @ keys_BHDR) * float(head_dim**-0.5), dim=-1)
        output_BHND: Tensor = self.dropout(weights_BHNR) @ values_BHDR.transpose(-2, -1)
        return output_BHND
