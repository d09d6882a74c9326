"""Running a recipe: its network, its settings on so many processes, its training or MPCViT's search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from bench.run_directory import RunDirectory
from models.architecture import network_of
from models.mixture import search_network
from models.names import architecture, build, input_shape
from models.spec import ViTSpec
from models.undrawn import Undrawn
from mpc.reading import shape_reading
from nas.binarise import binarise
from nas.data import load
from nas.distributed import join
from nas.objectives import L1
from nas.pace import OnUpdate
from nas.recipe import Recipe
from nas.retrain import retrain
from nas.search_mpcvit import search, zero_shot_accuracy
from nas.settings import Precision, TrainSettings
from nas.training import OnEpoch

Record = dict[str, Any]


def network(recipe: Recipe) -> nn.Module:
    """The network that `recipe` trains, of undrawn weights; ValueError where it is not known.

    Of MPCViT's search, the one that is searched, with its logits; of a retraining, the shape of what the search finds.
    """
    model = recipe.model
    if model is None:
        raise ValueError(f"recipe {recipe.name} cannot be built: {recipe.missing or 'it names no model'}")
    with Undrawn():
        if model.name.startswith(("deit:", "timm:")):
            return build(model.name)
        spec = architecture(model.name)
        if isinstance(spec, ViTSpec) and (recipe.method, recipe.stage) == ("mpcvit", "search"):
            return search_network(spec, recipe.search["kinds"])
        return network_of(spec, patch_head=model.patch_head)


def counts(recipe: Recipe) -> tuple[int, int]:
    """Parameters of the network that is trained, and multiply-accumulates of an image in the one that is deployed."""
    parameters = sum(parameter.numel() for parameter in network(recipe).parameters())
    assert recipe.model is not None
    deployed = build(recipe.model.name, draws=False)
    return parameters, shape_reading(deployed, input_shape(deployed)).macs


def settings_on(
    recipe: Recipe, processes: int, epochs: int | None = None, amp: Precision | None = None
) -> TrainSettings:
    """The recipe's settings for so many processes: where they are fewer than its own, each gathers more batches.

    With `epochs`, that many instead, at most half of them warm-up, and no cool-down; with `amp`, that precision. Raises
    ValueError where processes do not divide the recipe's.
    """
    if recipe.train is None:
        raise ValueError(f"recipe {recipe.name} trains nothing: {recipe.missing or 'it has no table train'}")
    settings = recipe.train
    if recipe.processes % processes:
        divisors = [n for n in range(1, recipe.processes + 1) if recipe.processes % n == 0]
        fitting = ", ".join(map(str, divisors))
        raise ValueError(
            f"recipe {recipe.name} is for {recipe.processes} processes, not {processes}; these fit: {fitting}"
        )
    gathered = settings.accumulate * (recipe.processes // processes)
    settings = replace(settings, accumulate=gathered, amp=settings.amp if amp is None else amp)
    if epochs is None:
        return settings
    return replace(settings, epochs=epochs, warmup_epochs=min(settings.warmup_epochs, epochs / 2), cooldown_epochs=0)


@dataclass(frozen=True, slots=True)
class Order:
    """A recipe to be run on `data`, in the run directory `run`, which holds all steps of a method.

    `epochs` and `amp` None are the recipe's own. `spec` is a file whose network is trained, `teacher` a folder of a
    trained network; None are those that the recipes before this one left in the run.
    """

    recipe: Recipe
    data: str
    run: Path
    seed: int = 0
    epochs: int | None = None
    amp: Precision | None = None
    spec: Path | None = None
    teacher: Path | None = None

    @property
    def folder(self) -> Path:
        """Where checkpoints, rows and weights go."""
        searches = self.recipe.stage == "search"
        return self.run / "search" if searches else self.run / "train" / self.recipe.name

    @property
    def spec_file(self) -> Path | None:
        """The file of the network to be trained; None for the recipe's own."""
        left = self.run / "front" / f"{self.recipe.front}.json"
        return self.spec or (left if self.recipe.front else None)

    @property
    def teacher_folder(self) -> Path | None:
        """The folder of the network that teaches; None where none does."""
        if self.recipe.teacher is None:
            return None
        return self.teacher or self.run / "train" / self.recipe.teacher.recipe

    @property
    def settings(self) -> TrainSettings:
        """The settings on the processes of this run."""
        return settings_on(self.recipe, join().world, self.epochs, self.amp)

    def check(self) -> None:
        """Raises ValueError with advice where the recipe cannot be run, or not with these arguments."""
        recipe = self.recipe
        if not recipe.buildable:
            raise ValueError(f"recipe {recipe.name} cannot be built: {recipe.missing}")
        if not recipe.runs:
            raise ValueError(f"recipe {recipe.name} cannot be run: {recipe.command}")
        if self.spec_file is not None and not self.spec_file.is_file():
            step = "run the search recipe into the same run first, or give --spec RUN/front/RATIO.json"
            raise ValueError(f"there is no network {self.spec_file} to train: {step}")
        if self.teacher_folder is not None and not (self.teacher_folder / "weights.safetensors").is_file():
            step = "train the teacher's recipe into the same run first, or give --teacher"
            raise ValueError(f"there is no trained teacher in {self.teacher_folder}: {step}")
        if recipe.teacher is None and self.teacher is not None:
            raise ValueError(f"recipe {recipe.name} has no teacher: leave out --teacher")


