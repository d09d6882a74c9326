"""What `predict` loads beyond torch and timm: every further library is waiting time of each call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

UNUSED = ("crypten", "scipy", "sklearn", "pymoo", "matplotlib", "pandas", "tensorboard")
CODE = f"""
import gc, sys
import torch, timm
loaded = set(sys.modules)
import cli
sys.argv = ["mpc-pareto", "predict", "timm:deit_tiny_patch16_224?depth=1", "--scheme", "tuned", "--json"]
try:
    cli.main()
except SystemExit as done:
    assert not done.code
assert gc.isenabled()
more = {{name.partition(".")[0] for name in set(sys.modules) - loaded}}
assert not more & set({UNUSED!r}), more & set({UNUSED!r})
"""


def test_predict_imports_no_library_that_it_does_not_use(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).resolve().parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr  # what libraries print at exit where objects that were passed over stay alive
