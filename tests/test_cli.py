"""The command line: exit codes, one line for a known error, one JSON object at the end."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import typer

import cli

if TYPE_CHECKING:
    from models.spec import ViTSpec
    from mpc.parties import Parties


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
    for bug in (KeyError("a bug"), RuntimeError("a library's"), FloatingPointError("a library's")):
        with pytest.raises(type(bug)):
            failing(monkeypatch, bug)


def test_a_failed_job_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from nas.jobs import JobError

    reason = 'Traceback (most recent call last):\n  File "x", line 1, in f\nFloatingPointError: loss is nan; lower lr\n'
    assert failing(monkeypatch, JobError(f"0.5 failed:\n{reason}")) == 1
    assert capsys.readouterr().err == "mpc-pareto: 0.5 failed: FloatingPointError: loss is nan; lower lr\n"


def test_what_our_own_code_raises_with_a_message_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import torch

    def ours(body: str) -> Any:
        space: dict[str, Any] = {"__name__": "nas.made_up", "torch": torch}
        exec(f"def verb():\n    {body}", space)
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command()(space["verb"])
        monkeypatch.setattr(cli, "app", app)
        return run(monkeypatch)

    monkeypatch.delenv("MPC_PARETO_DEBUG", raising=False)
    for error in ("RuntimeError", "FloatingPointError"):
        assert ours(f"raise {error}('the gradient was zero; check its weight')") == 1
        assert capsys.readouterr().err == "mpc-pareto: the gradient was zero; check its weight\n"
    with pytest.raises(RuntimeError):  # torch's own, on our line
        ours("torch.ones(2) @ torch.ones(3)")
    monkeypatch.setenv("MPC_PARETO_DEBUG", "1")
    with pytest.raises(RuntimeError):
        ours("raise RuntimeError('the gradient was zero')")


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
    assert run(monkeypatch, "predict", "mpcvit:vit_7_4_32", "--network", "cheeta-wan") == 2
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
    assert payload["offline"]["derived"] is True
    assert sum(row["rounds"] for row in payload["by_op"].values()) == payload["online"]["rounds"]
    assert payload["macs"] == trace.macs


def test_predict_counts_traffic_of_the_batch_and_macs_of_one_image(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    payloads = []
    for batch in ("1", "3"):
        options = ("--batch", batch, "--dealer", "ttp", "--precision-bits", "18")
        assert run(monkeypatch, "predict", "mpcvit:vit_2_4_32", *options, "--json") == 0
        out, error = capsys.readouterr()
        assert error == (
            "no seconds: this machine is not calibrated; run: mpc-pareto calibrate --dealer ttp --precision-bits 18\n"
        )
        payloads.append(json.loads(out))
    one, three = payloads
    assert one["macs"] == three["macs"] and three["online"]["bytes"] > 2 * one["online"]["bytes"]
    assert one["offline"]["derived"] is three["offline"]["derived"] is False


def test_predict_gives_seconds_of_the_calibrated_machine(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from cost_models import calibration

    def seconds(_: Any, scheme: Any, network: Any) -> SimpleNamespace:
        assert scheme.parties == 2
        return SimpleNamespace(p50_s=2.0, p05_s=1.0, p95_s=network.one_way_delay_s)

    monkeypatch.setattr(calibration, "load_default", lambda *_: SimpleNamespace(seconds=seconds))
    assert run(monkeypatch, "predict", "mpcvit:vit_2_4_32", "--network", "400mbit/40ms") == 0
    payload = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert payload["seconds"] == {"400mbit/40ms": {"p50": 2.0, "p05": 1.0, "p95": 0.02}}


@pytest.mark.parties
def test_doctor_finds_this_machine_fit(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert run(monkeypatch, "doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"]


BENCH = ("bench", "attention", "--tokens", "5", "--dim", "8", "--heads", "2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*BENCH, "--heads", "3"), "3 heads do not divide width 8; numbers that do: [1, 2, 4, 8]"),
        (("infer", "no/such/folder"), "there is no folder no/such/folder"),
        (("infer", "mpcvit:vit_2_4_3"), "did you mean vit_2_4_32"),
        (("infer", "mpcvit:vit_2_4_32", "--data", "digit"), "did you mean digits"),
        (("search", "mpcvit", "--out", "x", "--budget", "rounds<=9"), "cannot read the budget 'rounds<=9'"),
        (("retrain", "no/such/run"), "no/such/run is not a run"),
        (("report", "no/such/run"), "no/such/run is not a directory"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_party_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    refused(monkeypatch, capsys, tmp_path, arguments, message, 1)


SEARCH = ("search", "mpcvit", "--out", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*BENCH, "--network", "cheeta-wan"), "did you mean cheetah-wan? Known: loopback,"),
        (("predict", "mpcvit:vit_2_4_32", "--network", "nowhere"), "unknown network 'nowhere'; known: loopback,"),
        ((*SEARCH, "--network", "nowhere"), "unknown network 'nowhere'; known: loopback,"),
        (("bench", "breakdown", "--network", "nowhere", "--emulate", "link"), "unknown network 'nowhere'; known"),
        (("bench", "breakdown", "--network", "cheetah-wan"), "measured, not replayed: add --emulate link"),
        (("bench", "breakdown", "--emulate", "link"), "--emulate link needs --network"),
        (("predict", "mpcvit:vit_2_4_32", "--model-owner", "2"), "model_owner is party 2, but the parties are 0..1"),
        (("infer", "mpcvit:vit_2_4_32", "--reveal-to", "x"), "--reveal-to is a party's number or all, got 'x'"),
        ((*BENCH, "--reveal-to", "7"), "reveal_to is party 7, but the parties are 0..1"),
        ((*BENCH, "--kinds", "softmax,sofmax"), "unknown attention kind 'sofmax'; did you mean softmax?"),
        ((*SEARCH, "--kinds", "relu_softmax,scalin"), "unknown attention kind 'scalin'; did you mean scaling"),
        ((*BENCH, "--scheme", "tunde"), "scheme 'tunde' is not available; choose from: crypten, tuned"),
        (
            (*BENCH, "--scheme", "crypten,tuned", "--parties", "3"),
            "scheme tuned is for two parties and a dealer, not 3",
        ),
        (("predict", "mpcvit:vit_2_4_32", "--scheme", "tuned", "--parties", "3"), "use scheme crypten"),
        (
            (*BENCH, "--scheme", "tuned", "--functions", "released"),
            "has functions documented or max_free, not 'released'",
        ),
        ((*BENCH, "--scheme", "tuned", "--transport", "gloo"), "scheme tuned has transport direct, not 'gloo'"),
        ((*BENCH, "--truncation", "dealer"), "dealer truncation and range checks are options of scheme tuned"),
        (("predict", "mpcvit:vit_2_4_32", "--functions", "documented,released"), "this takes one scheme, not 2"),
        ((*BENCH, "--ranges", "default"), "--ranges default is for scheme tuned"),
        ((*BENCH, "--scheme", "tuned", "--ranges", "defualt"), "there is no file defualt"),
        ((*BENCH, "--save-ranges", "x.json"), "--save-ranges is for tuned schemes with the same functions"),
        (("predict", "mpcvit:vit_2_4_32", "--scheme", "tuned", "--ranges", "calibrated"), "is default or a file of"),
        ((*BENCH, "--emulate", "transport", "--network", "cheetah-wan"), "hide their hops, so that no stamps of ours"),
        ((*BENCH, "--emulate", "netem", "--network", "cheetah-wan"), "choose from: transport, link, replay"),
        (("bench", "links", "--network", "nowhere"), "unknown network 'nowhere'; known"),
        (("bench", "links", "--network", "loopback"), "on loopback nothing is emulated"),
        ((*BENCH, "--emulate", "link"), "--emulate link needs --network"),
        ((*BENCH, "--functions", "release"), "choose from: documented, released"),
        ((*SEARCH, "--functions", "release"), "choose from: documented, released"),
        ((*BENCH, "--parties", "4"), "parties must be 2 or 3, got 4"),
        (("predict", "mpcvit:vit_2_4_32", "--dealer", "tpt"), "choose from: tfp, ttp"),
        (("bench", "model", "mpcvit:vit_2_4_32", "--transport", "glo"), "choose from: gloo"),
        (("infer", "mpcvit:vit_2_4_32", "--weights", "publc"), "choose from: private, public"),
        (("calibrate", "--dealer", "tpt"), "choose from: tfp, ttp"),
        (("calibrate", "--precision-bits", "8"), "precision_bits must lie in 14..20, got 8"),
        (("calibrate", "--evaluate", "fll"), "--evaluate fll is unknown; choose from: none, quick, full"),
        (("infer", "mpcvit:vit_2_4_32", "--network", "cheetah-wan"), "--network does not apply to one network"),
    ],
)
def test_a_misspelt_choice_is_wrong_usage_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    refused(monkeypatch, capsys, tmp_path, arguments, message, 2)


@pytest.mark.parametrize("option", ["--input-owner", "--model-owner", "--reveal-to", "--seed", "--out", "--no-shadow"])
def test_infer_of_a_run_refuses_options_that_it_would_ignore(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path, option: str
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    message = f"{option} does not apply to a run directory; leave it out"
    refused(monkeypatch, capsys, tmp_path, ("infer", ".", option, *["1"] * (option != "--no-shadow")), message, 2)


@pytest.mark.parametrize("verb", [BENCH, ("bench", "ops"), ("bench", "model", "mpcvit:vit_2_4_32"), ("calibrate",)])
def test_a_run_of_another_machine_is_not_added_to(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    from bench.run_directory import RunDirectory, write_json

    manifest = RunDirectory.start(tmp_path / "run", "demo", {}).manifest
    manifest["machine"]["label"] = "Another Processor"
    write_json(tmp_path / "run" / "manifest.json", manifest)
    message = "run cannot be added to here, choose another --out: records of 2 machines"
    refused(monkeypatch, capsys, tmp_path, (*verb, "--out", "run"), message, 1)


@pytest.mark.parametrize("asked", [("predict", "mpcvit:vit_2_4_32"), ("bench", "model", "mpcvit:vit_2_4_32"), BENCH])
def test_ranges_for_another_network_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path, asked: tuple[str, ...]
) -> None:
    (tmp_path / "other.json").write_text('[{"site": "act", "op": "relu", "low": -2, "high": 2}]')
    arguments = (*asked, "--scheme", "tuned", "--ranges", "other.json")
    message = "no row of other.json is for this network: its rows are for relu in module 'act'; this network's"
    refused(monkeypatch, capsys, tmp_path, arguments, message, 1)


def test_the_caption_says_where_the_reference_is_not_crypten_as_released() -> None:
    from mpc.scheme import Scheme
    from verbs_bench import _caption

    tuned = Scheme("tuned", transport="direct")
    assert "the reference is not CrypTen as released over gloo" in _caption([Scheme(), tuned])
    assert "is not CrypTen" not in _caption([Scheme(functions="released"), tuned]) and _caption([tuned]) == ""


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, folder: Path, arguments: tuple[str, ...], message: str, code: int
) -> None:
    """The command line exits with `code` and one line holding `message`; no party is started, nothing is written."""
    from bench import running
    from mpc import parties

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("parties were started")

    monkeypatch.setattr(parties, "Parties", start)
    monkeypatch.setattr(running.SchemeParties, "__enter__", start)
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert run(monkeypatch, *arguments) == code
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert error.startswith("mpc-pareto: ") and message in error
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("arguments", [(*BENCH, "--batch", "0"), (*BENCH, "--repeats", "0"), ("search", "mpcvit")])
def test_values_that_no_verb_takes_are_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: tuple[str, ...]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().out == ""


def test_a_run_without_records_has_nothing_to_report(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    assert run(monkeypatch, "report", str(tmp_path)) == 1
    out, error = capsys.readouterr()
    assert out == "" and "holds no records to report" in error and error.count("\n") == 1


PHASE = {"rounds", "bytes", "per_party"}
ATTENTION_ROW = {
    *("workload", "kind", "shape", "scheme", "transport", "dealer", "parties", "network", "mode", "online", "offline"),
    *("setup", "hops", "seconds", "seconds_per_image", "relative", "peak_bytes", "max_abs_error"),
}


@pytest.mark.parties
def test_bench_attention_ends_with_a_row_for_every_kind_and_link(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    layer = ("--tokens", "9", "--dim", "16", "--heads", "2", "--kinds", "scaling,softmax", "--repeats", "2")
    link = ("--network", "cheetah-wan", "--out", str(tmp_path))
    assert run(monkeypatch, "bench", "attention", *layer, *link, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    payload = json.loads(line)
    assert payload["reference"] == "softmax"
    rows = payload["rows"]
    modes = [("loopback", "measured"), ("cheetah-wan", "replayed")]
    assert [(row["kind"], row["network"], row["mode"]) for row in rows] == [
        (kind, *mode) for kind in ("scaling", "softmax") for mode in modes
    ]
    median_s = [row["seconds"]["online"]["median"] for row in rows]
    expected = [median_s[0] / median_s[2], median_s[1] / median_s[3], 1, 1]
    assert [row["relative"] for row in rows] == pytest.approx(expected)
    for row in rows:
        assert row.keys() >= ATTENTION_ROW
        assert all(row[phase].keys() >= PHASE for phase in ("online", "offline", "setup"))
        assert row["seconds"].keys() == {"online", "dealer", "total", "setup_s"}
        assert row["seconds"]["online"]["n"] == 2
    wan_s = rows[3]["seconds"]["online"]["median"] - rows[2]["seconds"]["online"]["median"]
    link_s = rows[2]["hops"] * 0.02 + rows[2]["online"]["bytes"] / 50e6
    assert link_s - median_s[2] < wan_s < 1.02 * link_s  # what a message waits on loopback overlaps with the link
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["verb"], manifest["seeds"]) == ("bench attention", [0])
    assert (
        manifest["arguments"].items() >= {"tokens": 9, "kinds": "scaling,softmax", "network": ["cheetah-wan"]}.items()
    )
    assert run(monkeypatch, "report", str(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["page"] == str(tmp_path / "report" / "index.html")


@pytest.mark.parties
def test_bench_attention_compares_two_schemes_in_one_run(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    layer = ("--tokens", "9", "--dim", "16", "--heads", "2", "--kinds", "relu_softmax", "--repeats", "2")
    schemes = ("--scheme", "crypten,tuned", "--functions", "released,documented", "--transport", "gloo,direct")
    kept = ("--network", "cheetah-wan", "--save-ranges", str(tmp_path / "ranges.json"), "--out", str(tmp_path / "run"))
    assert run(monkeypatch, "bench", "attention", *layer, *schemes, *kept) == 0
    *table, line = capsys.readouterr().out.splitlines()
    payload = json.loads(line)
    assert payload["reference"] == "crypten released, gloo, tfp"
    assert any("x faster online" in row for row in table) and any(
        "tuned documented, direct, tfp" in row for row in table
    )
    rows = [row for row in payload["rows"] if row["network"] == "loopback"]
    assert [(row["scheme"], row["functions"], row["transport"]) for row in rows] == [
        ("crypten", "released", "gloo"),
        ("crypten", "released", "direct"),
        ("crypten", "documented", "gloo"),
        ("crypten", "documented", "direct"),
        ("tuned", "documented", "direct"),
    ]
    stock, tuned = rows[0], rows[-1]
    for phase in ("online", "total"):
        ratio = stock["seconds"][phase]["median"] / tuned["seconds"][phase]["median"]
        assert tuned["times_faster"][phase] == pytest.approx(ratio)
    assert payload["rows"][-1]["times_faster"]["total"] is None  # replayed: the dealer's link is not known
    assert tuned["setup"]["bytes"] > 0 < tuned["seconds"]["setup_s"] and stock["setup"]["bytes"] == 0
    assert tuned["health"]["ranges"] == "checked by a plain shadow" and not tuned["health"]["outside"]
    saved = json.loads((tmp_path / "ranges.json").read_text())
    assert saved["ranges"] == tuned["health"]["declared"] != []
    assert len((tmp_path / "run" / "attention.jsonl").read_text().splitlines()) == 10


@pytest.mark.parties
def test_the_tuned_scheme_infers_with_ranges_from_training_images_and_from_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path, tuned_parties: Parties
) -> None:
    from bench.run_directory import write_json

    importlib.import_module("bench.running")  # while Parties is still a type
    monkeypatch.setattr("mpc.parties.Parties", lambda scheme: nullcontext(tuned_parties))
    spec, ranges = write_json(tmp_path / "tiny.json", tiny_spec().to_json()), tmp_path / "ranges.json"
    model = ("infer", f"spec:{spec}", "--scheme", "tuned", "--images", "3", "--batch", "2", "--json")
    records = []
    for choice in (("--save-ranges", str(ranges)), ("--ranges", str(ranges), "--range-check"), ("--ranges", "default")):
        assert run(monkeypatch, *model, *choice) == 0
        records.append(json.loads(capsys.readouterr().out))
    calibrated, checked, default = (record["health"] for record in records)
    assert calibrated["ranges"] == default["ranges"] == "checked by a plain shadow"
    assert (checked["ranges"], checked["outside_securely"]) == ("checked securely", 0)
    assert calibrated["declared"] == checked["declared"] != default["declared"] == []
    assert all(record["max_logit_difference"] < 2e-2 for record in records)
    assert all(record["seconds"]["setup_s"] > 0 for record in records)
    assert records[0]["online"]["bytes"] < min(record["online"]["bytes"] for record in records[1:])
    for choice, said in ((), "unchecked"), (("--range-check",), "checked securely"):
        assert run(monkeypatch, *model, "--ranges", str(ranges), "--no-shadow", *choice) == 0
        health = json.loads(capsys.readouterr().out)["health"]
        assert (health["ranges"], health["functions_outside_their_domain"]) == (said, None)
    assert run(monkeypatch, "predict", f"spec:{spec}", "--scheme", "tuned", "--batch", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["online"] == records[2]["online"]
    with_file = ("--ranges", str(ranges), "--range-check", "--batch", "2", "--json")
    assert run(monkeypatch, "predict", f"spec:{spec}", "--scheme", "tuned", *with_file) == 0
    assert json.loads(capsys.readouterr().out)["online"] == records[1]["online"]


def plan_in_miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `calibrate` runs, in seconds: operations and networks of a few elements."""
    from cost_models import calibration
    from cost_models.sweep import CASES, Case, Sizes

    sizes = Sizes(batch=1, tokens=5, dim=8, heads=2, head_dim=4, mlp_width=16)
    networks = (calibration.NetworkWorkload(tiny_spec()),) * 2
    plan = calibration.CalibrationPlan(tuple(Case(name, sizes) for name in CASES), networks, passes=1)
    layers = (calibration.AttentionWorkload(("scaling",) * 2, 5, 8),) * 2
    test = calibration.EvaluationPlan((), layers, (), passes=1, links=1)
    monkeypatch.setattr(calibration, "plan", lambda _: plan)
    monkeypatch.setattr(calibration, "evaluation_plan", lambda *_: test)


