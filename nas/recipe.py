"""Recipes: the published configurations of the four papers, and small ones, as files that name everything they set.

`recipes/*.toml` holds them. A file describes one recipe, named as the file, or one for each table `[variants.NAME]`,
named FILE-NAME and made of the file's own tables with the variant's laid over them. `extends = "FILE"` begins with
another file's tables; one that is `abstract` is there to be extended only. `{name}`, `{file}` and `{data}` in a command
or a teacher's name stand for the names of recipe, file and data set.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from models.kinds import unknown_name
from nas.augmentation import POLICIES, Augmentation, Policy
from nas.settings import Mixing, PatchMixing, TrainSettings

FOLDER = Path(__file__).parent / "recipes"

Method = Literal["mpcvit", "vitas", "uvc", "resnas"]
Stage = Literal["train", "search", "retrain", "compress", "finetune"]
SourceOfFigure = Literal["published", "measured", "unknown"]
Teaching = Literal["logits", "tokens", "soft", "hard"]
Value = TypeVar("Value")

# What a search of each method may be told; the values are its own to judge.
SEARCH_FIELDS: dict[str, tuple[str, ...]] = {
    "mpcvit": ("kinds", "objective", "l1_weight", "parametrisation", "ratios"),
    "vitas": (
        *(
            "patches_px",
            "slots",
            "heads",
            "embed_max",
            "width_max",
            "ratios",
            "identity",
            "sides",
            "qkv",
            "macs_window",
        ),
        *("population", "generations", "score"),
    ),
    "uvc": (
        *("budget", "gate_warmup_epochs", "gate_lr", "gate_weight", "gate_interval", "dual_lr", "primal_lr"),
        *("budget_lr", "gradient_clip", "block_gates", "patch_gates", "gumbel", "eps", "eps_decay", "distilled_tokens"),
    ),
    "resnas": (
        *("space", "architectures_per_batch", "warmup_epochs", "sampling", "macs_limit", "population", "iterations"),
        *("parents", "mutated", "crossed", "mutate_probability", "held_out_per_class"),
    ),
}


@dataclass(frozen=True, slots=True)
class Expected:
    """What to expect of a run, and who says so: `where` names the table or record. ValueError for a claim without."""

    value: str = ""
    source: SourceOfFigure = "unknown"
    where: str = ""

    def __post_init__(self) -> None:
        if self.source not in get_args(SourceOfFigure):
            raise unknown_name("source", self.source, get_args(SourceOfFigure))
        if (self.source == "unknown") != (self.value == "") or (self.source != "unknown" and not self.where):
            raise ValueError("a value has a source (published or measured) and says where; without value it is unknown")

    def __str__(self) -> str:
        """The value with its source in brackets, or unknown."""
        return f"{self.value} ({self.source}: {self.where})" if self.value else "unknown"


@dataclass(frozen=True, slots=True)
class Figures:
    """Published counts that the built network must have. `macs_published` is by ViTAS's own way of counting."""

    parameters: int | None = None
    parameters_millions: float | None = None
    macs: int | None = None
    macs_billions: float | None = None
    macs_published: int | None = None


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The network by its MODEL name; `patch_head` trains labels of patches as well (staged networks)."""

    name: str
    patch_head: bool = False


@dataclass(frozen=True, slots=True)
class Teacher:
    """Distillation: `recipe` names whose result teaches, `model` says which network with weights of its own does."""

    kind: Teaching
    recipe: str = ""
    model: str = ""
    alpha: float = 0.5
    temperature: float = 1.0
    token_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Teaching):
            raise unknown_name("kind of distillation", self.kind, get_args(Teaching))


@dataclass(frozen=True, slots=True)
class Recipe:
    """One configuration, ready to be built. `processes` share the update's images, `train.batch` is that of each.

    `data` is what to load, with PATH in place of a folder; `front` names which network of a search is retrained.
    `missing` says why a recipe cannot be built, `command` begins with "not yet" where no verb runs it. Both kinds are
    here so that nothing published is passed over in silence.
    """

    name: str
    method: Method
    stage: Stage
    paper: str
    reproduces: str
    command: str
    data: str
    expected_time: Expected = field(default_factory=Expected)
    expected_result: Expected = field(default_factory=Expected)
    model: ModelChoice | None = None
    train: TrainSettings | None = None
    processes: int = 1
    front: str = ""
    figures: Figures = field(default_factory=Figures)
    teacher: Teacher | None = None
    search: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""
    notes: str = ""

    @property
    def buildable(self) -> bool:
        """Whether network and settings are known."""
        return not self.missing

    @property
    def runs(self) -> bool:
        """Whether a verb runs it today."""
        return self.buildable and not self.command.startswith("not yet")


def recipe_names(folder: Path = FOLDER) -> list[str]:
    """Names of all recipes, by file, variants in the file's order."""
    return [name for name, _ in _all(folder)]


def recipe_named(name: str, folder: Path = FOLDER) -> Recipe:
    """The recipe called `name`.

    Raises ValueError that names the nearest for an unknown one, and the recipe and the key for a file that is wrong.
    """
    known = dict(_all(folder))
    if name not in known:
        raise unknown_name("recipe", name, known)
    try:
        return _recipe(name, *known[name])
    except (ValueError, TypeError) as error:
        raise ValueError(f"recipe {name}: {error}") from error


