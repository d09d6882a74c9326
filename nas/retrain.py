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
from models.spec import ViTSpec
from models.vit import VisionTransformer
from nas.checkpoint import load_ema, save_weights
from nas.data import Dataset, load
from nas.distributed import join
from nas.evaluation import shared_accuracy
from nas.losses import CrossEntropy, Distillation
from nas.settings import TrainSettings
from nas.training import OnEpoch, OnUpdate, train


@dataclass(frozen=True, slots=True)
class Retrained:
    """A trained discrete network: accuracy on test and validation images, and the folder of its spec and weights."""

    spec: ViTSpec
    accuracy: float
    val_accuracy: float
    seed: int
    folder: Path


def retrain(
    spec: ViTSpec,
    dataset: Dataset | str,
    settings: TrainSettings,
    seed: int,
    folder: Path,
    teacher: Path | nn.Module | None = None,
    token_weight: float | None = None,
    on_epoch: OnEpoch | None = None,
    on_update: OnUpdate | None = None,
) -> Retrained:
    """Train `spec` from fresh weights; writes `spec.json`, `weights.safetensors`, `epochs.jsonl`, `retrained.json`.

    With `teacher`, a network or the folder that `train_teacher` wrote, by logit distillation (and token distillation at
    `token_weight`). The weights are those of the last epoch: nothing is selected on the images that judge it. With
    `settings.ema_decay` the averaged ones are judged as well (`ema_accuracy`) and kept in `ema.safetensors`. A call
    with the same arguments continues a killed one. Under torchrun the first process writes. Raises ValueError where
    data and network do not fit.
    """
    dataset = load(dataset, spec.image_px)
    _demand_fit(spec, dataset)
    if token_weight is not None and teacher is None:
        raise ValueError("token_weight needs a teacher")
    network = _fresh_network(spec, settings, seed)
    mentor = load_network(teacher) if isinstance(teacher, Path) else teacher
    records = train(
        network,
        dataset,
        CrossEntropy() if mentor is None else Distillation(mentor, token_weight),
        settings,
        seed,
        folder,
        on_epoch=on_epoch,
        on_update=on_update,
        identity={
            "spec": spec.to_json(),
            "teacher": None if mentor is None else _fingerprint(mentor),
            "token_weight": token_weight,
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


def load_network(folder: Path) -> VisionTransformer:
    """The network in `spec.json` and `weights.safetensors` of `folder`, in evaluation mode.

    Raises ValueError naming the file that is missing, or the folder where a file is torn or the two do not fit.
    """
    for name in ("spec.json", "weights.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no trained network: {name} is missing; train it first")
    try:
        network = VisionTransformer(ViTSpec.from_json(json.loads((folder / "spec.json").read_text())))
        load_model(network, str(folder / "weights.safetensors"))
    except (SafetensorError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{folder} holds a damaged network, or weights of another spec ({reason}); train it again"
        ) from error
    return network.eval()


def _fresh_network(spec: ViTSpec, settings: TrainSettings, seed: int) -> VisionTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VisionTransformer(spec, settings.attn_dropout, settings.drop_path)


def _judge(network: VisionTransformer, dataset: Dataset, settings: TrainSettings, folder: Path) -> dict[str, float]:
    """Keeps the weights, and the averaged ones where there are any, and judges each on the test images."""
    ranks = join()
    save_weights(network, folder / "weights.safetensors")
    accuracies = {"accuracy": shared_accuracy(network, dataset, dataset.test, ranks)}
    if settings.ema_decay:
        averaged = copy.deepcopy(network)
        load_ema(folder, averaged)
        save_weights(averaged, folder / "ema.safetensors")
        accuracies["ema_accuracy"] = shared_accuracy(averaged, dataset, dataset.test, ranks)
    return accuracies


def _fingerprint(network: nn.Module) -> str:
    """Short hash of all weights: a resumed run must be taught by the same teacher."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _demand_fit(spec: ViTSpec, dataset: Dataset) -> None:
    have, want = (dataset.image_px, dataset.classes), (spec.image_px, spec.classes)
    if have != want:
        raise ValueError(
            f"{dataset.name} has {have[0]} px and {have[1]} classes, the network wants {want[0]} px and {want[1]}"
        )
