from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.names import architecture
from models.vitas import macs_published
from nas.augmentation import POLICIES, Augmentation
from nas.recipe import FOLDER, Recipe, all_recipes, recipe_named, recipe_names
from nas.recipe_runs import counts, settings_on
from nas.settings import Mixing, PatchMixing

NAMES = recipe_names()
BUILDABLE = [recipe.name for recipe in all_recipes() if recipe.buildable]

BASE = """
abstract = true
[recipe]
method = "mpcvit"
stage = "train"
paper = "none"
reproduces = "nothing"
command = "run {name} of {file}"
[data]
name = "digits"
[model]
name = "mpcvit:vit_2_4_32"
[train]
epochs = 4
batch = 8
lr = 1e-3
"""


def described(tmp_path: Path, text: str) -> Recipe:
    """The recipe of a file `one` that extends the base above."""
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"  # what a folder holds is read once
    folder.mkdir()
    (folder / "base.toml").write_text(BASE)
    (folder / "one.toml").write_text(f'extends = "base"\n{text}')
    [name] = recipe_names(folder)
    return recipe_named(name, folder)


def within_rounding(value: float, published: float) -> bool:
    """Whether `value` rounds to `published` in the digits that are given."""
    text = f"{published:g}"
    digits = len(text.partition(".")[2])
    return abs(value - published) <= 0.5 * 10**-digits


@pytest.mark.parametrize("name", BUILDABLE)
def test_a_recipe_builds_a_network_with_the_published_figures(name: str) -> None:
    recipe = recipe_named(name)
    parameters, macs = counts(recipe)
    figures = recipe.figures
    assert figures.parameters in (None, parameters)
    assert figures.macs in (None, macs)
    assert figures.macs_billions is None or within_rounding(macs / 1e9, figures.macs_billions)
    if figures.macs_published is not None:
        assert recipe.model is not None
        assert macs_published(architecture(recipe.model.name)) == figures.macs_published  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is_for(name: str) -> None:
    recipe = recipe_named(name)
    assert recipe.name == name
    assert recipe.paper
    assert recipe.reproduces
    assert bool(recipe.command) or not recipe.buildable
    assert (recipe.model is not None) == recipe.buildable
    assert recipe.stage != "train" or not recipe.buildable or recipe.train is not None
    assert "{" not in recipe.command
    if recipe.runs:
        assert f"mpc-pareto train {name}" in recipe.command
        assert (recipe.front != "") == (recipe.stage == "retrain")
    if recipe.teacher is not None and recipe.teacher.recipe:
        assert recipe_named(recipe.teacher.recipe).stage == "train"


def test_every_seed_has_recipes_that_run_and_small_ones() -> None:
    recipes = all_recipes()
    assert {recipe.method for recipe in recipes} == {"mpcvit", "vitas", "uvc", "resnas"}
    assert {recipe.method for recipe in recipes if recipe.runs} == {"mpcvit", "vitas", "resnas"}
    for method in ("mpcvit", "vitas", "uvc", "resnas"):
        assert [recipe for recipe in recipes if recipe.method == method and recipe.data == "digits"]


def test_what_is_not_published_is_named() -> None:
    missing = {recipe.name for recipe in all_recipes() if not recipe.buildable}
    assert {"vitas-retrain-b", "vitas-retrain-e", "vitas-retrain-f", "vitas-search-2.7G"} < missing
    assert {"resnas-imagenet-searched-small", "resnas-imagenet-searched-medium", "mpcvit-flowers102"} < missing


def test_mpcvit_on_cifar10_is_as_its_configuration_says() -> None:
    teacher = recipe_named("mpcvit-cifar10-teacher").train
    assert teacher is not None
    assert (teacher.lr, teacher.warmup_lr, teacher.min_lr, teacher.weight_decay) == (5.5e-4, 1e-5, 1e-5, 0.06)
    assert (teacher.total_epochs, teacher.batch, teacher.warmup_epochs, teacher.amp) == (310, 128, 10, "fp16")
    assert teacher.mixing == Mixing(0.8, 1.0, 0.5, 1.0, off_epoch=175)
    assert teacher.augmentation == POLICIES["mpcvit-cifar10"]
    search = recipe_named("mpcvit-cifar10-search")
    assert search.train == replace(teacher, decay_theta=True)
    assert search.search["l1_weight"] == 1e-5