@pytest.mark.parties
def test_a_machine_calibrated_for_the_tuned_scheme_predicts_its_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path, tuned_parties: Parties
) -> None:
    monkeypatch.setattr("mpc.parties.Parties", lambda *_: nullcontext(tuned_parties))
    plan_in_miniature(monkeypatch)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    ask = ("predict", "mpcvit:vit_2_4_32", "--scheme", "tuned", "--json", "--network", "cheetah-wan")
    assert run(monkeypatch, *ask) == 0
    assert capsys.readouterr().err.endswith("run: mpc-pareto calibrate --scheme tuned\n")
    assert run(monkeypatch, "calibrate", "--scheme", "tuned", "--evaluate", "none", "--no-links", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["scheme"]["name"], record["evaluation"]) == ("tuned", {})
    assert run(monkeypatch, *ask) == 0
    predicted = json.loads(capsys.readouterr().out)
    link_s = predicted["hops"] * 0.02 + predicted["online"]["bytes"] / 50e6
    assert predicted["seconds"]["cheetah-wan"]["p50"] > link_s
    assert predicted["setup"]["bytes"] > 0


@pytest.mark.parties
def test_an_emulated_link_is_run_on_and_not_replayed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from bench.shaped_link import why_not

    if reason := why_not():
        pytest.skip(reason)
    layer = ("--tokens", "5", "--dim", "8", "--heads", "2", "--kinds", "scaling", "--repeats", "1", "--scheme", "tuned")
    link = ("--network", "100mbit/30ms", "--emulate", "link")
    assert run(monkeypatch, "bench", "attention", *layer, *link, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["network"], row["mode"]) == ("100mbit/30ms", "emulated-link")
    assert row["seconds"]["online"]["median"] > row["hops"] * 0.015


