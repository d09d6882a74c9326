"""ViT-ResNAS's published networks and the largest ones of its search spaces."""

from __future__ import annotations

from models.spec import BlockSpec
from models.staged_spec import Stage, StagedSpec


def _stage(dim: int, head_dim: int, *blocks: tuple[int, int]) -> Stage:
    """Blocks by heads and MLP width."""
    return Stage(dim, tuple(BlockSpec(("softmax",) * heads, head_dim, mlp_width) for heads, mlp_width in blocks))


def _network(name: str, *stages: Stage) -> StagedSpec:
    return StagedSpec(image_px=224, patch_px=14, classes=1000, stages=stages, stem_channels=24, name=name)


# By name: the hand-made reference, what the search found at its 1.8 G, and what holds all weights while searching.
# Small and Medium are tabulated in the paper; their definitions stand in scripts that are not at hand here.
STAGED_SPECS: dict[str, StagedSpec] = {
    spec.name: spec
    for spec in (
        _network(
            "vit_res_tiny",
            _stage(192, 64, *[(3, 768)] * 4),
            _stage(384, 64, *[(6, 1536)] * 4),
            _stage(768, 64, *[(12, 3072)] * 4),
        ),
        _network(
            "vit_resnas_tiny",
            _stage(176, 32, (3, 704), (3, 576), (3, 640), (4, 576), (4, 704)),
            _stage(352, 48, (10, 1408), (8, 1408), (8, 1280), (8, 1408), (10, 1280), (10, 1024)),
            _stage(704, 64, (10, 2560), (10, 1792), (10, 2816), (8, 2816), (8, 2560)),
        ),
        _network(
            "sr_tiny_mh",
            _stage(256, 32, *[(6, 768)] * 6),
            _stage(512, 48, *[(12, 1536)] * 6),
            _stage(1024, 64, *[(12, 3072)] * 6),
        ),
        _network(
            "sr_small_mh",
            _stage(320, 32, *[(8, 960)] * 7),
            _stage(640, 48, *[(16, 1920)] * 7),
            _stage(1280, 64, *[(16, 3840)] * 7),
        ),
    )
}