def test_tables_of_other_recipes_can_be_taken_back(tmp_path: Path) -> None:
    text = "[augmentation]\nkind = 'affine'\nzoom = 0.3\n[mixing]\ncells = 4\n"
    train = described(tmp_path, text).train
    assert train is not None
    assert (train.augmentation, train.mixing) == (Augmentation(zoom=0.3), PatchMixing(4))
    train = described(tmp_path, f"{text}[variants.plain]\naugmentation = 'none'\nmixing = 'none'\n").train
    assert train is not None
    assert (train.augmentation, train.mixing) == (None, None)


def test_variants_are_recipes_of_their_own(tmp_path: Path) -> None:
    recipe = described(tmp_path, "[variants.two.train]\nepochs = 9\n")
    assert (recipe.name, recipe.command) == ("one-two", "run one-two of one")
    assert recipe.train is not None
    assert (recipe.train.epochs, recipe.train.batch) == (9, 8)


def test_an_expected_result_never_outlives_the_configuration_that_it_is_of(tmp_path: Path) -> None:
    claimed = "[recipe]\nexpected_result = {value = '1', source = 'published', where = 'there'}\n"
    assert str(described(tmp_path, claimed).expected_result) == "1 (published: there)"
    taken_back = f"{claimed}[variants.x.recipe]\nexpected_result = {{}}\n"
    assert str(described(tmp_path, taken_back).expected_result) == "unknown"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trian]\n", r"recipe one: unknown table 'trian'; did you mean train\?"),
        ("[train]\nepoch = 3\n", r"unknown key of table train 'epoch'; did you mean epochs\?"),
        ("[train]\nmixing = 3\n", r"unknown key of table train 'mixing'"),
        ("[train]\nlr = -1.0\n", r"recipe one: want lr > 0"),
        ("[recipe]\nreproduce = ''\n", r"did you mean reproduces\?"),
        ("[recipe]\nstage = 'serch'\n", r"unknown stage 'serch'; did you mean search\?"),
        ("[recipe]\nmethod = 'vits'\n", r"unknown method 'vits'; did you mean"),
        ("[recipe]\nexpected_time = {value = '3 h'}\n", r"a value has a source \(published or measured\)"),
        ("[recipe]\nexpected_time = {value = '3 h', source = 'published'}\n", r"and says where"),
        ("[data]\npath = 'x'\n", r"unknown key of table data 'path'"),
        ("[augmentation]\npolicy = 'mpcvit-cifar'\n", r"unknown policy 'mpcvit-cifar'; did you mean mpcvit-cifar10"),
        ("[augmentation]\nflips = 1.0\n", r"did you mean flip\?"),
        ("[mixing]\nmixup = 1.0\n", r"did you mean mixup_alpha\?"),
        ("[distillation]\nkind = 'logit'\n", r"did you mean logits\?"),
        ("[search]\nratio = 1\n", r"unknown key of table search 'ratio'; did you mean ratios\?"),
        ("[figures]\nparams = 1\n", r"unknown key of table figures 'params'"),
        ("[model]\npatchhead = true\n", r"did you mean patch_head\?"),
    ],
)
def test_a_file_that_is_wrong_says_where_and_what(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        described(tmp_path, text)


def test_files_that_extend_what_is_not_there_or_themselves_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "c"\n')
    (tmp_path / "b.toml").write_text("abstract = true\n")
    with pytest.raises(ValueError, match=r"unknown recipe file \(extended by a\) 'c'"):
        recipe_names(tmp_path)
    circle = tmp_path / "circle"
    circle.mkdir()
    (circle / "a.toml").write_text('extends = "a"\n')
    with pytest.raises(ValueError, match="extend each other in a circle: a -> a"):
        recipe_names(circle)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown recipe 'mpcvit-cifar10-teecher'; did you mean mpcvit-cifar10-teacher\?"
    ):
        recipe_named("mpcvit-cifar10-teecher")


def test_fewer_processes_gather_more_batches() -> None:
    recipe = recipe_named("vitas-retrain-c")
    assert [settings_on(recipe, processes).accumulate for processes in (16, 4, 1)] == [1, 4, 16]
    assert settings_on(recipe, 1, epochs=2).warmup_epochs == 1
    with pytest.raises(ValueError, match="for 16 processes, not 3; these fit: 1, 2, 4, 8, 16"):
        settings_on(recipe, 3)


def test_recipes_are_where_the_package_is() -> None:
    assert [path for path in FOLDER.iterdir() if path.suffix != ".toml"] == []