@pytest.mark.parties
def test_a_direct_scheme_runs_on_the_emulated_network_beside_loopback(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    layer = ("--tokens", "5", "--dim", "8", "--heads", "2", "--kinds", "scaling", "--repeats", "1")
    both = ("--scheme", "crypten,tuned", "--network", "100mbit/30ms")
    assert run(monkeypatch, "bench", "attention", *layer, *both, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["scheme"].split()[0], row["network"], row["mode"]) for row in rows] == [
        ("crypten", "loopback", "measured"),
        ("crypten", "100mbit/30ms", "replayed"),
        ("tuned", "loopback", "measured"),
        ("tuned", "100mbit/30ms", "emulated-transport"),
    ]
    assert rows[3]["seconds"]["online"]["median"] > rows[3]["hops"] * 0.015
    assert rows[3]["online"] == rows[2]["online"]


def test_a_machine_without_a_shaped_link_says_why_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.shaped_link.why_not", lambda: "a shaped link needs root: use sudo")
    asked = (*BENCH, "--network", "cheetah-wan", "--emulate", "link")
    refused(monkeypatch, capsys, tmp_path, asked, "a shaped link needs root: use sudo", 1)


@pytest.fixture
def shared_parties(monkeypatch: pytest.MonkeyPatch, two_parties: Parties) -> None:
    """Verbs that would start two parties use those of the session."""
    monkeypatch.setattr("mpc.parties.Parties", lambda *_: nullcontext(two_parties))
    monkeypatch.setattr("bench.running.parties_on", lambda *_, **__: nullcontext(two_parties))


