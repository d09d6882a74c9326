"""The order of dependence between the folders, and where CrypTen and the parties may be started from."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("mpc", "models", "bench", "cost_models", "nas", "reports")
NEVER_START_PARTIES = ("models", "cost_models", "nas", "reports")
FILES = sorted(path for folder in ORDER for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {name_of(path): path for path in FILES}


def targets(node: ast.AST) -> set[str]:
    """Dotted names that one import statement may load: of `from a import b`, both `a` and `a.b`."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide the folder; ruff bans them"
        return {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return set()


@cache
def imports(module: str) -> frozenset[str]:
    """Everything that `module` imports anywhere in it, inside functions and for type checking too."""
    tree = ast.parse(MODULES[module].read_text())
    return frozenset(name for node in ast.walk(tree) for name in targets(node))


def imports_on_loading(node: ast.AST) -> set[str]:
    """What loading a module imports at once: statements outside functions."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return set()
    return targets(node).union(*(imports_on_loading(child) for child in ast.iter_child_nodes(node)))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def reached_from(module: str) -> set[str]:
    """`module` and every module of this repository that its imports lead to."""
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [target for target in imports(name) if target in MODULES]
    return reached


@pytest.mark.parametrize("module", MODULES)
def test_folders_import_only_what_stands_before_them(module: str) -> None:
    folder = module.split(".")[0]
    on_top = {"cli", "verbs", "verbs_bench", "verbs_breakdown", "verbs_map", "verbs_replay", "verbs_search"}
    on_top |= {"verbs_recipes", "verbs_throughput", "verbs_calibrate", "verbs_links"}
    on_top |= {"calibrating", "demo", "remeasure", "workflow"}
    later = {*ORDER[ORDER.index(folder) + 1 :], *on_top, "tests", "conftest"}
    assert not {name for name in imports(module) if name.split(".")[0] in later}


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, "models")])
def test_models_take_nothing_but_operators_from_mpc(module: str) -> None:
    taken = {name for name in imports(module) if within(name, "mpc.operators") or name == "mpc"}
    assert {name for name in imports(module) if within(name, "mpc")} == taken


@pytest.mark.parametrize("module", MODULES)
def test_crypten_is_imported_in_mpc_only_and_only_when_used(module: str) -> None:
    if not within(module, "mpc"):
        assert not {name for name in imports(module) if within(name, "crypten")}
    tree = ast.parse(MODULES[module].read_text())
    assert not {name for name in imports_on_loading(tree) if within(name, "crypten")}


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[0] in NEVER_START_PARTIES])
def test_models_costs_searches_and_reports_cannot_start_parties(module: str) -> None:
    assert "mpc.parties" not in reached_from(module)


def test_modules_load_where_crypten_is_not_installed() -> None:
    blocked = "import sys, importlib; sys.modules['crypten'] = None\n"
    load = f"for name in {[*MODULES, 'cli']!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", blocked + load], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
