"""MPCViT's differentiable search: every head mixes attention kinds, and a penalty on the mixture decides for the cheap.

Weights and search logits share one optimiser and the training images, as in the paper (arXiv 2211.13955, single-level);
validation images only watch.
"""

# L layers, H heads, K kinds

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.mixture import Parametrisation, discretise, mixed_layers, probabilities, search_network
from models.spec import ViTSpec
from models.vit import VisionTransformer
from nas.checkpoint import save_weights
from nas.data import Dataset, load
from nas.losses import soft_cross_entropy
from nas.objectives import Objective
from nas.settings import TrainSettings
from nas.training import OnEpoch, OnUpdate, Record, accuracy, train

Nested = tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found: the network's spec (its kinds are not chosen yet) and the probability of every kind.

    `weights` is the search network's safetensors file, `accuracy` that of the mixture on the validation images,
    `records` one row an epoch as in `epochs.jsonl`.
    """

    spec: ViTSpec
    kinds: tuple[str, ...]
    probabilities: Nested
    objective: str
    parametrisation: Parametrisation
    seed: int
    accuracy: float
    latency_s: float | None
    weights: Path
    records: tuple[Record, ...]

    @property
    def p_LHK(self) -> Tensor:  # noqa: N802
        """The probabilities as a tensor."""
        return torch.tensor(self.probabilities, dtype=torch.float64)


def search(
    spec: ViTSpec,
    dataset: Dataset | str,
    objective: Objective,
    settings: TrainSettings,
    seed: int,
    folder: Path,
    on_epoch: OnEpoch | None = None,
    on_update: OnUpdate | None = None,
) -> SearchResult:
    """Search the attention kind of every head of `spec`; writes checkpoints, `epochs.jsonl` and `weights.safetensors`.

    A call with the same arguments continues a killed one. Each record holds the objective, the expected seconds, the
    norm of the gradient of the latency term alone with respect to the search logits, the validation accuracy and
    `p_<kind>` of every head. Raises RuntimeError when the penalty never reached the search logits: its gradient was
    exactly zero at every epoch, and "no difference" between two searches would mean nothing.
    """
    dataset = load(dataset, spec.image_px)
    network = _fresh_network(spec, objective, settings, seed)
    initial = {"objective": objective.name, **_describe(network, objective)}
    records = train(
        network,
        dataset,
        _SearchLoss(objective),
        settings,
        seed,
        folder,
        kind="search_epoch",
        describe=lambda model: {"objective": objective.name, **_describe(_as_vit(model), objective)},
        on_epoch=on_epoch,
        on_update=on_update,
        identity={"spec": spec.to_json(), "objective": objective.to_json()},
    )
    _demand_gradient(objective, [initial, *records])
    save_weights(network, folder / "weights.safetensors")
    p_LHK = probabilities(network).detach().cpu()
    chosen: Nested = tuple(tuple(tuple(head) for head in layer) for layer in p_LHK.tolist())
    return SearchResult(
        spec=spec,
        kinds=objective.kinds,
        probabilities=chosen,
        objective=objective.name,
        parametrisation=objective.parametrisation,
        seed=seed,
        accuracy=records[-1]["accuracy"],
        latency_s=objective.seconds(p_LHK),
        weights=folder / "weights.safetensors",
        records=records,
    )


def zero_shot_accuracy(result: SearchResult, kinds_per_layer: Sequence[Sequence[str]], dataset: Dataset | str) -> float:
    """Validation accuracy of the discrete network with the search's own weights, before any retraining."""
    from safetensors.torch import load_model

    dataset = load(dataset, result.spec.image_px)
    network = search_network(result.spec, result.kinds, result.parametrisation)
    load_model(network, str(result.weights))
    return accuracy(discretise(network, kinds_per_layer), dataset.val_images, dataset.val_labels)


class _SearchLoss:
    """Cross-entropy plus the objective's penalty on the probabilities."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        """The terms `cross_entropy` and `penalty`."""
        return {
            "cross_entropy": soft_cross_entropy(model(images), targets_BY),
            "penalty": self._objective.penalty(probabilities(_as_vit(model))),
        }


def _fresh_network(spec: ViTSpec, objective: Objective, settings: TrainSettings, seed: int) -> VisionTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return search_network(
            spec, objective.kinds, objective.parametrisation, settings.attn_dropout, settings.drop_path
        )


def _describe(network: VisionTransformer, objective: Objective) -> Record:
    """Seconds, gradient norm of the penalty alone, and the probability of every kind by layer and head."""
    p_LHK = probabilities(network)
    thetas = [layer.theta for layer in mixed_layers(network)]
    gradients = torch.autograd.grad(objective.penalty(p_LHK), thetas, allow_unused=True, materialize_grads=True)
    norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    seconds = objective.seconds(p_LHK)
    return {
        "latency_s": seconds,
        "latency_gradient_norm": None if seconds is None else norm,
        "penalty_gradient_norm": norm,
        **{f"p_{kind}": p_LHK[:, :, index].tolist() for index, kind in enumerate(objective.kinds)},
    }


def _demand_gradient(objective: Objective, states: Sequence[Record]) -> None:
    trained = [state for state in states if "loss" in state]
    if not trained or any("penalty" not in state for state in trained):
        raise RuntimeError(f"the term {objective.name} was never evaluated in training")
    if all(state["penalty_gradient_norm"] == 0 for state in states):
        raise RuntimeError(
            f"the gradient of {objective.name} was exactly zero at every epoch: the search ignored it; check its weight"
        )


def _as_vit(model: nn.Module) -> VisionTransformer:
    if not isinstance(model, VisionTransformer):
        raise TypeError(f"a search trains a VisionTransformer, got {type(model).__name__}")
    return model