def tiny_spec() -> ViTSpec:
    """One small block that takes the digits."""
    from models.spec import BlockSpec, ViTSpec

    return ViTSpec(32, 16, 8, 10, (BlockSpec(("relu_softmax", "scaling"), 4, 8),), name="tiny")


@pytest.mark.parties
@pytest.mark.usefixtures("shared_parties")
def test_bench_model_and_ops_end_with_their_rows(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    from bench.operations import OPERATIONS
    from bench.run_directory import write_json

    spec = write_json(tmp_path / "tiny.json", tiny_spec().to_json())
    kept = ("--out", str(tmp_path / "run"))
    assert run(monkeypatch, "bench", "model", f"spec:{spec}", "--repeats", "2", "--network", "400mbit/40ms", *kept) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["network"], row["mode"]) for row in rows] == [("loopback", "measured"), ("400mbit/40ms", "replayed")]
    assert sum(rows[1]["by_op_s"].values()) > sum(rows[0]["by_op_s"].values()) > 0
    assert run(monkeypatch, "bench", "ops", "--elements", "128", "--repeats", "1", "--seed", "3", *kept) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["op"] for row in rows] == list(OPERATIONS)
    assert all(row["max_abs_error"] < 2e-2 for row in rows)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["verb"], manifest["arguments"]["model"]) == ("bench model", f"spec:{spec}")
    (added,) = manifest["added"]
    assert (added["verb"], added["arguments"]["elements"], added["seeds"]) == ("bench ops", 128, [3])
    assert run(monkeypatch, "bench", "ops", "--elements", "100") == 1
    assert "elements must be a multiple of 64, got 100; take 64" in capsys.readouterr().err


