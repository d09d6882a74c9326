"""How long and how hard to train: settings of the loop, the demo's and the paper's values, each with its reason."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal, get_args

from nas.augmentation import Augmentation, Policy

Precision = Literal["none", "bf16", "fp16"]
OptimizerName = Literal["adamw", "sgd"]
ScheduleName = Literal["cosine", "linear"]


@dataclass(frozen=True, slots=True)
class Mixing:
    """timm's Mixup and CutMix; `off_epoch` > 0 ends them there (the paper: 175 on CIFAR-10, never elsewhere)."""

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch_probability: float = 0.5
    probability: float = 1.0
    off_epoch: int = 0


@dataclass(frozen=True, slots=True)
class PatchMixing:
    """ViT-ResNAS's mixing (SwitchTokenMix): CutMix on the first half of a batch, Mixup on the second.

    Each of `cells` x `cells` parts of an image has its own label; `cells` is the side of the network's last grid.
    """

    cells: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    off_epoch: int = 0


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One training run: optimiser, schedule with linear warm-up and a cool-down at `min_lr`, precision, checkpoints.

    `batch` is that of one process and one pass; an update sees `batch * accumulate` images of each process.
    `attn_dropout` and `drop_path` go to the network that is built; their defaults are MPCViT's.
    `theta_lr` is the rate of the search logits (None: the same as the weights, as in the paper); `decay_theta` gives
    them the weight decay that the paper's code gives alpha, off by default because it outweighs the L1 term there.
    `decay_embeddings` decays positions and class tokens, as MPCViT does and DeiT does not.
    `evaluate_every` counts epochs between validations; the last epoch is always validated.
    `amp` is the precision of matrix products, `ema_decay` that of a second, averaged network; `unused_weights` is for
    networks that leave weights out of a pass where several processes train. A checkpoint is written after every epoch
    and, within one, every `checkpoint_every_s` seconds (None: never).
    Raises ValueError for a run that could not train.
    """

    epochs: int
    batch: int
    lr: float
    warmup_epochs: float = 0.0
    cooldown_epochs: int = 0
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    weight_decay: float = 0.06
    theta_lr: float | None = None
    decay_theta: bool = False
    label_smoothing: float = 0.1
    clip_norm: float | None = None
    augmentation: Augmentation | Policy | None = None
    mixing: Mixing | PatchMixing | None = None
    attn_dropout: float = 0.1
    drop_path: float = 0.1
    evaluate_every: int = 1
    optimizer: OptimizerName = "adamw"
    momentum: float = 0.9
    schedule: ScheduleName = "cosine"
    decay_embeddings: bool = True
    amp: Precision = "none"
    compile: bool = False
    channels_last: bool = False
    accumulate: int = 1
    ema_decay: float | None = None
    unused_weights: bool = False
    checkpoint_every_s: float | None = 600.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.evaluate_every < 1 or self.accumulate < 1:
            raise ValueError(
                "epochs, batch, evaluate_every and accumulate must be >= 1, got "
                f"{self.epochs}, {self.batch}, {self.evaluate_every}, {self.accumulate}"
            )
        if not self.lr > 0 or not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"want lr > 0 and 0 <= warmup_epochs < epochs, got {self.lr}, {self.warmup_epochs}, {self.epochs}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.mixing and self.batch % 2:
            raise ValueError(f"mixing pairs the images of a batch: batch must be even, got {self.batch}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in (0, 1), such as 0.9999, got {self.ema_decay}")
        _demand_known("optimizer", self.optimizer, get_args(OptimizerName))
        _demand_known("schedule", self.schedule, get_args(ScheduleName))
        _demand_known("amp", self.amp, get_args(Precision))

    @property
    def total_epochs(self) -> int:
        """Epochs that run, cool-down included."""
        return self.epochs + self.cooldown_epochs


def _demand_known(field: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        nearest = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"unknown {field} {name!r}{hint} Known: {', '.join(known)}")


# The demo's values, for `mpcvit:vit_4_4_32_demo` on the digits. Seconds are of one core of a 2-core test machine. What
# was tried and left is named with what else differed; each is one run of one seed on 360 test images, so that a point
# of accuracy is within chance.
DEMO_TEACHER = TrainSettings(
    epochs=14,  # 55 core-seconds, 96.1 % of the test images (seed 0); validation stood at 95 % after 8 of these epochs
    batch=24,  # 50 updates an epoch: with 1,200 images updates are scarce; batch 50, 10 epochs, more augmentation: 82 %
    lr=1e-3,  # 2e-3 with batch 32 and more augmentation started slower and ended at 95.6 %
    warmup_epochs=1,  # 50 updates, enough for Adam's second moment to settle
    augmentation=Augmentation(shift_px=1, rotate_degrees=5, zoom=0.05),  # as good as none in a trial
    drop_path=0.0,  # 4 layers and 14 epochs have nothing to spare
    evaluate_every=2,  # a validation takes 0.5 s, a tenth of an epoch
)

# Two epochs fewer, because the teacher's forward pass adds a fifth to the time and its help makes up for them.
DEMO_RETRAIN = replace(DEMO_TEACHER, epochs=12)

DEMO_SEARCH = TrainSettings(
    epochs=7,  # 35 core-seconds; the mixture reaches 92 % of the validation images, which ranks heads
    batch=24,  # as the teacher
    lr=1e-3,  # as the teacher
    warmup_epochs=1,  # as the teacher
    theta_lr=0.02,  # 350 updates must carry a logit over a range of about 4; at the weights' 1e-3 it would move by 0.3
    drop_path=0.0,  # as the teacher
)

# Weight 1 drives every head to p = 0.04 with a spread of 0.002, which is the penalty alone; at 0.05 the probabilities
# of the dear kind spread over 0.1 to 0.7, so that accuracy and latency both have a say.
DEMO_LATENCY_WEIGHT = 0.05

# The pull of DEMO_LATENCY_WEIGHT on each of the demo's 16 heads where rounds are free: 0.05 / 16. The paper's 1e-5 is
# for 300 epochs with a decaying alpha, and would do nothing in 7.
DEMO_L1_WEIGHT = DEMO_LATENCY_WEIGHT / 16
