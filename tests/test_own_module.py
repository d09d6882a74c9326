"""The README's examples of an own attention kind and an own module, run as a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


def examples() -> list[str]:
    """The Python blocks between the markers of the README."""
    section = (
        README.read_text().partition("<!-- own-module-example -->")[2].partition("<!-- /own-module-example -->")[0]
    )
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def test_an_own_kind_and_an_own_module_take_at_most_15_lines_each() -> None:
    kind, module = examples()
    assert "@attention_kind" in kind and "torch.nn.Linear):" in module
    for example in (kind, module):
        lines = [line for line in example.splitlines() if line.strip()]
        assert len(lines) <= 15
        assert max(map(len, lines)) <= 120


@pytest.mark.parties
@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1], ids=["kind", "module"])
def test_the_example_of_the_readme_predicts_benches_and_infers(tmp_path: Path, index: int) -> None:
    script = tmp_path / "example.py"
    script.write_text(examples()[index])
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert list(said) == ["predict", "bench", "infer"]
    rounds = re.search(r"online.*rounds=\((\d+), (\d+)\)", said["predict"])
    assert rounds is not None and rounds[1] == rounds[2] and int(rounds[1]) > 0
    seconds = [float(number) for number in re.findall(r"\d+\.\d+(?:e-\d+)?", said["bench"])]
    assert len(seconds) >= 5 and all(0 < s < 60 for s in seconds)
    assert float(said["infer"]) >= 0.75
