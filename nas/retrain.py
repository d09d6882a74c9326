"""Training discrete networks from fresh weights: the teacher, and what a search found, with the teacher's help."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from bench.records import SCHEMA
from bench.run_directory import write_json
from models.architecture import Network, Spec, network_of, spec_from_json
from models.spec import ViTSpec
from models.staged import StagedTransformer, deployed
from nas.checkpoint import load_ema, save_weights
from nas.data import Dataset, load
from nas.distributed import join
from nas.evaluation import shared_accuracy
from nas.losses import CrossEntropy, Distillation, Loss, PatchLabels
from nas.settings import TrainSettings
from nas.training import OnEpoch, OnUpdate, train


@dataclass(frozen=True, slots=True)
class Retrained:
    """A trained discrete network: accuracy on test and validation images, and the folder of its spec and weights."""

    spec: Spec
    accuracy: float
    val_accuracy: float
    seed: int
    folder: Path


def retrain(
    spec: Spec,
    dataset: Dataset | str,
    settings: TrainSettings,
    seed: int,
    folder: Path,
    teacher: Path | nn.Module | None = None,
    token_weight: float | None = None,
    on_epoch: OnEpoch | None = None,
    on_update: OnUpdate | None = None,
    patch_head: bool = False,
) -> Retrained:
    """Train `spec` from fresh weights; writes `spec.json`, `weights.safetensors`, `epochs.jsonl`, `retrained.json`.

    With `teacher`, a network or the folder that `train_teacher` wrote, by logit distillation (and token distillation at
    `token_weight`); with `patch_head`, by labels of patches as well (staged networks). The weights are those of the
    last epoch: nothing is selected on the images that judge it. They are kept as the network is deployed: batch norms
    folded, without what only training needs. With `settings.ema_decay` the averaged ones are judged as well
    (`ema_accuracy`) and kept in `ema.safetensors`. A call with the same arguments continues a killed one. Under
    torchrun the first process writes. Raises ValueError where data, network and loss do not fit.
    """
    dataset = load(dataset, spec.image_px)
    _demand_fit(spec, dataset)
    mentor = load_network(teacher) if isinstance(teacher, Path) else teacher
    loss = _loss(mentor, token_weight, patch_head)
    network = _fresh_network(spec, settings, seed, patch_head)
    records = train(
        network,
        dataset,
        loss,
        settings,
        seed,
        folder,
        on_epoch=on_epoch,
        on_update=on_update,
        identity={
            "spec": spec.to_json(),
            "teacher": None if mentor is None else _fingerprint(mentor),
            "token_weight": token_weight,
            "patch_head": patch_head,
        },
    )
    accuracies = _judge(network, dataset, settings, folder)
    result = Retrained(spec, accuracies["accuracy"], records[-1]["accuracy"], seed, folder)
    record = {
        "schema": SCHEMA,
        "record": "retrained",
        "spec": spec.to_json(),
        **accuracies,
        "val_accuracy": result.val_accuracy,
        "test_images": len(dataset.test),
        "dataset": dataset.name,
        "seed": seed,
        "epochs": settings.total_epochs,
        "distilled": mentor is not None,
        "token_weight": token_weight,
    }
    ranks = join()
    if ranks.first:
        write_json(folder / "spec.json", spec.to_json())
        write_json(folder / "retrained.json", record)
    ranks.wait()
    return result


def train_teacher(
    spec: ViTSpec,
    dataset: Dataset | str,
    settings: TrainSettings,
    seed: int,
    folder: Path,
    on_epoch: OnEpoch | None = None,
) -> Retrained:
    """Train the softmax network of the shape of `spec`, in the same way and with the same files as `retrain`."""
    return retrain(spec.with_kinds("softmax"), dataset, settings, seed, folder, on_epoch=on_epoch)


def load_network(folder: Path) -> Network:
    """The network in `spec.json` and `weights.safetensors` of `folder`, in evaluation mode.

    Raises ValueError naming the file that is missing, or the folder where a file is torn or the two do not fit.
    """
    for name in ("spec.json", "weights.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no trained network: {name} is missing; train it first")
    try:
        network = network_of(spec_from_json(json.loads((folder / "spec.json").read_text())), batch_norm=False)
        load_model(network, str(folder / "weights.safetensors"))
    except (SafetensorError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{folder} holds a damaged network, or weights of another spec ({reason}); train it again"
        ) from error
    return network.eval()


def _loss(teacher: nn.Module | None, token_weight: float | None, patch_head: bool) -> Loss:
    if teacher is not None:
        if patch_head:
            raise ValueError("labels of patches and a teacher exclude each other; leave one out")
        return Distillation(teacher, token_weight)
    if token_weight is not None:
        raise ValueError("token_weight needs a teacher")
    return PatchLabels() if patch_head else CrossEntropy()


def _fresh_network(spec: Spec, settings: TrainSettings, seed: int, patch_head: bool) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network_of(spec, settings.attn_dropout, settings.drop_path, patch_head)


def _judge(network: Network, dataset: Dataset, settings: TrainSettings, folder: Path) -> dict[str, float]:
    """Keeps the weights, and the averaged ones where there are any, and judges each on the test images."""

    def kept(trained: Network, name: str) -> float:
        shipped = deployed(trained) if isinstance(trained, StagedTransformer) else trained
        save_weights(shipped, folder / f"{name}.safetensors")
        return shared_accuracy(shipped, dataset, dataset.test, join())

    accuracies = {"accuracy": kept(network, "weights")}
    if settings.ema_decay:
        averaged = copy.deepcopy(network)
        load_ema(folder, averaged)
        accuracies["ema_accuracy"] = kept(averaged, "ema")
    return accuracies


def _fingerprint(network: nn.Module) -> str:
    """Short hash of all weights: a resumed run must be taught by the same teacher."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _demand_fit(spec: Spec, dataset: Dataset) -> None:
    have, want = (dataset.image_px, dataset.classes), (spec.image_px, spec.classes)
    if have != want:
        raise ValueError(
            f"{dataset.name} has {have[0]} px and {have[1]} classes, the network wants {want[0]} px and {want[1]}"
        )
