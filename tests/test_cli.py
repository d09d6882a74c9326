"""The command line: exit codes, one line for a known error, one JSON object at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer

import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["mpc-pareto", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return exit_.value.code


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int | str | None:
    """The exit code of a command line whose verb raises `error`."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def verb() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.delenv("MPC_PARETO_DEBUG", raising=False)
    return run(monkeypatch)


@pytest.mark.parametrize(
    "error", [ValueError("seed 0 is wrong; use 1\nmore"), FileNotFoundError("seed 0 is wrong; use 1")]
)
def test_a_known_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception) -> None:
    assert failing(monkeypatch, error) == 1
    assert capsys.readouterr() == ("", "mpc-pareto: seed 0 is wrong; use 1\n")


def test_a_failed_party_is_a_known_error(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class PartyError(RuntimeError):
        pass

    monkeypatch.setitem(sys.modules, "mpc.parties", SimpleNamespace(PartyError=PartyError))
    reason = "Traceback (most recent call last):\n  File x, line 1, in f\nMemoryError: 3 GiB"
    assert failing(monkeypatch, PartyError(f"party 1: {reason}\n")) == 1
    assert capsys.readouterr().err == "mpc-pareto: party 1: MemoryError: 3 GiB\n"
    assert failing(monkeypatch, PartyError("party 0: its process was ended by SIGKILL")) == 1
    assert capsys.readouterr().err == "mpc-pareto: party 0: its process was ended by SIGKILL\n"


def test_an_unknown_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        failing(monkeypatch, KeyError("a bug"))


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(monkeypatch, KeyboardInterrupt()) == 130


@pytest.mark.parametrize("arguments", [("no-such-verb",), ("doctor", "--no-such-option"), ("predict",)])
def test_wrong_usage_exits_with_2(monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: tuple[str, ...]) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().out == ""


def test_finish_prints_one_compact_line_and_refuses_nan(capsys: Any) -> None:
    cli.finish({"seconds": None, "rounds": (1, 2)})
    assert capsys.readouterr().out == '{"seconds":null,"rounds":[1,2]}\n'
    with pytest.raises(ValueError, match=r"result\.seconds is nan"):
        cli.finish({"seconds": float("nan")})


def test_help_does_not_load_torch() -> None:
    script = "import sys, cli; from typer.testing import CliRunner; CliRunner().invoke(cli.app, ['--help'])\n"
    done = subprocess.run(
        [sys.executable, "-c", script + "print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_modules_roll_up_by_the_first_parts_of_their_names() -> None:
    parts = {"blocks.0.attn.kind.softmax": 1, "blocks.0.attn": 2, "head": 4, "": 8}
    rolled: Any = cli._rolled_up(cast("Any", parts), 3)
    assert rolled == {"blocks.0.attn": 3, "head": 4, "(model)": 8}


def test_an_unknown_network_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert run(monkeypatch, "predict", "mpcvit:vit_7_4_32", "--network", "cheeta-wan") == 1
    assert "did you mean cheetah-wan" in capsys.readouterr().err


@pytest.mark.parametrize("json_only", [True, False])
def test_predict_ends_with_the_totals_of_the_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, json_only: bool
) -> None:
    from models.names import build, input_shape
    from mpc.reading import shape_reading
    from mpc.scheme import Scheme

    name = "mpcvit:vit_7_4_32"
    assert run(monkeypatch, "predict", name, "--network", "cheetah-wan", "--parties", "3", *["--json"] * json_only) == 0
    lines = capsys.readouterr().out.splitlines()
    payload = json.loads(lines[-1])
    assert (len(lines) == 1) == json_only
    network = build(name)
    trace = shape_reading(network, input_shape(network))
    assert payload["online"] == json.loads(json.dumps(trace.traffic(Scheme(parties=3)).online.to_json()))
    assert sum(row["rounds"] for row in payload["by_op"].values()) == payload["online"]["rounds"]
    assert payload["macs"] == trace.macs


def test_predict_gives_seconds_of_the_calibrated_machine(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from cost_models import calibration

    def seconds(_: Any, scheme: Any, network: Any) -> SimpleNamespace:
        assert scheme.parties == 2
        return SimpleNamespace(p50_s=2.0, p05_s=1.0, p95_s=network.one_way_delay_s)

    monkeypatch.setattr(calibration, "load_default", lambda _: SimpleNamespace(seconds=seconds))
    assert run(monkeypatch, "predict", "mpcvit:vit_2_4_32", "--network", "400mbit/40ms") == 0
    payload = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert payload["seconds"] == {"400mbit/40ms": {"p50": 2.0, "p05": 1.0, "p95": 0.02}}


@pytest.mark.parties
def test_doctor_finds_this_machine_fit(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert run(monkeypatch, "doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"]