def run_order(order: Order, on_epoch: OnEpoch | None = None, on_update: OnUpdate | None = None) -> Record:
    """Train or search as the recipe says; the same call resumes. The answer holds accuracies, of a search its front.

    Raises ValueError as `Order.check` does, and where data and network do not fit.
    """
    order.check()
    if order.recipe.stage == "search":
        return {"front": _search(order, on_epoch, on_update)}
    recipe, settings = order.recipe, order.settings
    assert recipe.model is not None  # it is buildable
    spec = architecture(recipe.model.name if order.spec_file is None else f"spec:{order.spec_file}")
    weight = recipe.teacher.token_weight if recipe.teacher and recipe.teacher.kind == "tokens" else None
    taught = (order.teacher_folder, weight)
    told = (on_epoch, on_update)
    result = retrain(
        spec, order.data, settings, order.seed, order.folder, *taught, *told, patch_head=recipe.model.patch_head
    )
    return {"accuracy": result.accuracy, "val_accuracy": result.val_accuracy}


def _search(order: Order, on_epoch: OnEpoch | None, on_update: OnUpdate | None) -> list[Record]:
    """MPCViT's search under its published L1 norm, with a spec in front/ for each ratio.

    A row of each: heads by layer that keep the dear kind, and the accuracy right after binarisation.
    """
    assert order.recipe.model is not None  # it is buildable
    spec, asked = architecture(order.recipe.model.name), order.recipe.search
    assert isinstance(spec, ViTSpec)  # MPCViT's have no stages
    kinds = tuple(asked["kinds"])
    objective = L1(asked["l1_weight"], kinds, kinds[0], asked["parametrisation"])
    run, dataset = RunDirectory(order.run, {}), load(order.data, spec.image_px)
    result = search(spec, dataset, objective, order.settings, order.seed, order.folder, on_epoch, on_update)
    run.write_records("search", result.records)
    rows = []
    for ratio in asked["ratios"]:
        chosen = binarise(result.p_LHK, kinds, ratio, keep=kinds[0])
        path = run.write_json(f"front/{ratio:g}.json", result.spec.with_kinds(chosen).to_json())
        heads = [layer.count(kinds[0]) for layer in chosen]
        accuracy = zero_shot_accuracy(result, chosen, dataset)
        rows.append({"name": f"{ratio:g}", "heads": heads, "accuracy": accuracy, "spec": str(path)})
    return rows
