"""Images per second of this project's training loop against a plain loop of timm's parts, in one run, interleaved."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from models.names import build, input_shape
from nas.augmentation import Policy
from nas.data import Dataset, FilesPart, Part, load
from nas.distributed import Ranks, best_device
from nas.engine import Engine
from nas.evaluation import precision
from nas.losses import CrossEntropy
from nas.recipe import Recipe
from nas.settings import Mixing, Precision, TrainSettings


@dataclass(frozen=True, slots=True)
class Course:
    """What both loops train on: `batches` timed updates in each of `segments` segments, after `warm_up` untimed ones.

    Both run on the best device that there is. `workers` are those of the plain loop's DataLoader; the loader of this
    project chooses its own.
    """

    data: str
    model: str = "mpcvit:vit_7_4_32"
    image_px: int = 32
    batch: int = 128
    batches: int = 10
    segments: int = 5
    warm_up: int = 2
    workers: int = 0
    amp: Precision = "none"
    compile: bool = False
    policy: Policy | None = None
    mixing: Mixing | None = None

    def lasting(self, batches: int, segments: int, workers: int, compiled: bool) -> Course:
        """The same with other turns."""
        return replace(self, batches=batches, segments=segments, workers=workers, compile=compiled)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(self)


def course_of(recipe: Recipe, data: str, batch: int | None = None, amp: str | None = None) -> Course:
    """The course of a recipe, with its own batch and precision unless others are given.

    Raises ValueError for a recipe that cannot be built, or that trains in a way that the plain loop has not.
    """
    settings, model = recipe.train, recipe.model
    if settings is None or model is None:
        raise ValueError(f"recipe {recipe.name} cannot be built: {recipe.missing or 'it trains nothing'}")
    mixing, policy = settings.mixing, settings.augmentation
    plain = (mixing is None or isinstance(mixing, Mixing)) and (policy is None or isinstance(policy, Policy))
    if not plain or recipe.teacher or recipe.search:
        raise ValueError(f"recipe {recipe.name} has no plain loop beside it; name one such as mpcvit-cifar10-teacher")
    shape = input_shape(build(model.name, draws=False))
    asked = replace(settings, amp=amp or settings.amp, batch=batch or settings.batch)  # type: ignore[arg-type] # checked
    return Course(data, model.name, shape[-1], asked.batch, amp=asked.amp, policy=policy, mixing=mixing)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Throughputs:
    """Images per second in each segment, ours and the plain loop's, and what they ran on."""

    ours: tuple[float, ...]
    plain: tuple[float, ...]
    device: str

    @property
    def medians(self) -> tuple[float, float]:
        """Median of ours, and of the plain loop's."""
        return median(self.ours), median(self.plain)

    @property
    def ratio(self) -> float:
        """Median of ours over median of the plain loop's."""
        ours, plain = self.medians
        return ours / plain

    def to_json(self) -> dict[str, Any]:
        """All samples, their medians and the ratio."""
        return {
            "ours_images_per_s": list(self.ours),
            "plain_images_per_s": list(self.plain),
            "ours_median": self.medians[0],
            "plain_median": self.medians[1],
            "ratio": self.ratio,
            "device": self.device,
        }


def compare(course: Course) -> Throughputs:
    """Both loops in turns on copies of one network; which is first changes from segment to segment.

    Every segment starts its loader anew, so that none is filled while the other loop runs.
    Raises ValueError where the data set has too few images for a segment.
    """
    dataset, network = load(course.data, course.image_px), build(course.model)
    updates = course.warm_up + course.batches
    if len(dataset.train) < updates * course.batch:
        raise ValueError(f"{dataset.name} has {len(dataset.train)} images; a segment needs {updates * course.batch}")
    loops = {"ours": _our_loop(course, dataset, network), "plain": _plain_loop(course, dataset, network)}
    samples: dict[str, list[float]] = {name: [] for name in loops}
    for segment in range(-1, course.segments):  # the first, which compiles and fills caches, does not count
        for name in sorted(loops, reverse=segment % 2 == 0):
            images_per_s = _timed(loops[name](segment + 1), course)
            if segment >= 0:
                samples[name].append(images_per_s)
    device = best_device()
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Throughputs(tuple(samples["ours"]), tuple(samples["plain"]), named)


def _timed(updates: Iterator[Any], course: Course) -> float:
    """Images per second of `course.batches` updates, all of their work on the device included."""
    for _ in range(course.warm_up):
        next(updates)
    _meet()
    start_s = time.perf_counter()
    for _ in range(course.batches):
        next(updates)
    _meet()
    seconds = time.perf_counter() - start_s
    del updates  # its loader stops here, outside the other loop's time
    return course.batches * course.batch / seconds


def _meet() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _our_loop(course: Course, dataset: Dataset, network: nn.Module) -> Callable[[int], Iterator[int]]:
    settings = TrainSettings(
        epochs=course.segments + 1,
        batch=course.batch,
        lr=5e-4,
        augmentation=course.policy,
        mixing=course.mixing,
        amp=course.amp,
        compile=course.compile,
    )
    engine = Engine(copy.deepcopy(network), dataset, CrossEntropy(), settings, 0, Ranks())
    return engine.updates


def _plain_loop(course: Course, dataset: Dataset, network: nn.Module) -> Callable[[int], Iterator[None]]:
    """timm's transforms in torch's DataLoader, timm's Mixup, loss and AdamW: what a script of one screen does."""
    from timm.data.mixup import Mixup
    from timm.loss.cross_entropy import SoftTargetCrossEntropy
    from timm.optim._optim_factory import create_optimizer_v2

    device = best_device()
    model = copy.deepcopy(network).to(device).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-4, weight_decay=0.06)
    scaler = torch.amp.GradScaler(device.type, enabled=course.amp == "fp16")
    chosen = course.mixing or Mixing(probability=0.0)
    mix = Mixup(  # type: ignore[no-untyped-call]
        chosen.mixup_alpha,
        chosen.cutmix_alpha,
        prob=chosen.probability,
        switch_prob=chosen.switch_probability,
        num_classes=dataset.classes,
    )
    criterion = SoftTargetCrossEntropy()  # type: ignore[no-untyped-call]
    forward: Callable[[Tensor], Tensor] = torch.compile(model) if course.compile else model

    def updates(segment: int) -> Iterator[None]:
        torch.manual_seed(segment)
        for images, labels in _plain_batches(course, dataset, device):
            images, targets_BY = mix(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))
            optimizer.zero_grad()
            with precision(course.amp, device):
                loss = criterion(forward(images), targets_BY)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            yield

    return updates


def _plain_batches(course: Course, dataset: Dataset, device: torch.device) -> Any:
    """timm's transforms, picture by picture; `Policy.transform` only repairs a step that Pillow 13 refuses."""
    policy = course.policy or Policy(crop_scale=None, flip=0.0)
    transform = policy.transform(course.image_px, dataset.mean, dataset.std)
    return torch.utils.data.DataLoader(
        _Pictures(dataset.train, transform),
        batch_size=course.batch,
        shuffle=True,
        num_workers=course.workers,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )


class _Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Pictures one by one, as torchvision's data sets give them."""

    def __init__(self, part: Part, transform: Any) -> None:
        self._part, self._transform = part, transform

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if isinstance(self._part, FilesPart):
            picture = Image.open(self._part.paths[index]).convert("RGB")
        else:
            levels = self._part.images[index]
            levels = levels if levels.dtype == torch.uint8 else (levels * 255).to(torch.uint8)
            picture = Image.fromarray(levels.permute(1, 2, 0).numpy())
        return self._transform(picture), int(self._part.labels[index])
