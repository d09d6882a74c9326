from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from mpc.network import PROFILES, network
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from mpc.table import row, row_named
from mpc.tensor import SecretError
from tests.mpc.workloads import Encoder, Misbehaving, Shapeless


def test_deit_tiny_has_its_published_multiply_accumulates() -> None:
    trace = shape_reading(timm.create_model("deit_tiny_patch16_224").eval(), (1, 3, 224, 224))
    assert trace.macs == 1_253_683_200
    assert sum(operation.op == "softmax" for operation in trace.operations) == 12
    assert trace.within("blocks.3.mlp").by_op(Scheme()).keys() == {"linear", "gelu"}


def test_sums_over_modules_and_operations_are_the_whole() -> None:
    scheme = Scheme(parties=3)
    trace = shape_reading(timm.create_model("deit_tiny_patch16_224", depth=2).eval(), (1, 3, 224, 224))
    for groups in (trace.by_op(scheme), trace.by_module(scheme)):
        parts = list(groups.values())
        assert sum(parts[1:], parts[0]) == trace.traffic(scheme)


def test_a_position_code_computed_from_constants_is_not_billed() -> None:
    class Coded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            angle = torch.arange(7) / torch.arange(1, 8)
            return x + torch.sin(angle) / angle.exp()

    trace = shape_reading(Coded().eval(), (2, 7))
    assert [operation.op for operation in trace.operations] == ["add"]
    assert trace.operations[0].operands[1].visibility == "public"


def test_visibility_follows_weights_through_views() -> None:
    class Prefixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 7))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.token.expand(2, 3, 7).reshape(6, 7) * torch.cat([x, self.token[0]])

    operands = shape_reading(Prefixed().eval(), (5, 7)).operations[0].operands
    assert [operand.visibility for operand in operands] == ["weight", "secret"]


def test_index_buffers_stay_public_and_tied_weights_are_shared_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(7, 7)
            self.b = self.a
            self.register_buffer("order", torch.arange(6, -1, -1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.b(self.a(x)).index_select(-1, self.order)
            return result

    trace = shape_reading(Tied().eval(), (2, 7))
    assert [operation.op for operation in trace.operations] == ["linear", "linear"]


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("branch", "needs the value of a secret"),
        ("item", "needs the value of a secret"),
        ("numpy", "needs the value of a secret"),
        ("write", "writes a secret into a public tensor"),
        ("shared_view", "other views share"),
        ("unknown", "no row for it"),
    ],
)
def test_what_shares_cannot_do_is_refused_and_names_the_module(how: str, what: str) -> None:
    with pytest.raises(SecretError, match=rf"module inner: .*{what}"):
        shape_reading(Misbehaving(how).eval(), (3, 3))


def test_training_mode_and_strange_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        shape_reading(Encoder().train(), (1, 5, 8))
    with pytest.raises(ValueError, match="returned tuple"):
        shape_reading(Shapeless().eval(), (1, 5))


def test_the_table_refuses_doubles_and_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="in the table already"):
        row("relu", sends=lambda scheme, operation: [])(lambda scheme, x: x)
    with pytest.raises(ValueError, match="did you mean softmax"):
        row_named("softmaxx")


def test_reading_leaves_the_module_as_it_was() -> None:
    module = Encoder().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    shape_reading(module, (1, 5, 8))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


def test_networks_are_found_by_name_or_made_ad_hoc() -> None:
    wan = network("cheetah-wan")
    assert (wan.one_way_delay_s, wan.bytes_per_s) == (0.02, 50e6)
    same = network("400mbit/40ms")
    assert (same.one_way_delay_s, same.bytes_per_s) == (wan.one_way_delay_s, wan.bytes_per_s)
    assert wan.link_s(4, 50e6) == pytest.approx(1.08)
    assert all(profile.source for profile in PROFILES.values())
    with pytest.raises(ValueError, match="did you mean cheetah-wan"):
        network("cheeta-wan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "tuned"}, "not available|has transport"),
        ({"parties": 4}, "2 or 3"),
        ({"transport": "carrier"}, "choose from: gloo"),
        ({"precision_bits": 40}, "14..20"),
    ],
)
def test_a_wrong_scheme_cannot_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheme(**options)


def test_the_shape_reading_does_not_import_crypten() -> None:
    import subprocess
    import sys

    code = "import sys, mpc.reading, mpc.rows; sys.exit('crypten' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
