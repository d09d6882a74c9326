from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli import app

SMALL = "mpcvit-digits-tiny"


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def last_line(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    payload: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return payload


def test_recipes_lists_what_has_the_name_and_says_what_cannot_be_built() -> None:
    result = run("recipes", "vitas-retrain")
    rows = {row["name"]: row for row in last_line(result)["rows"]}  # type: ignore[attr-defined]
    assert list(rows) == [f"vitas-retrain-{letter}" for letter in "abcef"]
    assert rows["vitas-retrain-c"]["parameters"] == 6_048_414
    assert rows["vitas-retrain-c"]["macs"] == 1_265_114_864
    assert rows["vitas-retrain-c"]["runs"]
    assert rows["vitas-retrain-b"]["parameters"] is None
    assert "cannot be built: the definition of ViTAS-B" in result.stdout
    assert "74.7 % top-1, 92.0 % top-5 (published: ViTAS README table)" in result.stdout


def test_recipes_as_markdown_are_one_line_each() -> None:
    lines = run("recipes", "vitas-retrain", "--markdown").stdout.splitlines()
    assert lines[0].startswith("| recipe | what |")
    assert len(lines) == 2 + 5 + 1
    assert {line.count("|") for line in lines[:-1]} == {9}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipes", "nothing-like-it"], "no recipe has 'nothing-like-it' in its name"),
        (["train", "mpcvit-cifar10-teach"], "did you mean mpcvit-cifar10-teacher?"),
        (["train", "mpcvit-cifar10-teacher"], "give --data cifar10:PATH with the folder's path"),
        (["train", "vitas-retrain-b", "--data", "digits"], "the definition of ViTAS-B (1.0 G) is not published"),
        (["train", "uvc-digits-tiny-stage1"], "cannot be run: not yet"),
        (["train", f"{SMALL}-retrain-mu0.5"], "run the search recipe into the same run first"),
        (
            ["train", f"{SMALL}-retrain-kd-mu0.5", "--spec", "pyproject.toml"],
            "train the teacher's recipe into the same run",
        ),
        (["train", f"{SMALL}-teacher", "--teacher", "models"], "has no teacher: leave out --teacher"),
        (["train", f"{SMALL}-teacher", "--amp", "fp8"], "unknown amp 'fp8'"),
    ],
)
def test_a_command_that_cannot_be_says_what_to_do(tmp_path: Path, words: list[str], message: str) -> None:
    result = run(*words, *(["--out", str(tmp_path / "run")] if words[0] == "train" else []))
    assert result.exit_code != 0
    assert message in str(result.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_steps_of_a_method_share_a_run_and_repeating_one_trains_nothing(tmp_path: Path) -> None:
    words = ("--out", str(tmp_path / "run"), "--epochs", "1", "--json")
    teacher = last_line(run("train", f"{SMALL}-teacher", *words))
    assert last_line(run("train", f"{SMALL}-teacher", *words)) == teacher
    front = last_line(run("train", f"{SMALL}-search", *words))["front"]
    assert [row["name"] for row in front] == ["0.25", "0.5", "0.75"]  # type: ignore[attr-defined]
    taught = last_line(run("train", f"{SMALL}-retrain-kd-mu0.5", *words))
    assert json.loads((tmp_path / f"run/train/{taught['recipe']}/retrained.json").read_text())["distilled"]
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert [entry["arguments"]["recipe"] for entry in manifest["added"]] == [f"{SMALL}-search", str(taught["recipe"])]


@pytest.mark.slow
def test_a_staged_network_trains_with_labels_of_patches(tmp_path: Path) -> None:
    result = last_line(run("train", "resnas-digits-tiny-reference", "--out", str(tmp_path), "--epochs", "2", "--json"))
    rows = [json.loads(line) for line in (Path(str(result["folder"])) / "epochs.jsonl").read_text().splitlines()]
    assert rows[1]["patch_cross_entropy"] < rows[0]["patch_cross_entropy"]