def all_recipes(folder: Path = FOLDER) -> list[Recipe]:
    """Every recipe, in the order of `recipe_names`."""
    return [recipe_named(name, folder) for name in recipe_names(folder)]


@cache
def _all(folder: Path) -> list[tuple[str, tuple[str, dict[str, Any]]]]:
    """Name, file and tables of every recipe."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        if tomllib.loads(path.read_text()).get("abstract"):
            continue
        tables = _tables(folder, path.stem, ())
        variants = tables.pop("variants", {})
        for variant, change in variants.items() if variants else [("", {})]:
            name = f"{path.stem}-{variant}" if variant else path.stem
            found.append((name, (path.stem, _laid_over(tables, change))))
    return found


def _tables(folder: Path, stem: str, through: tuple[str, ...]) -> dict[str, Any]:
    """The tables of a file, laid over those that it extends."""
    path = folder / f"{stem}.toml"
    if stem in through:
        raise ValueError(f"recipe files extend each other in a circle: {' -> '.join((*through, stem))}")
    if not path.is_file():
        raise unknown_name(
            f"recipe file (extended by {through[-1]})", stem, sorted(p.stem for p in folder.glob("*.toml"))
        )
    try:
        own = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name} is not TOML: {error}") from error
    extended = own.pop("extends", None)
    own.pop("abstract", None)
    return _laid_over(_tables(folder, extended, (*through, stem)), own) if extended else own


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables in which `above` has the last word, key by key; a table `expected_...` is replaced as a whole."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and not key.startswith("expected_")
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


_TABLES = ("recipe", "model", "figures", "data", "train", "augmentation", "mixing", "distillation", "search")


def _recipe(name: str, file: str, tables: Mapping[str, Any]) -> Recipe:
    for key in tables:
        if key not in _TABLES:
            raise unknown_name("table", key, _TABLES)
    about = dict(tables.get("recipe", {}))
    own = [f.name for f in fields(Recipe) if f.name not in (*_TABLES, "name", "teacher")]
    _demand_known("recipe", about, own)
    for key in ("expected_time", "expected_result"):
        if key in about:
            about[key] = _made(f"recipe.{key}", Expected, about[key])
    for key, known in (("method", get_args(Method)), ("stage", get_args(Stage))):
        if about.get(key) not in known:
            raise unknown_name(key, str(about.get(key)), known)
    data = tables.get("data", {})
    _demand_known("data", data, ["name"])
    names = {"{name}": name, "{file}": file, "{data}": data.get("name", "")}
    about["command"] = _filled(about.get("command", ""), names)
    missing = bool(about.get("missing"))
    return Recipe(
        name=name,
        data=data.get("name", ""),
        model=_made("model", ModelChoice, tables["model"]) if "model" in tables and not missing else None,
        train=_settings(tables) if tables.get("train", "none") != "none" and not missing else None,
        figures=_made("figures", Figures, tables.get("figures", {})),
        teacher=_optional(tables, "distillation", lambda table: _teacher(table, names)),
        search=_optional(tables, "search", lambda table: _search(about["method"], table)) or {},
        **about,
    )


def _filled(text: str, names: Mapping[str, str]) -> str:
    for mark, value in names.items():
        text = text.replace(mark, value)
    return text


def _teacher(table: Mapping[str, Any], names: Mapping[str, str]) -> Teacher:
    return _made("distillation", Teacher, {**table, "recipe": _filled(table.get("recipe", ""), names)})


def _settings(tables: Mapping[str, Any]) -> TrainSettings:
    extra = {
        "augmentation": _optional(tables, "augmentation", _augmentation),
        "mixing": _optional(tables, "mixing", _mixing),
    }
    _demand_known("train", tables["train"], [f.name for f in fields(TrainSettings) if f.name not in extra])
    return _made("train", TrainSettings, {**tables["train"], **extra})


def _augmentation(table: Mapping[str, Any]) -> Augmentation | Policy:
    """`kind = "affine"` is the demo's small maps; else fields of a policy, over the one that `policy` names."""
    values = dict(table)
    if values.pop("kind", "policy") == "affine":
        return _made("augmentation", Augmentation, values)
    named = values.pop("policy", None)
    if named is not None and named not in POLICIES:
        raise unknown_name("policy", named, POLICIES)
    _demand_known("augmentation", values, [f.name for f in fields(Policy)])
    return replace(POLICIES[named] if named else Policy(), **values)


def _mixing(table: Mapping[str, Any]) -> Mixing | PatchMixing:
    return _made("mixing", PatchMixing, table) if "cells" in table else _made("mixing", Mixing, table)


def _search(method: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
    _demand_known("search", table, SEARCH_FIELDS[method])
    return dict(table)


def _optional(tables: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any]], Value]) -> Value | None:
    """A table as a value; None where there is none, or where it is "none", which takes back what was extended."""
    table = tables.get(name, "none")
    return None if table == "none" else read(table)


def _made(table: str, cls: type[Value], values: Mapping[str, Any]) -> Value:
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    _demand_known(table, values, known)
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    if lacking := [name for name in required if name not in values]:
        raise ValueError(f"table {table} lacks {', '.join(lacking)}")
    return cls(**values)


def _demand_known(table: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
    names = list(known)
    for key in values:
        if key not in names:
            raise unknown_name(f"key of table {table}", key, names)
