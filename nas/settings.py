"""How long and how hard to train: settings of the loop, the demo's and the paper's values, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from nas.data import Augmentation


@dataclass(frozen=True, slots=True)
class Mixing:
    """timm's Mixup and CutMix; `off_epoch` > 0 ends them there (the paper: 175 on CIFAR-10, never elsewhere)."""

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch_probability: float = 0.5
    probability: float = 1.0
    off_epoch: int = 0


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One training run: AdamW, cosine schedule with linear warm-up and a cool-down at `min_lr`.

    `attn_dropout` and `drop_path` go to the network that is built; their defaults are MPCViT's.
    `theta_lr` is the rate of the search logits (None: the same as the weights, as in the paper); `decay_theta` gives
    them the weight decay that the paper's code gives alpha, off by default because it outweighs the L1 term there.
    `evaluate_every` counts epochs between validations; the last epoch is always validated.
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
    augmentation: Augmentation | None = None
    mixing: Mixing | None = None
    attn_dropout: float = 0.1
    drop_path: float = 0.1
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.evaluate_every < 1:
            raise ValueError(
                f"epochs, batch and evaluate_every must be >= 1, got {self.epochs}, {self.batch}, {self.evaluate_every}"
            )
        if not self.lr > 0 or not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"want lr > 0 and 0 <= warmup_epochs < epochs, got {self.lr}, {self.warmup_epochs}, {self.epochs}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.mixing and self.batch % 2:
            raise ValueError(f"mixing pairs the images of a batch: batch must be even, got {self.batch}")

    @property
    def total_epochs(self) -> int:
        """Epochs that run, cool-down included."""
        return self.epochs + self.cooldown_epochs


_DEMO = TrainSettings(
    epochs=14,  # 64 core-seconds; 10 epochs stop at 94 to 95 %
    batch=24,  # 50 updates an epoch: with 1,200 images, updates are what is scarce; batch 50 reached 82 % in 10 epochs
    lr=1e-3,  # 2e-3 at batch 32 was slower to start and ended 1 point lower
    warmup_epochs=1,  # 50 updates; Adam's second moment has settled by then
    augmentation=Augmentation(
        shift_px=1, rotate_degrees=5, zoom=0.05
    ),  # no loss at 14 epochs, where 2 px and 10 degrees cost 1 point
    drop_path=0.0,  # 4 layers and 14 epochs have nothing to spare
    evaluate_every=2,  # a validation is 0.5 s, a tenth of an epoch
)

# The demo's values, for `mpcvit:vit_4_4_32_demo` on the digits and one core of this project's test machine.
DEMO_TEACHER = _DEMO
DEMO_RETRAIN = _DEMO