@pytest.mark.parties
@pytest.mark.usefixtures("shared_parties")
def test_infer_ends_with_the_record_of_a_trained_network(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    from bench.run_directory import write_json
    from models.vit import VisionTransformer
    from nas.checkpoint import save_weights

    write_json(tmp_path / "net" / "spec.json", tiny_spec().to_json())
    save_weights(VisionTransformer(tiny_spec()), tmp_path / "net" / "weights.safetensors")
    images = ("--images", "3", "--batch", "2", "--out", str(tmp_path / "run"))
    assert run(monkeypatch, "infer", str(tmp_path / "net"), *images, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["record"], record["images"], record["batch"]) == ("inference", 3, 2)
    assert record["weights_trained"] is True
    assert 0 <= record["plain_accuracy"] <= 1 and record["max_logit_difference"] < 2e-2
    stored = (tmp_path / "run" / "inference.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in stored] == [{"schema": 1, **record}]
    model = ("infer", f"spec:{tmp_path / 'net' / 'spec.json'}", "--images", "2")
    logits = []
    for seed in ("5", "5", "6"):
        assert run(monkeypatch, *model, "--seed", seed) == 0
        *table, line = capsys.readouterr().out.splitlines()
        record = json.loads(line)
        assert (record["weights_trained"], record["seed"]) == (False, int(seed))
        assert any(f"untrained (seed {seed})" in row for row in table)
        logits.append(record["min_plain_margin"])
    assert logits[0] == logits[1] != logits[2]
    (tmp_path / "net" / "weights.safetensors").unlink()
    assert run(monkeypatch, "infer", str(tmp_path / "net")) == 1
    assert "weights.safetensors is missing; train it first" in capsys.readouterr().err


@pytest.mark.parties
@pytest.mark.usefixtures("shared_parties")
def test_a_calibrated_machine_predicts_seconds(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    from cost_models.calibration import default_path
    from mpc.scheme import Scheme

    plan_in_miniature(monkeypatch)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run(monkeypatch, "predict", "mpcvit:vit_2_4_32", "--json") == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["seconds"] is None and "run: mpc-pareto calibrate" in error
    assert run(monkeypatch, "calibrate", "--no-links", "--out", str(tmp_path)) == 0
    *table, line = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert any("layers: 2 never seen before the model was frozen" in row for row in table)
    for row in ("cost model", *record["evaluation"]["layers"]["baselines"]):
        assert any(row in printed for printed in table)
    kept = json.loads(Path(record.pop("kept_in")).read_text())
    assert kept == json.loads((tmp_path / "calibration.json").read_text()) == record
    assert record["evaluation"].keys() == {"layers"}
    assert run(monkeypatch, "predict", "mpcvit:vit_2_4_32", "--json", "--network", "cheetah-wan") == 0
    seconds = json.loads(capsys.readouterr().out)["seconds"]["cheetah-wan"]
    assert 0 < seconds["p05"] <= seconds["p95"] and seconds["p50"] > 0
    assert run(monkeypatch, "calibrate", "--pace-only", "--no-links") == 2
    assert "--links does not apply to --pace-only without --evaluate; leave it out" in capsys.readouterr().err
    kept_in = default_path(Scheme())
    kept_in.write_text(json.dumps({**record, "others_share": 0.0}))  # whatever else runs beside this test
    assert run(monkeypatch, "calibrate", "--pace-only") == 0
    *said, line = capsys.readouterr().out.splitlines()
    paced = json.loads(line)
    assert f"now {paced['read_pace']['alone']:.2f} times as long" in said[0]
    assert json.loads(kept_in.read_text()) == {key: paced[key] for key in paced if key != "kept_in"}
    assert paced["evaluation"] == record["evaluation"] and len(paced["earlier"]) == 1
    assert run(monkeypatch, "calibrate", "--pace-only", "--evaluate", "quick", "--passes", "2") == 0
    *said, line = capsys.readouterr().out.splitlines()
    tested = json.loads(line)
    assert any("layers: 2 never seen before the model was frozen" in row for row in said)
    assert {len(point["samples_s"]) for point in tested["evaluation"]["layers"]["points"]} == {2}
    assert len(tested["earlier"]) == 2


def test_without_a_calibration_no_pace_is_read(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run(monkeypatch, "calibrate", "--pace-only", "--threads", "2") == 1
    assert "with 2 threads: run mpc-pareto calibrate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "threads", "tested", "links"),
    [
        ((), 1, 9, True),
        (("--evaluate", "none", "--no-links", "--threads", "3"), 3, None, False),
        (("--evaluate", "full", "--passes", "2"), 1, 2, True),
    ],
)
def test_a_model_is_kept_as_soon_as_it_is_fitted(
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    tmp_path: Path,
    options: tuple[str, ...],
    threads: int,
    tested: int | None,
    links: bool,
) -> None:
    import calibrating
    from bench.machine import this_machine
    from cost_models import calibration
    from cost_models.linear import POOLED, CostModel, Spread
    from mpc.scheme import Scheme

    spread = Spread(0.1, 0.1, 0.0, (-1.0, -0.5, 0.5, 1.0))
    model = CostModel({POOLED: {"rounds": 1e-3}}, Scheme(), this_machine().to_json(), spread, threads=threads)

    def interrupted(
        parties: Any, plan: Any, test: Any, _: Any, on_frozen: Any, chosen_links: bool, earlier: Any
    ) -> None:
        assert earlier is None
        assert (parties, plan, chosen_links) == ((Scheme(), threads), "plan", links)
        assert (test and test.passes) == tested
        on_frozen({**model.to_json(), "evaluation": {}})
        raise ValueError("a test that fails; try again")

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("mpc.parties.Parties", lambda *chosen: nullcontext(chosen))
    monkeypatch.setattr(calibrating, "calibrate", interrupted)
    monkeypatch.setattr(calibration, "plan", lambda protocols: {"crypten": "plan"}[protocols])
    test = calibration.EvaluationPlan((), (), (), passes=9)
    monkeypatch.setattr(calibration, "evaluation_plan", lambda *_: test)
    assert run(monkeypatch, "calibrate", *options) == 1
    assert "mpc-pareto: a test that fails; try again\n" in capsys.readouterr().err
    assert calibration.load_default(Scheme(), threads) == model


CALIBRATED = {
    "calibration_s": 61.4,
    "frozen_at": "2026-11-21T10:00:00+00:00",
    "no_links": None,
    "others_share": None,
    "no_earlier": "there is none",
    "earlier": [],
}


@pytest.mark.parametrize(
    ("paces", "said"),
    [
        ([], "no calibration of another hour to compare with (there is none): intervals know this hour's pace only"),
        ([0.9], "intervals hold the pace of 1 calibration before: this machine took 0.90 to 0.90 times as long as now"),
        ([0.9, 1.12], "the pace of 2 calibrations before: this machine took 0.90 to 1.12 times as long as now"),
    ],
)
def test_calibrate_says_what_its_intervals_know_of_other_hours(paces: list[float], said: str, capsys: Any) -> None:
    from verbs_calibrate import _show

    earlier = [{"frozen_at": "then", "pace": pace} for pace in paces]
    why = None if paces else CALIBRATED["no_earlier"]
    _show({**CALIBRATED, "evaluation": {}, "earlier": earlier, "no_earlier": why}, Path("kept.json"))
    assert said in capsys.readouterr().out


def test_a_machine_that_others_used_meanwhile_is_told_so(capsys: Any) -> None:
    from verbs_calibrate import _show

    record = {**CALIBRATED, "evaluation": {}}
    for share, said in ((0.04, False), (None, False), (0.31, True)):
        _show({**record, "others_share": share}, Path("kept.json"))
        out, error = capsys.readouterr()
        assert out.endswith("\ncalibrated in 61 s; frozen 2026-11-21T10:00:00+00:00; kept in kept.json\n")
        assert ("other programs took 31% of the CPU" in error) is said


def test_a_machine_that_changed_its_pace_during_the_test_is_told_so(capsys: Any) -> None:
    from cost_models.evaluation import Point, scored
    from verbs_calibrate import _show

    for pace, said in ((1.04, False), (1.13, True)):
        samples_s = (1.0, 1.0, pace)
        point = Point("linear", "2x3", "loopback", "measured", 1.0, 1.0, 0.9, 0.95, 1.05, 1.1, None, samples_s, {})
        _show({**CALIBRATED, "evaluation": {"layers": scored([point]).to_json()}}, Path("kept.json"))
        out, error = capsys.readouterr()
        assert f"thirds of the passes by {pace - 1:.1%}" in out
        assert ("changed its pace by 13% while layers were tested" in error) is said
